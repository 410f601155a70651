package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// ErrStale says that a Hold or Release came too late: the gateway has been told of a newer epoch.
var ErrStale = errors.New("epoch is out of date")

// errReleased ends a Hold that was overtaken.
var errReleased = errors.New("released before every transaction had ended")

// A route says where sessions belong. It is never changed, only replaced.
type route struct {
	owner    Backend
	percent  int     // of the read-only door's sessions, on the backend that does not own
	holding  bool    // nothing may begin on the read-write door
	counting bool    // a dry run: what would wait is counted, and goes on
	draining bool    // held clients have not all gone; who comes now goes behind them
	coming   Backend // the owner that is expected, "" for no change
}

// free reports whether a session of that door may begin a transaction without asking further.
func (r *route) free(d door) bool { return d == readOnly || !r.holding && !r.draining && !r.counting }

// backend returns where a session with that number, from [0, 100), belongs.
func (g *Gateway) backend(r *route, d door, number float64) Backend {
	if d == readOnly && number < float64(r.percent) {
		for b := range g.cfg.Backends {
			if b != r.owner {
				return b
			}
		}
	}
	return r.owner
}

// A hold counts the transactions that were in flight when it began.
type hold struct {
	left     atomic.Int64
	drained  chan struct{} // closed when left is 0
	released chan struct{} // closed by Release, or by the next Hold
}

// leave says that one of the counted transactions has ended.
func (h *hold) leave() {
	if h.left.Add(-1) == 0 {
		close(h.drained)
	}
}

// Expect says which backend will own soon, so that sessions of the read-write door can get ready: each, before it next begins a
// transaction, opens a server session there and gives it the state that it has, which moving to it later takes little of. A client waits
// for that once, while others go on; during a [Gateway.Hold] all would want it at once, on machines that have better to do then.
// Sessions without a transaction to begin are left alone, and no failure does any harm. Expecting the present owner takes it back, so
// does a Release, and so do ten minutes without one ([Config.ExpectTimeout]). It returns at once.
func (g *Gateway) Expect(ctx context.Context, owner Backend) error {
	if _, ok := g.cfg.Backends[owner]; !ok {
		return fmt.Errorf("expect: backend %q is not known", owner)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if owner == g.route.Load().owner {
		g.expectLocked("")
		return nil
	}
	g.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "expecting an owner", slog.String("owner", string(owner)))
	g.expectLocked(owner)
	g.mu.forget = time.AfterFunc(g.cfg.ExpectTimeout, func() { // whoever said so is gone, most likely
		g.mu.Lock()
		defer g.mu.Unlock()
		g.expectLocked("")
	})
	return nil
}

// expectLocked changes which owner is expected; "": none.
func (g *Gateway) expectLocked(coming Backend) {
	if g.mu.forget != nil {
		g.mu.forget.Stop()
		g.mu.forget = nil
	}
	next := *g.route.Load()
	if next.coming == coming {
		return
	}
	next.coming = coming
	g.route.Store(&next)
	if coming == "" {
		g.askSweep()
	}
}

// Hold stops starting transactions on the read-write door, new sessions included, and returns when
// those in flight have ended. When ctx ends first it says how many are left; the hold stays until
// Release in any case. Each attempt to change the owner has an epoch of its own, higher than those
// before: an older one, or one that has been released, gets ErrStale, so that a request which was
// long under way cannot stop the clients of a later time. Holding again is no error.
func (g *Gateway) Hold(ctx context.Context, epoch int64) error {
	h, err := g.beginHold(epoch)
	if err != nil {
		return err
	}
	select {
	case <-h.drained:
		return nil
	default:
	}
	select {
	case <-h.drained:
		return nil
	case <-h.released:
		return fmt.Errorf("hold at epoch %d: %w", epoch, errReleased)
	case <-ctx.Done():
		return hint.Wrap(fmt.Errorf("hold at epoch %d: %d sessions are still inside a transaction: %w",
			epoch, h.left.Load(), context.Cause(ctx)),
			"look for long transactions in pg_stat_activity of the owner (state, xact_start)")
	}
}

