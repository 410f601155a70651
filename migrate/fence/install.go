package fence

// What Ficus keeps in each of the two databases:
//
//	ficus.ownership  one row: migration, self, epoch, owner. Written by Install and Own.
//	                 In the publication: its update tells a link where an epoch begins.
//	ficus.gate       sequence; last_value even: open, odd: closed. Read by every fenced statement.
//	                 It only ever rises, so a request to open it that comes late finds another value
//	                 than it was made for.
//	ficus.driver     one row: the token of the process that drives the migration, see Claim.
//	ficus.signal     one row at most: the last nonce. In the publication.
//	ficus.fence()    the trigger function; trigger ficus_fence on every moved table.
//	ficus.progress   one row per incoming link; belongs to sync/apply.
//	ficus.manifest, ficus.manifest_part
//	                 what of each table is copied; belong to sync/manifest.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/schema"
)

const trigger = "ficus_fence"

// ErrStaleEpoch says that the ownership row already stands at this epoch for the other owner, or
// at a later one: somebody else decided first.
var ErrStaleEpoch = errors.New("epoch was decided already")

// ErrNotOwner refuses to open the gate of a database that does not own the data.
var ErrNotOwner = errors.New("database does not own the data")

// ErrGateMoved says that the gate was closed again while a request to open it was on its way.
var ErrGateMoved = errors.New("gate was moved meanwhile")

// Config holds what a Database needs. Fields without a stated default are required.
type Config struct {
	DSN  pg.DSN
	Self migrate.Side
	// Tables are the moved tables on this side; partitions of these are found here.
	Tables []schema.Name
	// Sequences are the moved sequences, by the names that both sides use for them. One that feeds a
	// column of a table which a rule made may have another name here: Serials says by which column
	// it is found.
	Sequences []schema.Name
	Serials   map[schema.Name]Serial

	// Blockers says what is done with sessions that still write BlockersAfter after the gate closed.
	// Default BlockersWait, 2 s.
	Blockers      BlockerAnswer
	BlockersAfter time.Duration

	// LockTimeout bounds how long the application may wait behind Arm for one table.
	// Default 200 ms.
	LockTimeout time.Duration
}

// A Database is one side of a migration.
type Database struct {
	cfg  Config
	pool *pgxpool.Pool

	claiming sync.Mutex // held while a claim is made or given up
	mu       struct {
		sync.Mutex
		scope Scope
		claim *claim // nil: this process did not claim the database
	}
}

// A Scope is what a Database fences and moves: the fields of Config of the same names.
type Scope struct {
	Tables    []schema.Name
	Sequences []schema.Name
	Serials   map[schema.Name]Serial
}

// SetScope replaces what Config said: tables came or went while the source was followed.
func (d *Database) SetScope(s Scope) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.scope = s
}

func (d *Database) scope() Scope {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.scope
}

// New returns a Database that connects at its first use. Close it when done.
func New(ctx context.Context, cfg Config) (*Database, error) {
	cfg.LockTimeout = cmp.Or(cfg.LockTimeout, 200*time.Millisecond)
	cfg.Blockers = cmp.Or(cfg.Blockers, BlockersWait)
	cfg.BlockersAfter = cmp.Or(cfg.BlockersAfter, 2*time.Second)
	pool, err := cfg.DSN.Pool(ctx, "fence", 4)
	if err != nil {
		return nil, err
	}
	d := &Database{cfg: cfg, pool: pool}
	d.SetScope(Scope{Tables: cfg.Tables, Sequences: cfg.Sequences, Serials: cfg.Serials})
	return d, nil
}

// Close ends all sessions.
func (d *Database) Close() {
	d.Disclaim()
	d.pool.Close()
}

