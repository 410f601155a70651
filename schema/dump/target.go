package dump

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
)

// Table ficus.built, on the target: one row for each object that a Dump has built there, written in
// the transaction that built it. Rows go with schema ficus, when the migration is cleaned up.
//
//	digest  text, primary key   SHA-256 of the object's SQL without its owner, in hex
//	object  text                for people
//	at      timestamptz         when
const installSQL = `
CREATE SCHEMA IF NOT EXISTS ficus;
CREATE TABLE IF NOT EXISTS ficus.built (
	digest text PRIMARY KEY,
	object text NOT NULL,
	at timestamptz NOT NULL DEFAULT now()
)`

// digest identifies the object in ficus.built. A definition that changed on the source between two
// runs is another object, whose name then turns out to be taken.
func (e *entry) digest() string {
	sum := sha256.Sum256([]byte(e.sql))
	return hex.EncodeToString(sum[:])
}

// record returns the statement that notes e as built.
func (e *entry) record() string {
	return fmt.Sprintf("INSERT INTO ficus.built (digest, object) VALUES (%s, %s) ON CONFLICT DO NOTHING;",
		schema.QuoteLiteral(e.digest()), schema.QuoteLiteral(e.String()))
}

// connect opens a session on the target with the settings that pg_restore would set, and others.
func (d *Dump) connect(ctx context.Context, target pg.DSN, others ...pg.Option) (*pgx.Conn, error) {
	conforming := "on"
	if !d.archive.conformingString {
		conforming = "off"
	}
	conn, err := target.Connect(ctx, "schema", append(others,
		pg.Setting("check_function_bodies", "off"), // bodies may name what comes later
		pg.Setting("xmloption", "content"),
		pg.Setting("client_min_messages", "warning"),
		pg.Setting("row_security", "off"),
		pg.Setting("standard_conforming_strings", conforming),
		cancelOnServer)...)
	if err != nil {
		return nil, err
	}
	// A build of hours must not go on after this process has died.
	_, err = conn.Exec(ctx, `SELECT pg_catalog.set_config('client_connection_check_interval', '5s', false)
WHERE pg_catalog.current_setting('server_version_num')::int >= 140000`)
	if err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("prepare session: %w", err)
	}
	return conn, nil
}

// flush makes everything committed so far durable, on whatever session: a commit that waits for the
// disk waits for all WAL before it. A message is the smallest thing to commit that needs no table.
func flush(ctx context.Context, conn *pgx.Conn) error {
	err := execute(ctx, conn, "SET synchronous_commit = local; SELECT pg_catalog.pg_logical_emit_message(true, 'ficus', 'built')")
	if err != nil {
		return fmt.Errorf("wait for the target's disk: %w", err)
	}
	return nil
}

// cancelOnServer makes the end of a context cancel the running statement: closing the connection
// alone would leave an index being built, with its lock.
func cancelOnServer(c *pgx.ConnConfig) {
	c.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: cancelGrace}
	}
}

// built returns the digests of what earlier runs built.
func built(ctx context.Context, conn *pgx.Conn) (map[string]bool, error) {
	rows, err := conn.Query(ctx, `SELECT digest FROM ficus.built`)
	if err != nil {
		return nil, fmt.Errorf("read ficus.built: %w", err)
	}
	digests, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read ficus.built: %w", err)
	}
	set := make(map[string]bool, len(digests))
	for _, s := range digests {
		set[s] = true
	}
	return set, nil
}

// execute runs statements in one implicit transaction, or in the one that is open.
func execute(ctx context.Context, conn *pgx.Conn, sql string) error {
	return conn.PgConn().Exec(ctx, sql).Close()
}

// roles are the target's, each with whether the connected role may give it objects.
type roles map[string]bool

func readRoles(ctx context.Context, conn *pgx.Conn) (roles, error) {
	rows, err := conn.Query(ctx, `SELECT rolname, pg_catalog.pg_has_role(oid,
	CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)
FROM pg_catalog.pg_roles`)
	if err != nil {
		return nil, fmt.Errorf("read roles: %w", err)
	}
	r := roles{}
	var name string
	var usable bool
	if _, err := pgx.ForEachRow(rows, []any{&name, &usable}, func() error { r[name] = usable; return nil }); err != nil {
		return nil, fmt.Errorf("read roles: %w", err)
	}
	return r, nil
}

// sqlFor returns e's SQL, with its owner where the target has that role and the connected role may
// use it.
func sqlFor(e *entry, r roles) string {
	if r[e.owner] && e.owned != "" {
		return e.owned
	}
	return e.sql
}

// checkOwners warns of objects that sqlFor makes without their owner, also of those that an earlier
// run built.
func (d *Dump) checkOwners(r roles, first, last stage) {
	for _, e := range d.entries {
		if e.stage < first || e.stage > last || e.owned == "" || e.owned == e.sql {
			continue
		}
		if usable, exists := r[e.owner]; !exists {
			d.warn("objects of role %s belong to the connecting role on the target, which has no role %s", e.owner, e.owner)
		} else if !usable {
			d.warn("objects of role %s belong to the connecting role on the target, which is not a member of %s", e.owner, e.owner)
		}
	}
}
