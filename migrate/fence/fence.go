package fence

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
)

// Arm implements [migrate.Database]. Each table is altered in a transaction of its own.
func (d *Database) Arm(ctx context.Context) error {
	tables := d.scope().Tables
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.String()
	}
	rows, err := d.pool.Query(ctx, `
		WITH RECURSIVE moved(oid) AS (
			SELECT to_regclass(n)::oid FROM unnest($1::text[]) n WHERE to_regclass(n) IS NOT NULL
			UNION
			SELECT i.inhrelid FROM moved m JOIN pg_inherits i ON i.inhparent = m.oid
			JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition
		)
		SELECT format('%I.%I', n.nspname, c.relname)
		FROM moved m JOIN pg_class c ON c.oid = m.oid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p', 'f')
		AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = $2)
		ORDER BY 1`, names, trigger)
	if err != nil {
		return d.wrap("arm the fence", err)
	}
	bare, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return d.wrap("arm the fence", err)
	}
	for _, t := range bare {
		err := pg.Alter(ctx, d.pool, d.cfg.LockTimeout, `CREATE TRIGGER `+trigger+` BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON `+t+
			` FOR EACH STATEMENT EXECUTE FUNCTION ficus.fence()`)
		if err != nil {
			return d.wrap("arm the fence on "+t, err)
		}
	}
	return nil
}

// CloseGate implements [migrate.Database]. When it returns nil the closed gate is on disk, and no
// OpenGate that was called before has an effect any more.
func (d *Database) CloseGate(ctx context.Context) error {
	return d.wrap("close the gate", d.moveGate(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `SELECT setval('ficus.gate', last_value + 1 + last_value % 2) FROM ficus.gate`)
		return err
	}))
}

// OpenGate implements [migrate.Database].
func (d *Database) OpenGate(ctx context.Context) error {
	var seen int64
	if err := d.pool.QueryRow(ctx, `SELECT last_value FROM ficus.gate`).Scan(&seen); err != nil {
		return d.wrap("open the gate", err)
	}
	return d.wrap("open the gate", d.moveGate(ctx, func(tx pgx.Tx) error {
		var owner migrate.Side
		if err := tx.QueryRow(ctx, `SELECT owner FROM ficus.ownership FOR SHARE`).Scan(&owner); err != nil {
			return err
		}
		if owner != d.cfg.Self {
			return fmt.Errorf("%w: the %s does", ErrNotOwner, owner)
		}
		if seen%2 == 0 {
			return nil
		}
		tag, err := tx.Exec(ctx, `SELECT setval('ficus.gate', $1 + 1) FROM ficus.gate WHERE last_value = $1`, seen)
		if err == nil && tag.RowsAffected() == 0 {
			return ErrGateMoved
		}
		return err
	}))
}

// moveGate runs change alone among those that move the gate. setval takes effect at once and is
// flushed with its transaction's commit, which is synchronous here whatever the role's default is.
func (d *Database) moveGate(ctx context.Context, change func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('synchronous_commit', 'on', true), pg_advisory_xact_lock(hashtext('ficus.gate'))`); err != nil {
			return err
		}
		if err := d.stillMine(ctx, tx); err != nil {
			return err
		}
		return change(tx)
	})
}

// writersSQL finds transactions with a write lock on a fenced table. A statement takes its lock
// before its triggers read the gate, so no transaction that passed is missing here.
const writersSQL = `
SELECT DISTINCT l.virtualtransaction
FROM pg_locks l JOIN pg_trigger t ON t.tgrelid = l.relation AND t.tgname = '` + trigger + `'
WHERE l.locktype = 'relation' AND l.granted
AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
AND l.pid IS DISTINCT FROM pg_backend_pid()`

// WaitWriters implements [migrate.Database].
func (d *Database) WaitWriters(ctx context.Context, blocked func([]migrate.Blocker)) error {
	writers, err := d.writers(ctx, "")
	if err != nil {
		return d.wrap("look for writers", err)
	}

	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	report := time.NewTicker(time.Second)
	defer report.Stop()
	for {
		left, err := d.writers(ctx, ` AND l.virtualtransaction = ANY($1)`, writers)
		switch {
		case err == nil && len(left) == 0:
			return nil
		case err == nil:
			writers = left
		case ctx.Err() == nil:
			return d.wrap("wait for writers", err)
		}
		select {
		case <-ctx.Done():
			return d.blockedError(ctx, writers)
		case <-report.C:
			if b, err := d.blockers(ctx, writers); err == nil && blocked != nil && len(b) > 0 {
				blocked(b)
			}
		case <-poll.C:
		}
	}
}

func (d *Database) writers(ctx context.Context, condition string, args ...any) ([]string, error) {
	rows, err := d.pool.Query(ctx, writersSQL+condition, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// blockedError names who is still running now that the time is up.
func (d *Database) blockedError(ctx context.Context, writers []string) error {
	cause := context.Cause(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	bs, err := d.blockers(ctx, writers)
	if err != nil {
		return d.wrap("wait for writers", errors.Join(cause, err))
	}
	who := make([]string, len(bs))
	for i, b := range bs {
		who[i] = fmt.Sprintf("pid %d (%s, %s, for %s)", b.PID, b.Role, b.State, b.Age.Round(time.Millisecond))
		if b.GID != "" {
			who[i] = fmt.Sprintf("prepared transaction %q (%s, for %s)", b.GID, b.Role, b.Age.Round(time.Millisecond))
		}
	}
	return hint.Wrap(d.wrap("wait for writers", fmt.Errorf("still running: %s: %w", strings.Join(who, ", "), cause)),
		"end these transactions, for example with pg_terminate_backend(pid) or ROLLBACK PREPARED, then promote again")
}

// blockers describes writers. The virtual transaction of a prepared one keeps the number it had in
// its backend, so it is found by the lock on its own transaction id.
func (d *Database) blockers(ctx context.Context, writers []string) ([]migrate.Blocker, error) {
	rows, err := d.pool.Query(ctx, `
		SELECT coalesce(a.pid, 0), coalesce(p.gid, ''), coalesce(a.usename, p.owner, '')::text,
			coalesce(a.application_name, ''), coalesce(a.state, 'prepared'),
			extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared, clock_timestamp()))::float8
		FROM unnest($1::text[]) w(vxid)
		LEFT JOIN pg_locks x ON x.virtualtransaction = w.vxid AND x.locktype = 'transactionid' AND x.pid IS NULL
		LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid AND p.database = current_database()
		LEFT JOIN (SELECT DISTINCT virtualtransaction, pid FROM pg_locks WHERE pid IS NOT NULL) l ON l.virtualtransaction = w.vxid
		LEFT JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE a.pid IS NOT NULL OR p.gid IS NOT NULL`, writers)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (migrate.Blocker, error) {
		var b migrate.Blocker
		var age float64
		err := row.Scan(&b.PID, &b.GID, &b.Role, &b.Application, &b.State, &age)
		b.Age = time.Duration(age * float64(time.Second))
		return b, err
	})
}
