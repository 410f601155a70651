package fence

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

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
