package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/sync/source"
)

// ErrWALBudget says that a link gave its slot up, because the origin kept more WAL for it than it may.
var ErrWALBudget = errors.New("origin kept more WAL for the slot than it may")

// lookEvery is how often the origin is asked how much WAL it keeps.
const lookEvery = 2 * time.Second

// A WALAnswer says what a link does when the origin keeps more WAL for it than it may.
type WALAnswer uint8

// The answers.
const (
	// WALAlarm: it says so, and goes on.
	WALAlarm WALAnswer = iota
	// WALPauseCopy: besides, a copy stands still until the origin keeps less than four fifths of it.
	WALPauseCopy
	// WALDropSlot: it drops the slot and stops for good. The origin is worth more than the migration.
	WALDropSlot
)

// String returns the answer as playbooks write it.
func (a WALAnswer) String() string {
	switch a {
	case WALAlarm:
		return "alarm"
	case WALPauseCopy:
		return "pause-copy"
	case WALDropSlot:
		return "drop-slot"
	}
	return fmt.Sprintf("WALAnswer(%d)", uint8(a))
}

// A walGuard is what a link knows of the WAL that its origin keeps.
type walGuard struct {
	mu struct {
		sync.Mutex
		over    string        // the warning about the link's own limit, "" below it
		danger  string        // the warning about the server's limit
		changed chan struct{} // closed and replaced when a copy may go on; nil while it may
	}
}

// Warnings are what an operator should know now, though the link goes on.
func (l *Link) Warnings() []string {
	all := l.walWarnings()
	if p, err := l.attached(); err == nil {
		if since, err := p.reader.Trouble(); err != nil {
			all = append(all, fmt.Sprintf("%s: nothing could be received since %s: %v", l.cfg.Name, since.Format(time.DateTime), err))
		}
		if since, err := p.applier.Trouble(); err != nil {
			all = append(all, fmt.Sprintf("%s: nothing could be applied since %s: %v", l.cfg.Name, since.Format(time.DateTime), err))
		}
	}
	return all
}

func (l *Link) walWarnings() []string {
	g := &l.wal
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []string
	for _, w := range []string{g.mu.over, g.mu.danger} {
		if w != "" {
			all = append(all, w)
		}
	}
	return all
}

// underBudget runs what reads the slot, and watches meanwhile how much WAL the origin keeps for it.
func (l *Link) underBudget(ctx context.Context, run func(context.Context) error) error {
	if err := l.gaveUp(); err != nil {
		return err
	}
	if err := l.look(ctx); err != nil {
		return l.giveUp(ctx, err)
	}
	g, gctx := errgroup.WithContext(ctx)
	watching, stop := context.WithCancel(gctx)
	defer stop()
	g.Go(func() error {
		defer stop()
		return run(gctx)
	})
	g.Go(func() error {
		if err := l.guardWAL(watching); errors.Is(err, ErrWALBudget) {
			return err // which ends run, too: nobody holds the slot when it is dropped
		}
		return nil
	})
	err := g.Wait()
	if errors.Is(err, ErrWALBudget) {
		return l.giveUp(ctx, err)
	}
	return err
}

// guardWAL watches what the origin keeps until ctx is done, or until the slot has to go.
func (l *Link) guardWAL(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	defer l.calm()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		if err := l.look(ctx); err != nil {
			return err
		}
	}
}

// look asks the origin once. A question that fails is one that is missing: what ails the origin is the reader's
// to say.
func (l *Link) look(ctx context.Context) error {
	ask, cancel := context.WithTimeout(ctx, 5*lookEvery)
	defer cancel()
	session, err := l.origin.Acquire(ask)
	if err != nil {
		l.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "how much WAL the origin keeps is not known", slog.Any("err", l.cfg.From.Redact(err)))
		return nil
	}
	defer session.Release()
	slot, err := source.SlotState(ask, session.Conn(), l.cfg.Name)
	if err != nil || !slot.Exists {
		return nil
	}
	danger, err := l.danger(ask, session.Conn(), slot)
	if err != nil {
		return nil
	}
	return l.weigh(ctx, slot.RetainedBytes, danger)
}