func (g *Gateway) beginHold(epoch int64) (*hold, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if last := g.mu.epoch; epoch < last || epoch == last && g.mu.answered {
		return nil, fmt.Errorf("hold at epoch %d, have %d: %w", epoch, last, ErrStale)
	}
	g.mu.epoch, g.mu.answered = epoch, false
	old := g.route.Load()
	h := &hold{drained: make(chan struct{}), released: make(chan struct{})}
	if g.mu.hold != nil {
		close(g.mu.hold.released)
	} else {
		g.stalls.reset()
	}
	g.mu.hold = h
	g.mu.orphan = false
	if !g.cfg.DryRun {
		// The queue first: whoever sees the route holding finds the queue closed.
		g.queue.Hold()
	}
	next := *old
	next.holding, next.counting, next.draining = !g.cfg.DryRun, g.cfg.DryRun, false
	g.route.Store(&next)
	h.left.Store(1)
	for s := range g.mu.sessions {
		s.joinHold(h)
	}
	h.leave()
	return h, nil
}

// Release sends held and later clients to the owner and lets them go. An epoch older than that of
// the last Hold or Release gets ErrStale. It returns at once; idle sessions move after the held ones have gone.
func (g *Gateway) Release(ctx context.Context, owner Backend, epoch int64) error {
	if _, ok := g.cfg.Backends[owner]; !ok {
		return fmt.Errorf("release: backend %q is not known", owner)
	}
	g.mu.Lock()
	if last := g.mu.epoch; epoch < last {
		g.mu.Unlock()
		return fmt.Errorf("release at epoch %d, have %d: %w", epoch, last, ErrStale)
	}
	if h := g.mu.hold; h != nil {
		close(h.released)
		g.mu.hold = nil
	}
	g.mu.epoch, g.mu.answered = epoch, true
	g.expectLocked("")
	// The route first: whoever the queue lets go finds it.
	next := *g.route.Load()
	next.owner, next.holding, next.counting, next.draining = owner, false, false, true
	g.route.Store(&next)
	g.queue.Release()
	g.mu.Unlock()
	g.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "released clients",
		slog.String("owner", string(owner)), slog.Int64("epoch", epoch), slog.Int("held", g.queue.Len()))
	g.askSweep()
	return nil
}

// Reads sends that percentage of the read-only door's sessions to the backend that does not own.
// Sessions change over at their next border.
func (g *Gateway) Reads(ctx context.Context, percent int) error {
	if percent < 0 || percent > 100 {
		return fmt.Errorf("reads: %d is not a percentage", percent)
	}
	if percent > 0 && len(g.cfg.Backends) < 2 {
		return errors.New("reads: there is no second backend")
	}
	g.mu.Lock()
	next := *g.route.Load()
	g.reads.stepped(next.percent, percent)
	next.percent = percent
	g.route.Store(&next)
	g.mu.Unlock()
	g.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "routed reads", slog.Int("percent", percent))
	g.askSweep()
	return nil
}

// Stalls returns the waits that the last Hold caused.
func (g *Gateway) Stalls() Stalls { return g.stalls.stalls() }

func (g *Gateway) askSweep() {
	select {
	case g.sweep <- struct{}{}:
	default:
	}
}

// sweeper ends the draining after each Release and brings idle sessions to the backend where they
// belong: one that waits for notifications, say, would otherwise never notice.
func (g *Gateway) sweeper(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-g.sweep:
		}
		if g.route.Load().draining {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-g.queue.Drained():
				g.drained()
			}
		}
		g.nudge(client.astray)
	}
}

func (g *Gateway) drained() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if next := *g.route.Load(); next.draining && g.mu.hold == nil {
		next.draining = false
		g.route.Store(&next)
	}
}
