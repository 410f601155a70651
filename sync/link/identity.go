package link

// Replica identities that Ficus changed are remembered in the origin itself, so that whoever
// cleans up can put them back even when Ficus' own disk is gone:
//
//	ficus.replica_identity  one row per table: link, schema and table name, the REPLICA IDENTITY
//	                        clause that it had. Written before the change, removed after it was undone.

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
)

const identitySQL = `
CREATE SCHEMA IF NOT EXISTS ficus;
CREATE TABLE IF NOT EXISTS ficus.replica_identity (
	link        text NOT NULL,
	table_name  text NOT NULL, -- quoted and qualified
	was         text NOT NULL, -- 'DEFAULT', 'NOTHING', 'FULL' or 'USING INDEX "i"'
	PRIMARY KEY (link, table_name)
)`

// setIdentities gives cfg.Full and their partitions REPLICA IDENTITY FULL.
func (l *Link) setIdentities(ctx context.Context, conn *pgx.Conn) error {
	if len(l.cfg.Full) == 0 {
		return nil
	}
	if _, err := conn.Exec(ctx, identitySQL); err != nil {
		return err
	}
	names := make([]string, len(l.cfg.Full))
	for i, n := range l.cfg.Full {
		names[i] = n.String()
	}
	// What a partition logs is decided by the partition's own identity, not by its root's.
	rows, err := conn.Query(ctx, `
		WITH RECURSIVE t(oid) AS (
			SELECT to_regclass(n)::oid FROM unnest($1::text[]) n
			UNION
			SELECT i.inhrelid FROM t JOIN pg_inherits i ON i.inhparent = t.oid
			JOIN pg_class p ON p.oid = i.inhrelid AND p.relispartition
		)
		INSERT INTO ficus.replica_identity (link, table_name, was)
		SELECT $2, format('%I.%I', n.nspname, c.relname), CASE c.relreplident
			WHEN 'd' THEN 'DEFAULT' WHEN 'n' THEN 'NOTHING'
			ELSE 'USING INDEX ' || (SELECT format('%I', x.relname) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
				WHERE i.indrelid = c.oid AND i.indisreplident) END
		FROM t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relreplident <> 'f' AND c.relkind IN ('r', 'p')
		ON CONFLICT (link, table_name) DO UPDATE SET was = ficus.replica_identity.was
		RETURNING table_name`, names, l.cfg.Name)
	if err != nil {
		return err
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, t := range tables {
		if err := pg.Alter(ctx, conn, l.cfg.LockTimeout, `ALTER TABLE `+t+` REPLICA IDENTITY FULL`); err != nil {
			return fmt.Errorf("replica identity of %s: %w", t, err)
		}
	}
	return nil
}

// RestoreIdentities puts back the replica identities that the named link changed on the database
// of conn. Tables that are gone are passed over.
func RestoreIdentities(ctx context.Context, conn *pgx.Conn, link string, lockTimeout time.Duration) error {
	var remembered bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass('ficus.replica_identity') IS NOT NULL`).Scan(&remembered); err != nil || !remembered {
		return err
	}
	rows, err := conn.Query(ctx, `SELECT table_name, was, to_regclass(table_name) IS NOT NULL FROM ficus.replica_identity WHERE link = $1`, link)
	if err != nil {
		return err
	}
	type changed struct {
		Table, Was string
		Exists     bool
	}
	tables, err := pgx.CollectRows(rows, pgx.RowToStructByPos[changed])
	if err != nil {
		return err
	}
	for _, t := range tables {
		if t.Exists {
			if err := pg.Alter(ctx, conn, lockTimeout, `ALTER TABLE `+t.Table+` REPLICA IDENTITY `+t.Was); err != nil {
				return fmt.Errorf("replica identity of %s: %w", t.Table, err)
			}
		}
		if _, err := conn.Exec(ctx, `DELETE FROM ficus.replica_identity WHERE link = $1 AND table_name = $2`, link, t.Table); err != nil {
			return err
		}
	}
	return nil
}