// danger says that the server is about to give the slot up, "" when less than half of what it allows
// is used.
func (l *Link) danger(ctx context.Context, conn *pgx.Conn, slot source.State) (string, error) {
	if slot.SafeWALBytes < 0 {
		return "", nil
	}
	var limit int64
	err := conn.QueryRow(ctx, `SELECT setting::bigint << 20 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'`).Scan(&limit)
	if err != nil || slot.SafeWALBytes >= limit/2 {
		return "", err
	}
	return fmt.Sprintf("%s: the origin gives the slot up after %s more WAL (max_slot_wal_keep_size %s)",
		l.cfg.Name, units.Bytes(slot.SafeWALBytes), units.Bytes(limit)), nil
}

// weigh compares what is kept with the budget, and says so when a limit is crossed.
func (l *Link) weigh(ctx context.Context, kept int64, danger string) error {
	limit := l.cfg.MaxSourceWAL
	g := &l.wal
	g.mu.Lock()
	var crossed []string
	if danger != "" && g.mu.danger == "" {
		crossed = append(crossed, danger)
	}
	g.mu.danger = danger
	switch {
	case limit > 0 && kept > limit:
		text := fmt.Sprintf("%s: the origin keeps %s of WAL for the slot, more than %s (%s)", l.cfg.Name, units.Bytes(kept), units.Bytes(limit), l.cfg.OnMaxSourceWAL)
		if g.mu.over == "" {
			crossed = append(crossed, text)
			g.mu.changed = make(chan struct{})
		}
		g.mu.over = text
	case g.mu.over != "" && kept < limit/5*4:
		g.calmLocked()
	}
	over := g.mu.over != ""
	g.mu.Unlock()
	for _, text := range crossed {
		l.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "the origin keeps much WAL", slog.String("link", l.cfg.Name), slog.String("warning", text))
		if f := l.cfg.Alarm; f != nil {
			f(text)
		}
	}
	if over && l.cfg.OnMaxSourceWAL == WALDropSlot {
		return l.budgetError(kept)
	}
	return nil
}

func (l *Link) budgetError(kept int64) error {
	return hint.Wrap(fmt.Errorf("%w: %s, the limit is %s: the slot was dropped", ErrWALBudget, units.Bytes(kept), units.Bytes(l.cfg.MaxSourceWAL)),
		"follow.on_max_source_wal: drop-slot said so; changes are missing from here on: find out why the link was behind, then start the migration again with a new copy")
}

// giveUp drops the slot of a link that has ended because of the budget, and remembers why.
func (l *Link) giveUp(ctx context.Context, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := l.updateIdentities(func(ids *identities) { ids.GaveUp = why.Error() }); err != nil {
		return errors.Join(why, err)
	}
	conn, err := l.connectFrom(ctx, "drop")
	if err == nil {
		err = errors.Join(source.DropSlot(ctx, conn, l.cfg.Name), conn.Close(ctx))
	}
	if err != nil {
		return hint.Wrap(fmt.Errorf("%w (and yet it is there: %w)", why, err), "drop it by hand: SELECT pg_drop_replication_slot('%s')", l.cfg.Name)
	}
	return why
}

// gaveUp returns an error when the slot was given up because of the budget, by this process or an
// earlier one.
func (l *Link) gaveUp() error {
	ids, err := l.identities()
	if err != nil || ids.GaveUp == "" {
		return err
	}
	return hint.Wrap(fmt.Errorf("%w, earlier: %s", ErrWALBudget, ids.GaveUp), "start the migration again with a new copy")
}

// gate holds a copy while it should stand back, and while the origin keeps too much WAL, if that is the answer.
func (l *Link) gate(ctx context.Context) error {
	if l.cfg.Pace != nil {
		if err := l.cfg.Pace(ctx); err != nil {
			return err
		}
	}
	if l.cfg.OnMaxSourceWAL != WALPauseCopy {
		return nil
	}
	g := &l.wal
	g.mu.Lock()
	changed := g.mu.changed
	g.mu.Unlock()
	if changed == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-changed:
		return nil
	}
}

// calm forgets the warnings when nobody looks any more, and lets a copy go on.
func (l *Link) calm() {
	g := &l.wal
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.danger = ""
	g.calmLocked()
}

func (g *walGuard) calmLocked() {
	g.mu.over = ""
	if g.mu.changed != nil {
		close(g.mu.changed)
		g.mu.changed = nil
	}
}
