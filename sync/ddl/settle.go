package ddl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/sync/snapshot"
)

// act runs what changes anything but rows at the destination, again and again where that may help.
// While Settle holds, it waits.
func (f *Follower) act(ctx context.Context, do func(context.Context) error) error {
	if err := f.acting.take(ctx); err != nil {
		return err
	}
	defer f.acting.free()
	defer f.trouble(nil)
	retry := backoff.Timer{Min: time.Second, Max: 30 * time.Second}
	for {
		err := do(ctx)
		if err == nil || ctx.Err() != nil || !passing(err) {
			return err
		}
		f.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "tables could not be brought up to date, will try again", slog.Any("err", err))
		f.trouble(err)
		if err := retry.Wait(ctx); err != nil {
			return err
		}
	}
}

// passing reports whether the same may succeed later by itself.
func passing(err error) bool {
	return errors.Is(err, snapshot.ErrSnapshotGone) || errors.Is(err, snapshot.ErrMoved) || pg.Retryable(err)
}

// trouble keeps what Warnings tells.
func (f *Follower) trouble(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.trouble = err
}

// Warnings are what an operator should know now, though it goes on.
func (f *Follower) Warnings() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.trouble == nil {
		return nil
	}
	return []string{"nothing is applied until tables are brought up to date, which is tried again: " + f.mu.trouble.Error()}
}

// Settle returns nil when the tables of the origin are what the link knows, whatever was committed
// before it was called, and when nothing is outstanding; until Unsettle is called the link changes
// nothing but rows. Otherwise the error wraps ErrBusy: the link has to follow first. Repeated, it
// looks once more. It costs one query where no DDL has been committed since the last look.
func (f *Follower) Settle(ctx context.Context) error {
	f.mu.Lock()
	if !f.mu.settled {
		f.mu.settled = f.acting.try()
	}
	settled := f.mu.settled
	f.mu.Unlock()
	if !settled {
		return hint.Wrap(fmt.Errorf("%w: the link is following that just now", ErrBusy), "wait until it has; ficus watch %s shows it", f.cfg.Migration)
	}
	if p := f.cfg.Plans.Current().Pending; p != nil {
		return fmt.Errorf("%w: %s", ErrBusy, p.Why)
	}
	if asks := f.cfg.Requests.Asked(); len(asks) > 0 {
		return fmt.Errorf("%w: %s are to be copied anew", ErrBusy, display(asks[0].Tables))
	}
	found, err := f.glimpse(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("look at the tables once more: %w", err)
	case found != nil && found.any():
		return hint.Wrap(fmt.Errorf("%w at the source just before the switch", ErrBusy), "let DDL rest until the switch is over")
	}
	return nil
}

// Unsettle lets the link follow changes of tables again.
func (f *Follower) Unsettle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.settled {
		f.mu.settled = false
		f.acting.free()
	}
}
