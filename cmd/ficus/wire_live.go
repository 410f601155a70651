package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/verify"
)

// While a link follows, all rows can be compared again and again beside it (follow.verify: live in
// the playbook), and the follower's WAL be watched for writes of others.

const (
	livePoll  = 200 * time.Millisecond // how soon it notices that the phase is another
	liveRetry = 10 * time.Second       // after a failure
)

// errPhaseOver ends what goes on beside one phase.
var errPhaseOver = errors.New("the phase is over")

// A turns follower lets one comparison at a time hold the link: a second one could not stop it
// where the first has let it pass.
type turns struct {
	link verify.Follower
	turn chan struct{} // holds one token
}

// StopAt implements [verify.Follower].
func (t turns) StopAt(ctx context.Context, lsn change.LSN) (release func(), err error) {
	if lsn != 0 { // within the turn that began at 0
		return t.link.StopAt(ctx, lsn)
	}
	select {
	case t.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	goOn, err := t.link.StopAt(ctx, 0)
	if err != nil {
		<-t.turn
		return nil, err
	}
	return sync.OnceFunc(func() {
		goOn()
		<-t.turn
	}), nil
}

// watched reports whether rows may be compared beside a phase.
func watched(s migrate.Status) bool {
	switch s.Phase {
	case migrate.Following, migrate.ReadsSwitched, migrate.Promoted, migrate.RolledBack:
		return s.Running && !s.Paused && s.Error == ""
	case migrate.Pending, migrate.Preparing, migrate.Copying, migrate.CatchingUp, migrate.Verifying, migrate.Promoting, migrate.RollingBack,
		migrate.Completed, migrate.Cancelled, migrate.Failed:
	}
	return false
}

// watch compares beside every phase that allows it, until ctx is done.
func (v *verifier) watch(ctx context.Context) error {
	for {
		s := v.engine.migration.Status()
		wait := livePoll
		if watched(s) {
			err := v.watchPhase(ctx, s)
			if ctx.Err() == nil && !errors.Is(err, errPhaseOver) {
				v.log.LogAttrs(ctx, slog.LevelWarn, "live comparison interrupted", slog.Any("err", err), slog.String("hint", hint.Of(err)))
				wait = liveRetry
			}
		}
		if err := backoff.Sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// watchPhase compares until the migration moves on.
func (v *verifier) watchPhase(ctx context.Context, s migrate.Status) error {
	cfg, l := v.config(s.Owner)
	if l == nil {
		return errPhaseOver // lossy rules: nothing follows
	}
	cfg.Follower = turns{l, v.turn}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for {
			if err := backoff.Sleep(ctx, livePoll); err != nil {
				return err
			}
			if now := v.engine.migration.Status(); !watched(now) || now.Owner != s.Owner {
				return errPhaseOver
			}
		}
	})
	g.Go(func() error {
		return verify.Live(ctx, verify.LiveConfig{
			Config: cfg, Applied: l.Applied,
			Differ: func(r *verify.Report) {
				p := proof(r)
				v.engine.migration.Alarm(fmt.Sprintf("%d rows differ at %s, for example %s", r.Differences, r.LSN, firstOf(p.Samples)))
			},
		})
	})
	g.Go(func() error { return v.watchForeign(ctx, cfg) })
	return g.Wait()
}

// watchForeign watches for writes of others. Where that cannot be done it says so, once for each
// phase, and the comparison of rows goes on without it.
func (v *verifier) watchForeign(ctx context.Context, cfg verify.Config) error {
	m := v.engine.migration
	tables := make([]schema.Name, len(cfg.Mappings))
	for i := range cfg.Mappings {
		tables[i] = cfg.Mappings[i].Target
	}
	err := verify.Foreign(ctx, verify.ForeignConfig{
		Target: cfg.Target, Name: v.engine.job.playbook.Name, Tables: tables, Log: v.log,
		Found: func(f verify.ForeignWrite) { m.Foreign(f.String()) },
		Uncovered: func(tables []schema.Name, why string) {
			v.log.LogAttrs(ctx, slog.LevelWarn, "not watched for writes of others", slog.Int("tables", len(tables)), slog.String("because", why))
		},
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	v.log.LogAttrs(ctx, slog.LevelWarn, "the follower is not watched for writes of others", slog.Any("err", err), slog.String("hint", hint.Of(err)))
	<-ctx.Done()
	return context.Cause(ctx)
}

func firstOf(list []string) string {
	if len(list) == 0 {
		return "rows without a key"
	}
	return list[0]
}
