package source

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
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

// preflightTimeout bounds the questions before streaming, on a server that does not answer.
const preflightTimeout = time.Minute

// again is the only way on when changes are lost.
const again = "the target can no longer follow: start the migration again with a new copy"

// preflight checks that the server and its slot continue what is stored, and returns the slot. repl is
// the session that is going to read; it has not begun.
func (r *Reader) preflight(ctx context.Context, repl *pgconn.PgConn) (State, error) {
	ctx, cancel := context.WithTimeout(ctx, preflightTimeout)
	defer cancel()
	if err := r.cfg.Enlist(ctx, repl); err != nil {
		return State{}, err
	}
	now, err := Identify(ctx, repl)
	if err != nil {
		return State{}, err
	}
	if err := r.identity.Same(now); err != nil {
		return State{}, err
	}
	forked := r.identity.Timeline != 0 && r.identity.Timeline != now.Timeline
	if forked {
		if err := r.followFork(ctx, repl, now); err != nil {
			return State{}, err
		}
	}
	slot, err := r.checkSlot(ctx, forked)
	if err != nil {
		return State{}, err
	}
	if r.identity != now {
		if err := r.cfg.Identified(now); err != nil {
			return State{}, fmt.Errorf("remember which server it is: %w", err)
		}
		r.identity = now
	}
	return slot, nil
}

// Check reports whether the server and its slot continue what is stored, with nothing missing between
// and no promotion: the error is what Run would end with, or [ErrForked]. It does not work while Run
// does.
func (r *Reader) Check(ctx context.Context) error {
	repl, err := r.cfg.DSN.ConnectReplication(ctx, "source")
	if err != nil {
		return err
	}
	defer hangUp(ctx, repl)
	now, err := Identify(ctx, repl)
	if err != nil {
		return err
	}
	if err := r.identity.Same(now); err != nil {
		return err
	}
	if r.identity.Timeline != 0 && r.identity.Timeline != now.Timeline {
		return fmt.Errorf("%w: it is on timeline %d, was on %d", ErrForked, now.Timeline, r.identity.Timeline)
	}
	_, err = r.checkSlot(ctx, false)
	return err
}

// checkSlot looks at the slot and the publications over a session of its own.
func (r *Reader) checkSlot(ctx context.Context, forked bool) (State, error) {
	conn, err := r.cfg.DSN.Connect(ctx, "source")
	if err != nil {
		return State{}, err
	}
	defer hangUp(ctx, conn.PgConn())

	var recovering bool
	if err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&recovering); err != nil {
		return State{}, fmt.Errorf("ask whether the server is a standby: %w", err)
	}
	if recovering {
		return State{}, standbyError{}
	}
	slot, err := SlotState(ctx, conn, r.cfg.Slot)
	if err != nil {
		return State{}, err
	}
	known, err := r.known()
	if err != nil {
		return State{}, err
	}
	if err := slot.usable(r.cfg.Slot, conn.Config().Database, known, forked); err != nil {
		return State{}, err
	}
	if err := r.checkPublications(ctx, conn); err != nil {
		return State{}, err
	}
	if slot.ConfirmedFlush > known {
		return State{}, hint.Wrap(fmt.Errorf("%w: it stands at %s, the store at %s: what was committed between them is missing", ErrSlotAhead, slot.ConfirmedFlush, known),
			"slot %q was dropped and made again, something else read it, or the data directory is an old copy; %s", r.cfg.Slot, again)
	}
	return slot, r.checkWritten(ctx, conn)
}

// A standbyError says that the server cannot be read yet. It counts as a time-out, so that it is tried
// again: a promotion is probably under way.
type standbyError struct{}

func (standbyError) Error() string   { return "server is a standby: waiting for its promotion" }
func (standbyError) Timeout() bool   { return true }
func (standbyError) Temporary() bool { return true }

// hangUp ends a session that is not wanted, however it is.
func hangUp(ctx context.Context, conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyeTimeout)
	defer cancel()
	_ = conn.Close(ctx) // the connection is over either way
}