// Install implements [migrate.Database].
func (d *Database) Install(ctx context.Context, migration string, owner migrate.Side) error {
	err := pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error {
		// Two installers at once would both find the schema missing.
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtext('ficus.install'))`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, installSQL); err != nil {
			return err
		}
		gate := 0 // open
		if owner != d.cfg.Self {
			gate = 1
		}
		tag, err := tx.Exec(ctx, `INSERT INTO ficus.ownership (migration, self, epoch, owner) VALUES ($1, $2, 1, $3) ON CONFLICT DO NOTHING`,
			migration, d.cfg.Self, owner)
		if err != nil {
			return err
		}
		if err := d.enter(ctx, tx); err != nil {
			return err
		}
		if tag.RowsAffected() == 1 {
			_, err := tx.Exec(ctx, `SELECT setval('ficus.gate', $1)`, gate)
			return err
		}
		var have, self string
		if err := tx.QueryRow(ctx, `SELECT migration, self FROM ficus.ownership`).Scan(&have, &self); err != nil {
			return err
		}
		if have != migration || self != string(d.cfg.Self) {
			return hint.Wrap(fmt.Errorf("%w: it is the %s of migration %q", migrate.ErrForeign, self, have),
				"finish or cancel migration %q first; if it is gone for good: ficus cleanup --source or --target with this database", have)
		}
		return nil
	})
	return d.wrap("install the fence", err)
}

const installSQL = `
CREATE SCHEMA IF NOT EXISTS ficus;
CREATE TABLE IF NOT EXISTS ficus.ownership (
	only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
	migration  text NOT NULL,
	self       text NOT NULL,
	epoch      bigint NOT NULL,
	owner      text NOT NULL,
	changed_at timestamptz NOT NULL DEFAULT now()
);
` + driverSQL + `;
CREATE SEQUENCE IF NOT EXISTS ficus.gate MINVALUE 0 START 0;
CREATE TABLE IF NOT EXISTS ficus.signal (
	nonce text PRIMARY KEY,
	at    timestamptz NOT NULL DEFAULT now()
);
CREATE OR REPLACE FUNCTION ficus.fence() RETURNS trigger LANGUAGE plpgsql AS $fence$
DECLARE
	o record;
BEGIN
	IF (SELECT last_value OPERATOR(pg_catalog.%) 2 FROM ficus.gate) OPERATOR(pg_catalog.<>) 0 THEN
		SELECT migration, self, owner, epoch INTO o FROM ficus.ownership;
		RAISE EXCEPTION USING
			ERRCODE = 'read_only_sql_transaction',
			MESSAGE = pg_catalog.format('%s on %I.%I refused: migration "%s" has fenced this database, its %s',
				TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, o.migration, o.self),
			DETAIL = pg_catalog.format('Owner of the data is the %s (epoch %s), or is about to change.', o.owner, o.epoch),
			HINT = pg_catalog.format('Connect to the database that owns the data; "ficus status %s" shows which.', o.migration);
	END IF;
	RETURN NULL;
END
$fence$;
GRANT USAGE ON SCHEMA ficus TO PUBLIC;
GRANT SELECT ON ficus.gate, ficus.ownership TO PUBLIC;
`

// Uninstall implements [migrate.Database]. Tables lose their triggers one by one, with short lock
// time-outs; the schema goes last, so an interrupted Uninstall can be repeated. Meanwhile no other
// process can claim the database.
func (d *Database) Uninstall(ctx context.Context) error {
	if d.token() == "" {
		return d.uninstall(ctx)
	}
	return pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error {
		var there bool
		if err := tx.QueryRow(ctx, `SELECT to_regclass('ficus.driver') IS NOT NULL`).Scan(&there); err != nil {
			return d.wrap("remove the fence", err)
		}
		if !there {
			return d.uninstall(ctx)
		}
		if err := d.stillMine(ctx, tx); err != nil {
			return d.wrap("remove the fence", err)
		}
		if err := d.disarm(ctx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `DROP SCHEMA IF EXISTS ficus CASCADE`)
		return d.wrap("remove schema ficus", err)
	})
}

func (d *Database) uninstall(ctx context.Context) error {
	if err := d.disarm(ctx); err != nil {
		return err
	}
	_, err := d.pool.Exec(ctx, `DROP SCHEMA IF EXISTS ficus CASCADE`)
	return d.wrap("remove schema ficus", err)
}

// disarm removes the triggers.
func (d *Database) disarm(ctx context.Context) error {
	tables, err := d.armed(ctx)
	if err != nil {
		return d.wrap("remove the fence", err)
	}
	for _, t := range tables {
		if err := pg.Alter(ctx, d.pool, d.cfg.LockTimeout, `DROP TRIGGER IF EXISTS `+trigger+` ON `+t.String()); err != nil {
			return d.wrap("remove the fence from "+t.String(), err)
		}
	}
	return nil
}

// armed lists the tables that carry the trigger.
func (d *Database) armed(ctx context.Context) ([]schema.Name, error) {
	rows, err := d.pool.Query(ctx, `
		SELECT n.nspname::text, c.relname::text
		FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE t.tgname = $1 AND NOT t.tgisinternal ORDER BY 1, 2`, trigger)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[schema.Name])
}

// wrap adds the side and what was being done, and keeps passwords out.
func (d *Database) wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s on the %s: %w", doing, d.cfg.Self, d.cfg.DSN.Redact(err))
}
