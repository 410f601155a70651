package link

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/manifest"
)

// errSettled is the cause with which Settle stops applying.
var errSettled = errors.New("the tables stand at one instant")

// Settle applies what was received until the destination's tables stand at one instant: a copy that was
// interrupted has read them under several snapshots. Where there was one it does nothing. The tables have
// their keys by then, and no foreign keys.
func (l *Link) Settle(ctx context.Context) error {
	p, err := l.attached()
	if err != nil {
		return err
	}
	until, err := l.settledAt(ctx)
	if err != nil || until == 0 {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	running, stop := context.WithCancelCause(ctx)
	g.Go(func() error {
		if err := l.Run(running); !errors.Is(err, errSettled) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		defer stop(errSettled)
		if err := l.awaitReceived(ctx, p, until); err != nil {
			return err
		}
		goOn, err := p.applier.StopAt(ctx, until)
		if errors.Is(err, apply.ErrPassed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("link %s: apply up to %s: %w", l.cfg.Name, until, err)
		}
		goOn()
		return nil
	})
	return g.Wait()
}

// settledAt returns from where on the destination's tables stand at one instant; 0: they do.
func (l *Link) settledAt(ctx context.Context) (until change.LSN, err error) {
	conn, err := l.cfg.To.Connect(ctx, "manifest")
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tables, err := manifest.Read(ctx, conn, l.cfg.Name)
	if err != nil {
		return 0, err
	}
	bases := map[string]bool{}
	for _, t := range tables {
		bases[t.Base.String()] = true
		until = max(until, t.Until)
	}
	if len(bases) < 2 {
		return 0, nil
	}
	return until, nil
}
