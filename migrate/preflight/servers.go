package preflight

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
)

// oldest is the first PostgreSQL version that Ficus reads.
const oldest = 13

// slotsOnStandbys is the first version whose standbys keep slots.
const slotsOnStandbys = 17

// servers compares settings with what the links need: one slot for following, one for each running
// exact proof.
func (r *report) servers(cfg Config, src, dst inspect.Info) {
	if src.Major < oldest {
		r.add(fail, "version", "source", "", "PostgreSQL %d is older than %d, the oldest that Ficus reads", src.Major, oldest)
	}
	if dst.Major < oldest {
		r.add(fail, "version", "target", "", "PostgreSQL %d is older than %d, the oldest that Ficus writes", dst.Major, oldest)
	} else if dst.Major < src.Major {
		r.add(warn, "version", "target", "", "target runs PostgreSQL %d, the source %d: what is new in %d cannot be moved", dst.Major, src.Major, src.Major)
	}
	if src.Encoding != dst.Encoding {
		r.add(warn, "encoding", "target", fmt.Sprintf("CREATE DATABASE %s ENCODING '%s' TEMPLATE template0", schema.QuoteIdent(dst.Database), src.Encoding),
			"source is encoded in %s, target in %s: a character that %s lacks stops the link", src.Encoding, dst.Encoding, dst.Encoding)
	}
	if src.Collation != dst.Collation {
		r.add(warn, "collation", "target", fmt.Sprintf("CREATE DATABASE %s LC_COLLATE '%s' TEMPLATE template0", schema.QuoteIdent(dst.Database), src.Collation),
			"source sorts by %s, target by %s: ORDER BY and range conditions on text may answer differently", src.Collation, dst.Collation)
	}
	if cfg.Follows {
		r.follows("source", src)
	}
	if cfg.FailoverSlot && src.Major < slotsOnStandbys {
		r.add(fail, "failover-slot", "source", "leave follow.failover_slot out of the playbook",
			"standbys keep slots from PostgreSQL %d on, the source is %d: a failover of it ends the migration", slotsOnStandbys, src.Major)
	}
	if cfg.Promotes && len(cfg.Lossy) == 0 { // for the way back
		r.follows("target", dst)
		r.applies("source", src)
	}
	r.applies("target", dst)
	for name, s := range map[string]inspect.Info{"source": src, "target": dst} {
		if !s.CanCreate {
			r.add(fail, "create", name, fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %s", schema.QuoteIdent(s.Database), schema.QuoteIdent(s.Role)),
				"role %s may not create schema ficus", s.Role)
		}
	}
	if src.LargeObjects > 0 {
		r.add(warn, "large-objects", "source", "copy them with pg_dump --large-objects while writes are stopped",
			"%d large objects are not moved: PostgreSQL does not put them into the stream", src.LargeObjects)
	}
	if cfg.CopiesSchema && cfg.Tools != nil {
		r.add(fail, "pg_dump", "source", hint.Of(cfg.Tools), "%v", cfg.Tools)
	}
}

// applies checks what being the destination of a link takes.
func (r *report) applies(side string, s inspect.Info) {
	if !s.CanSetReplicationRole {
		r.add(fail, "replication-role", side, fmt.Sprintf("GRANT SET ON PARAMETER session_replication_role TO %s  -- 15 and newer; before that a superuser", schema.QuoteIdent(s.Role)),
			"role %s may not set session_replication_role, so triggers, foreign keys and the fence itself would stand in the way of applied changes", s.Role)
	}
}

// follows checks what being the origin of a link takes.
func (r *report) follows(side string, s inspect.Info) {
	const slots = 2 // one to follow, one for an exact proof
	if s.WALLevel != "logical" {
		r.add(fail, "wal-level", side, "ALTER SYSTEM SET wal_level = logical  -- then restart the server",
			"wal_level is %s: changes cannot be followed", s.WALLevel)
	}
	if s.FreeSlots < slots {
		r.add(fail, "slots", side, fmt.Sprintf("ALTER SYSTEM SET max_replication_slots = %d  -- then restart; or drop a slot that nobody uses (see pg_replication_slots)", s.MaxSlots+slots-s.FreeSlots),
			"%d of %d replication slots are free, %d are needed", s.FreeSlots, s.MaxSlots, slots)
	}
	if s.FreeWALSenders < slots {
		r.add(fail, "wal-senders", side, fmt.Sprintf("ALTER SYSTEM SET max_wal_senders = %d  -- then restart", s.MaxWALSenders+slots-s.FreeWALSenders),
			"%d of %d WAL senders are free, %d are needed", s.FreeWALSenders, s.MaxWALSenders, slots)
	}
	if !s.Replication {
		r.add(fail, "replication", side, fmt.Sprintf("ALTER ROLE %s REPLICATION", schema.QuoteIdent(s.Role)), "role %s may not open a replication connection", s.Role)
	}
	if s.InRecovery {
		r.add(fail, "standby", side, "connect to the primary", "the server is a standby: nothing can be prepared on it")
	}
}

