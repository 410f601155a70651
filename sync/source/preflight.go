package source

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// What keeps a reader from going on. Each comes with a hint.
var (
	// ErrSlotGone: there is no such slot.
	ErrSlotGone = errors.New("replication slot does not exist")
	// ErrSlotLost: the server removed WAL that the slot had not sent, or otherwise gave it up.
	ErrSlotLost = errors.New("replication slot was invalidated")
	// ErrSlotAhead: the slot was told to forget changes that are not stored here.
	ErrSlotAhead = errors.New("replication slot is ahead of the event store: changes are lost")
	// ErrServerBehind: the server has not written what it already sent; it is not the same any more.
	ErrServerBehind = errors.New("server is behind the event store: it was restored or replaced")
	// ErrPublicationGone: a publication is missing, so the slot would skip changes.
	ErrPublicationGone = errors.New("publication does not exist")
)

// cursorAcked is the stream's cursor for a position that was, or is about to be, acknowledged.
const cursorAcked = "acked"

// again is the only way on when changes are lost.
const again = "the target can no longer follow: start the migration again with a new copy"

// preflight checks that the slot continues what is stored, and returns how far it was confirmed.
func (r *Reader) preflight(ctx context.Context) (change.LSN, error) {
	conn, err := r.cfg.DSN.Connect(ctx, "source")
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))

	slot, err := SlotState(ctx, conn, r.cfg.Slot)
	if err != nil {
		return 0, err
	}
	if !slot.Exists {
		return 0, hint.Wrap(ErrSlotGone, "somebody dropped slot %q; %s", r.cfg.Slot, again)
	}
	if slot.WALStatus == "lost" {
		return 0, hint.Wrap(ErrSlotLost, "the server gave up slot %q, usually for max_slot_wal_keep_size; %s", r.cfg.Slot, again)
	}
	if err := r.checkPublications(ctx, conn); err != nil {
		return 0, err
	}
	return slot.ConfirmedFlush, r.checkHistory(ctx, conn, slot.ConfirmedFlush)
}

// checkPublications finds a missing publication now: some releases of PostgreSQL notice it at the
// first change, others skip the changes with a warning.
func (r *Reader) checkPublications(ctx context.Context, conn *pgx.Conn) error {
	var missing *string
	err := conn.QueryRow(ctx, `
		SELECT min(name) FROM unnest($1::text[]) AS name
		WHERE name NOT IN (SELECT pubname FROM pg_publication)`, r.cfg.Publications).Scan(&missing)
	if err != nil {
		return fmt.Errorf("read publications: %w", err)
	}
	if missing != nil {
		return hint.Wrap(fmt.Errorf("%w: %q", ErrPublicationGone, *missing), again)
	}
	return nil
}

// checkHistory compares positions: everything up to confirmed must be here or beyond us, and the
// server must have written what we hold.
func (r *Reader) checkHistory(ctx context.Context, conn *pgx.Conn, confirmed change.LSN) error {
	acked, err := r.cfg.Stream.Cursor(cursorAcked)
	if err != nil {
		return err
	}
	head := r.cfg.Stream.Head()
	known := max(head, acked, r.cfg.Start, r.cfg.Applied())
	if confirmed > known {
		return hint.Wrap(fmt.Errorf("%w: it stands at %s, the store at %s", ErrSlotAhead, confirmed, known),
			"something else read slot %q, or the data directory is an old copy; %s", r.cfg.Slot, again)
	}
	var text string
	err = conn.QueryRow(ctx, `SELECT (CASE WHEN pg_is_in_recovery()
		THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END)::text`).Scan(&text)
	if err != nil {
		return fmt.Errorf("read the server's position: %w", err)
	}
	written, err := change.ParseLSN(text)
	if err != nil {
		return err
	}
	if written < head {
		return hint.Wrap(fmt.Errorf("%w: it stands at %s, the store at %s", ErrServerBehind, written, head),
			"check that the connection string leads to the server that the migration began with; otherwise %s", again)
	}
	return nil
}
