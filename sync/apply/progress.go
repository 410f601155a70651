package apply

// Table ficus.progress, at the destination. One row per link, written in the same transaction as
// the rows it speaks of; removed by Forget.
//
//	link       text primary key
//	lsn        pg_lsn       end of the last source transaction that is applied
//	signal     text         last nonce that came through ficus.signal
//	epoch      bigint       highest epoch that came through ficus.ownership
//	updated_at timestamptz
//
// The row is updated with every batch: the low fill factor keeps those updates on its page.

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
)

const installSQL = `
SELECT pg_advisory_xact_lock(hashtext('ficus.install'));
CREATE SCHEMA IF NOT EXISTS ficus;
CREATE TABLE IF NOT EXISTS ficus.progress (
	link       text PRIMARY KEY,
	lsn        pg_lsn NOT NULL,
	signal     text,
	epoch      bigint,
	updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10)`

// Install creates schema ficus and table ficus.progress where they are missing.
func Install(ctx context.Context, conn *pgx.Conn) error {
	// One simple query is one transaction; the lock is the one that migrate/fence takes.
	if _, err := conn.PgConn().Exec(ctx, installSQL).ReadAll(); err != nil {
		return hint.Wrap(fmt.Errorf("create ficus.progress: %w", err), "the role needs CREATE on the database")
	}
	return nil
}

// Progress returns the end of the last source transaction that the link applied. ok is false when
// the link never applied any, or the table is not there.
func Progress(ctx context.Context, conn *pgx.Conn, link string) (at change.LSN, ok bool, err error) {
	p, ok, err := readProgress(ctx, conn, link)
	return p.lsn, ok, err
}

// Begin writes the first progress of a link whose destination holds everything up to a position; one
// that is there stays.
func Begin(ctx context.Context, conn *pgx.Conn, link string, at change.LSN) error {
	_, err := startProgress(ctx, conn, link, at)
	return err
}

// Forget removes the link's row; no error when there is none.
func Forget(ctx context.Context, conn *pgx.Conn, link string) error {
	_, err := conn.Exec(ctx, `DELETE FROM ficus.progress WHERE link = $1`, link)
	if err != nil && pg.Code(err) != pg.CodeUndefinedTable {
		return fmt.Errorf("forget the progress of %s: %w", link, err)
	}
	return nil
}

// progress is the row of one link.
type progress struct {
	lsn    change.LSN
	signal string
	epoch  int64
}

func readProgress(ctx context.Context, conn *pgx.Conn, link string) (p progress, ok bool, err error) {
	var lsn string
	err = conn.QueryRow(ctx, `SELECT lsn::text, coalesce(signal, ''), coalesce(epoch, 0) FROM ficus.progress WHERE link = $1`, link).
		Scan(&lsn, &p.signal, &p.epoch)
	switch {
	case errors.Is(err, pgx.ErrNoRows), pg.Code(err) == pg.CodeUndefinedTable:
		return progress{}, false, nil
	case err == nil:
		p.lsn, err = change.ParseLSN(lsn)
	}
	if err != nil {
		return progress{}, false, fmt.Errorf("read the progress of %s: %w", link, err)
	}
	return p, true, nil
}

// startProgress reads the link's row, and writes the first one where there is none.
func startProgress(ctx context.Context, conn *pgx.Conn, link string, start change.LSN) (progress, error) {
	p, ok, err := readProgress(ctx, conn, link)
	if err != nil || ok {
		return p, err
	}
	_, err = conn.Exec(ctx, `INSERT INTO ficus.progress (link, lsn) VALUES ($1, $2::text::pg_lsn)`, link, start.String())
	if err != nil {
		return progress{}, fmt.Errorf("write the first progress of %s: %w", link, err)
	}
	return progress{lsn: start}, nil
}
