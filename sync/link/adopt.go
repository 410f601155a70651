package link

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/source"
)

// policyMark begins the comment on a link's publication, which names its acknowledgement policy.
// It tells Adopt, whom the data directory cannot tell.
const policyMark = "ficus acknowledges what is "

// markPolicy notes the acknowledgement policy at the origin.
func (l *Link) markPolicy(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `COMMENT ON PUBLICATION `+schema.QuoteIdent(l.cfg.Name)+` IS `+schema.QuoteLiteral(policyMark+l.cfg.Ack.String()))
	return err
}

// Adopt makes a link prepared that another data directory, now lost, had prepared and followed, where
// [Adoptable] says that it can go on. A prepared link is left as it is.
func (l *Link) Adopt(ctx context.Context, afterEpoch int64) error {
	if _, err := l.attached(); err == nil {
		return nil
	}
	to, err := l.cfg.To.Connect(ctx, "adopt")
	if err != nil {
		return err
	}
	defer to.Close(context.WithoutCancel(ctx))
	from, err := l.cfg.From.Connect(ctx, "adopt")
	if err != nil {
		return err
	}
	defer from.Close(context.WithoutCancel(ctx))
	at, applied, err := Adoptable(ctx, from, to, l.cfg.Name)
	if err != nil {
		return err
	}
	return l.remember(record{Start: at, AfterEpoch: afterEpoch, AckApplied: applied})
}

// Adoptable tells from the two databases alone where the link of that name goes on without its data
// directory: from the progress that the destination shows, where the slot still holds everything
// after it, as it does if it was acknowledged as applied. Otherwise, when the slot has moved on, the error wraps
// [source.ErrSlotAhead] and says between which positions changes are missing. It wraps
// ErrNotPrepared when the databases show no such link. It changes nothing.
//
// A slot that was dropped and made again after the directory was lost looks like the old one: only
// a directory remembers that.
func Adoptable(ctx context.Context, from, to *pgx.Conn, name string) (at change.LSN, applied bool, err error) {
	at, known, err := apply.Progress(ctx, to, name)
	if err != nil {
		return 0, false, fmt.Errorf("link %s: %w", name, err)
	}
	slot, err := source.SlotState(ctx, from, name)
	if err != nil {
		return 0, false, fmt.Errorf("link %s: %w", name, err)
	}
	if !known || !slot.Exists {
		return 0, false, hint.Wrap(fmt.Errorf("link %s: adopt: progress at the destination: %t, slot at the origin: %t: %w",
			name, known, slot.Exists, ErrNotPrepared), "start the migration again with a new copy")
	}
	err = from.QueryRow(ctx, `
		SELECT coalesce(bool_or(obj_description(oid, 'pg_publication') = $2), false) FROM pg_publication WHERE pubname = $1`,
		name, policyMark+source.AckApplied.String()).Scan(&applied)
	if err != nil {
		return 0, false, fmt.Errorf("link %s: read the acknowledgement policy: %w", name, err)
	}
	switch {
	case applied: // the destination holds every change before what was acknowledged
		at = max(at, slot.ConfirmedFlush)
	case slot.ConfirmedFlush > at:
		return 0, false, hint.Wrap(fmt.Errorf("link %s: %w: what the origin forgot was stored in a data directory that is lost: changes between %s and %s are missing",
			name, source.ErrSlotAhead, at, slot.ConfirmedFlush),
			"bring the data directory back; or give up what was copied (ficus cleanup --source ... --target ..., empty the target's tables) "+
				"and start the migration again with a new copy; with follow.ack: applied nothing would be missing")
	}
	return at, applied, nil
}