// signals checks that the role may end sessions of others, where the playbook wants that.
func (r *report) signals(ctx context.Context, cfg Config, source, target *pgx.Conn) error {
	if !cfg.EndsSessions || !cfg.Promotes {
		return nil
	}
	for _, side := range []struct {
		name string
		conn *pgx.Conn
	}{{"source", source}, {"target", target}} {
		var role string
		var may bool
		err := side.conn.QueryRow(ctx, `SELECT current_user, pg_has_role(current_user, 'pg_signal_backend', 'MEMBER') OR rolsuper FROM pg_roles WHERE rolname = current_user`).Scan(&role, &may)
		if err != nil {
			return fmt.Errorf("%s: look whether the role may end sessions: %w", side.name, err)
		}
		if !may {
			r.add(warn, "signal-backend", side.name, "GRANT pg_signal_backend TO "+schema.QuoteIdent(role),
				"role %s may end its own sessions only: promote.blockers has no effect on those of others", role)
		}
	}
	return nil
}

// sameDatabase refuses to move a database onto itself.
func (r *report) sameDatabase(ctx context.Context, cfg Config, source, target *pgx.Conn) error {
	const identity = `SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system())::text || '/' || oid
		FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()`
	// A role that may not read pg_control_system is compared by what a server cannot share.
	const fallback = `SELECT pg_catalog.pg_postmaster_start_time()::text || '/' || pg_catalog.current_setting('data_directory_mode') || '/' || oid || '/' ||
		pg_catalog.pg_current_wal_flush_lsn()::text FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()`
	var a, b string
	for _, sql := range []string{identity, fallback} {
		errA, errB := source.QueryRow(ctx, sql).Scan(&a), target.QueryRow(ctx, sql).Scan(&b)
		if errA == nil && errB == nil {
			break
		}
	}
	if a != "" && a == b {
		r.add(fail, "same-database", "target", "give the connection string of another, empty database", "source and target are the same database (%s)", cfg.Target.Database())
	}
	return nil
}

// slotNames looks for other databases' slots of the same names: a slot belongs to a database, its name
// to the whole server.
func (r *report) slotNames(ctx context.Context, cfg Config, source, target *pgx.Conn) error {
	for _, side := range []struct {
		name, slot string
		conn       *pgx.Conn
		needed     bool
	}{
		{"source", cfg.ForwardSlot, source, cfg.Follows},
		{"target", cfg.ReverseSlot, target, cfg.Promotes && len(cfg.Lossy) == 0},
	} {
		if !side.needed {
			continue
		}
		var owner string
		err := side.conn.QueryRow(ctx, `SELECT coalesce('database ' || database, 'a standby') FROM pg_catalog.pg_replication_slots
			WHERE slot_name = $1 AND database IS DISTINCT FROM pg_catalog.current_database()`, side.slot).Scan(&owner)
		if errors.Is(err, pgx.ErrNoRows) {
			continue
		} else if err != nil {
			return fmt.Errorf("%s: look for slot %s: %w", side.name, side.slot, err)
		}
		r.add(fail, "slot-name", side.name, "give this migration a --name of its own; ficus cleanup in that database, if nobody uses the slot",
			"slot %s is there already, for %s", side.slot, owner)
	}
	return nil
}

// extensions wants every extension of the source to be installable on the target.
func (r *report) extensions(src inspect.Info) func(context.Context, Config, *pgx.Conn, *pgx.Conn) error {
	return func(ctx context.Context, cfg Config, _, target *pgx.Conn) error {
		rows, err := target.Query(ctx, `SELECT name::text FROM pg_catalog.pg_available_extensions`)
		if err != nil {
			return fmt.Errorf("target: read available extensions: %w", err)
		}
		available, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return fmt.Errorf("target: read available extensions: %w", err)
		}
		for _, e := range src.Extensions {
			if !slices.Contains(available, e.Name) && cfg.CopiesSchema {
				r.add(fail, "extension", e.Name, "install the package that brings it on the target's server (often postgresql-contrib)",
					"extension %s %s is not available on the target", e.Name, e.Version)
			}
		}
		return nil
	}
}

// longTransactions warns of what making a slot would wait for.
func (r *report) longTransactions(ctx context.Context, _ Config, source, _ *pgx.Conn) error {
	rows, err := source.Query(ctx, `SELECT pg_catalog.format('pid %s (%s, %s, for %s)', pid, coalesce(usename, '?'), coalesce(state, '?'),
			date_trunc('second', clock_timestamp() - xact_start))
		FROM pg_catalog.pg_stat_activity
		WHERE backend_type = 'client backend' AND xact_start < clock_timestamp() - interval '1 minute' AND backend_xid IS NOT NULL
		ORDER BY xact_start LIMIT 5`)
	if err != nil {
		return fmt.Errorf("source: look for long transactions: %w", err)
	}
	long, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("source: look for long transactions: %w", err)
	}
	if len(long) > 0 {
		r.add(warn, "long-transaction", "source", "let them end, or SELECT pg_terminate_backend(pid)",
			"making the slot waits for transactions that are open: %s", strings.Join(long, ", "))
	}
	return nil
}