// known returns how far this side can say that nothing is missing.
func (r *Reader) known() (change.LSN, error) {
	acked, err := r.cfg.Stream.Cursor(cursorAcked)
	return max(r.cfg.Stream.Head(), acked, r.cfg.Start, r.cfg.Applied()), err
}

// usable returns nil for a slot that can be read, and otherwise why not, and from where on changes are
// missing: nothing but the slot kept them.
func (s State) usable(name, database string, known change.LSN, forked bool) error {
	switch {
	case !s.Exists && forked:
		return hint.Wrap(fmt.Errorf("%w on the promoted server: changes after %s are missing", ErrSlotGone, known),
			"before PostgreSQL 17 no standby has the slots of its primary; from 17 on: follow.failover_slot, and sync_replication_slots on the standby; %s", again)
	case !s.Exists:
		return hint.Wrap(fmt.Errorf("%w: changes after %s are missing", ErrSlotGone, known), "somebody dropped slot %q; %s", name, again)
	case s.Plugin != "pgoutput" || s.Database != database:
		return hint.Wrap(fmt.Errorf("%w: another took its name, in database %q with plugin %q: changes after %s are missing", ErrSlotGone, s.Database, s.Plugin, known),
			"somebody dropped slot %q and made another of that name; %s", name, again)
	case s.WALStatus == "lost" || s.Invalidation != "":
		return hint.Wrap(fmt.Errorf("%w (%s): changes after %s are missing", ErrSlotLost, s.cause(), known), "%s; %s", s.remedy(), again)
	}
	return nil
}

// cause says why the server gave the slot up.
// Source: PostgreSQL manual, view pg_replication_slots, column invalidation_reason.
func (s State) cause() string {
	switch s.Invalidation {
	case "", "wal_removed": // before 17 servers name no reason
		return "its WAL was removed"
	case "rows_removed":
		return "rows of the catalog that it needs were removed"
	case "wal_level_insufficient":
		return "wal_level was lowered"
	case "idle_timeout":
		return "it was not read for longer than idle_replication_slot_timeout"
	}
	return s.Invalidation
}

func (s State) remedy() string {
	switch s.Invalidation {
	case "", "wal_removed":
		return "raise max_slot_wal_keep_size on the source, or keep the reader running"
	case "wal_level_insufficient":
		return "set wal_level = logical on the source"
	case "idle_timeout":
		return "raise idle_replication_slot_timeout on the source, or keep the reader running"
	}
	return "see the server's log"
}

// explain finds the cause of an error that the server gave a reader: a slot that was invalidated or
// dropped a moment ago is only "not in the required state" there.
func (r *Reader) explain(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(ctx, preflightTimeout)
	defer cancel()
	if code := pg.Code(err); code != pg.CodeObjectNotReady && code != pg.CodeUndefinedObject {
		return err
	}
	_, why := r.checkSlot(ctx, false)
	if errors.Is(why, ErrSlotGone) || errors.Is(why, ErrSlotLost) || errors.Is(why, ErrPublicationGone) {
		return why
	}
	return err
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

// checkWritten: the server must have written what was read from it.
func (r *Reader) checkWritten(ctx context.Context, conn *pgx.Conn) error {
	var text string
	err := conn.QueryRow(ctx, `SELECT (CASE WHEN pg_is_in_recovery()
		THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END)::text`).Scan(&text)
	if err != nil {
		return fmt.Errorf("read the server's position: %w", err)
	}
	written, err := change.ParseLSN(text)
	if err != nil {
		return err
	}
	copied, err := r.cfg.Copied()
	if err != nil {
		return err
	}
	if read := max(copied, r.cfg.Stream.Head()); written < read {
		return hint.Wrap(fmt.Errorf("%w: it stands at %s, and was read up to %s", ErrServerBehind, written, read),
			"check that the connection string leads to the server that the migration began with; otherwise %s", again)
	}
	return nil
}
