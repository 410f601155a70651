package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/fence"
	"github.com/ficus-migrate/ficus/sync/link"
)

// lookTimeout is how long a database may take to tell what "ficus recover" asks.
const lookTimeout = 20 * time.Second

// A wreck is what is left of a migration whose process is gone: its two databases.
type wreck struct {
	sides   map[migrate.Side]*survivor
	link    string // how the link that leaves the owner goes on, in words
	linkErr error  // why it does not
}

// A survivor is one of the two databases with all that it tells.
type survivor struct {
	Database string       `json:"database"` // user@host:port/database
	Side     migrate.Side `json:"side"`
	Error    string       `json:"error,omitempty"` // it does not answer

	Migration string       `json:"migration,omitempty"`
	Self      string       `json:"self,omitempty"` // the part that it plays by its own row
	Epoch     int64        `json:"epoch"`
	Owner     migrate.Side `json:"owner,omitempty"`
	Changed   string       `json:"changed,omitempty"` // when the row did
	GateOpen  bool         `json:"gate_open"`
	Fenced    int          `json:"fenced_tables"`

	Driver     string `json:"driver,omitempty"` // the session that drives the migration now
	LastDriver string `json:"last_driver,omitempty"`

	Slots      []slotFound     `json:"slots,omitempty"`
	Progress   []progressFound `json:"progress,omitempty"`
	Unfinished []string        `json:"unfinished,omitempty"` // tables that were not copied to the end

	err  error
	conn *pgx.Conn
}

// A slotFound is a replication slot of Ficus.
type slotFound struct {
	Name      string `json:"name"`
	Active    bool   `json:"active"`
	Confirmed string `json:"confirmed"`
	Retained  int64  `json:"retained_bytes"`
	Status    string `json:"status"`
}

// A progressFound is how far a link has come that ends in the database.
type progressFound struct {
	Link string `json:"link"`
	LSN  string `json:"lsn"`
}

// lookAt asks one database for all that it knows. That it does not answer is something to know, too.
func lookAt(ctx context.Context, dsn pg.DSN, side migrate.Side) *survivor {
	s := &survivor{Database: dsn.String(), Side: side}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if s.err = s.look(ctx, dsn); s.err != nil {
		s.Error = oneLine(s.err)
	}
	return s
}

func (s *survivor) look(ctx context.Context, dsn pg.DSN) error {
	var err error
	if s.conn, err = dsn.Connect(ctx, "recover"); err != nil {
		return err
	}
	if _, err := s.conn.Exec(ctx, `SET default_transaction_read_only = on`); err != nil {
		return err
	}
	db, err := fence.New(ctx, fence.Config{DSN: dsn, Self: s.Side})
	if err != nil {
		return err
	}
	defer db.Close()
	o, err := db.Ownership(ctx)
	if err != nil {
		return err
	}
	s.Migration, s.Epoch, s.Owner, s.GateOpen = o.Migration, o.Epoch, o.Owner, o.GateOpen
	if s.Driver, s.LastDriver, err = db.Drivers(ctx); err != nil {
		return err
	}
	if s.Slots, err = rowsOf(ctx, s.conn, pgx.RowToStructByPos[slotFound], slotsSQL); err != nil {
		return err
	}
	return s.lookInside(ctx)
}

const (
	slotsSQL = `
		SELECT slot_name::text, active, coalesce(confirmed_flush_lsn::text, ''),
			coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn), 0)::bigint, coalesce(wal_status, '')
		FROM pg_replication_slots WHERE slot_name ~ '^ficus_' AND database = current_database() ORDER BY 1`
	unfinishedSQL = `
		SELECT table_name FROM ficus.manifest m
		WHERE base = '' OR parts > (SELECT count(*) FROM ficus.manifest_part p WHERE p.link = m.link AND p.table_name = m.table_name) ORDER BY 1`
)

// lookInside reads schema ficus. Its tables come one after the other, so each may be missing.
func (s *survivor) lookInside(ctx context.Context) error {
	if s.Epoch == 0 {
		return nil
	}
	err := s.conn.QueryRow(ctx, `
		SELECT self, to_char(changed_at, 'YYYY-MM-DD HH24:MI:SS TZ'), (SELECT count(*) FROM pg_trigger WHERE tgname = 'ficus_fence' AND NOT tgisinternal)
		FROM ficus.ownership`).Scan(&s.Self, &s.Changed, &s.Fenced)
	if err != nil {
		return fmt.Errorf("read ficus.ownership: %w", err)
	}
	s.Progress, err = rowsOf(ctx, s.conn, pgx.RowToStructByPos[progressFound], `SELECT link, lsn::text FROM ficus.progress ORDER BY 1`)
	if err != nil && pg.Code(err) != pg.CodeUndefinedTable {
		return fmt.Errorf("read ficus.progress: %w", err)
	}
	s.Unfinished, err = rowsOf(ctx, s.conn, pgx.RowTo[string], unfinishedSQL)
	if err != nil && pg.Code(err) != pg.CodeUndefinedTable {
		return fmt.Errorf("read ficus.manifest: %w", err)
	}
	return nil
}

func rowsOf[T any](ctx context.Context, conn *pgx.Conn, to pgx.RowToFunc[T], sql string) ([]T, error) {
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, to)
}

// row is what the engine would read; nil when the database does not answer.
func (s *survivor) row() *migrate.Ownership {
	if s.err != nil {
		return nil
	}
	return &migrate.Ownership{Migration: s.Migration, Epoch: s.Epoch, Owner: s.Owner, GateOpen: s.GateOpen}
}

// mixedUp says that the two connection strings were given the wrong way round.
func (w *wreck) mixedUp() error {
	for _, side := range []migrate.Side{migrate.Source, migrate.Target} {
		if s := w.sides[side]; s.Self != "" && s.Self != string(side) {
			return hint.Wrap(fmt.Errorf("%s is the %s of migration %q, and was given as its %s", s.Database, s.Self, s.Migration, side),
				"give the database that was moved as --source, the one that it was moved to as --target")
		}
	}
	return nil
}

// judgeLink finds out whether the link that leaves the owner can go on where its follower stands.
func (w *wreck) judgeLink(ctx context.Context, r migrate.Recovery) {
	from, to := w.sides[r.Owner], w.sides[r.Owner.Other()]
	if r.Owner == "" || from.err != nil || to.err != nil || from.Epoch == 0 || to.Epoch == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	at, _, err := link.Adoptable(ctx, from.conn, to.conn, linkName(r.Migration, r.Owner))
	switch {
	case errors.Is(err, link.ErrNotPrepared) && r.Owner == migrate.Source:
		w.link = "was not there yet: the copy begins anew, into a target whose tables are empty"
	case errors.Is(err, link.ErrNotPrepared):
		w.link, w.linkErr = "no way back: the databases know of no link from the target", err
	case err != nil:
		w.link, w.linkErr = oneLine(err), err
	case r.Owner == migrate.Source:
		w.link = fmt.Sprintf("nothing is missing: the target goes on from %s", at)
	default:
		w.link = fmt.Sprintf("nothing is missing for the way back: the source goes on from %s", at)
	}
}

func (w *wreck) close(ctx context.Context) {
	for _, s := range w.sides {
		if s.conn != nil {
			_ = s.conn.Close(context.WithoutCancel(ctx)) // nothing depends on a clean goodbye
		}
	}
}
