package apply

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ficus-migrate/ficus/change"
)

// pollIdle is how often a stop looks whether the source has been received far enough, which nothing
// announces.
const pollIdle = 2 * time.Millisecond

// keptSignals is how many nonces are remembered besides the newest, which is in the database.
const keptSignals = 64

// A gate knows where the destination stands, and holds the writer where somebody asked it to stop.
type gate struct {
	// idleAt returns a position that the destination stands at although no transaction ends there,
	// because everything up to it was received and all of that is applied; 0 for none.
	idleAt func(applied change.LSN) change.LSN

	mu struct {
		sync.Mutex
		state
		holds   []*hold
		changed chan struct{} // closed and replaced when anything above changes
	}
}

// state is where the destination stands.
type state struct {
	applied  change.LSN // end of the last committed transaction; 0 before the first session
	writing  change.LSN // end of all that is being written and will be committed next; 0 for nothing
	standing change.LSN // end of the next transaction, which waits for a hold to go; 0 for none
	signals  []string
	stats    Stats
	ended    error // why Run returned; nil before and while it runs
}

// A hold keeps the writer from committing anything that ends after at; 0 stops it where it is.
type hold struct{ at change.LSN }

func newGate(idleAt func(change.LSN) change.LSN) *gate {
	g := &gate{idleAt: idleAt}
	g.mu.changed = make(chan struct{})
	return g
}

// update changes the state and wakes all who wait.
func (g *gate) update(f func(*state)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f(&g.mu.state)
	g.wakeLocked()
}

func (g *gate) wakeLocked() {
	close(g.mu.changed)
	g.mu.changed = make(chan struct{})
}

func (g *gate) read() state {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.mu.state
	s.signals = slices.Clone(s.signals)
	return s
}

// limitLocked returns the position that the writer must not pass, and whether there is one. A stop
// at a position takes over from stops without one.
func (g *gate) limitLocked() (limit change.LSN, ok bool) {
	for _, h := range g.mu.holds {
		if h.at != 0 && (limit == 0 || h.at < limit) {
			limit = h.at
		}
	}
	return limit, len(g.mu.holds) > 0
}

// enter returns how many of the transactions, given by their ends, may be written now, and marks them
// as being written. open says that they are the next part of one whose earlier parts were written: it is not stopped
// where it is. Whoever waits for open transactions to end, as a slot on the same server does, would wait for ever.
func (g *gate) enter(ends []txn, open bool) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.enterLocked(ends, open)
}

func (g *gate) enterLocked(ends []txn, open bool) int {
	n := len(ends)
	if limit, ok := g.limitLocked(); ok && (!open || limit != 0) {
		n, _ = slices.BinarySearchFunc(ends, limit+1, func(t txn, at change.LSN) int { return cmp.Compare(t.end, at) })
	}
	if n > 0 {
		g.mu.standing, g.mu.writing = 0, ends[n-1].end
		g.wakeLocked()
	}
	return n
}

// await enters as soon as at least one of the transactions may be written. What was entered before is
// committed when it is called, or part of a transaction whose last part waits now.
func (g *gate) await(ctx context.Context, ends []txn, open bool) (int, error) {
	for {
		g.mu.Lock()
		n := g.enterLocked(ends, open)
		if n == 0 && g.mu.standing != ends[0].end {
			g.mu.standing, g.mu.writing = ends[0].end, 0
			g.wakeLocked()
		}
		changed := g.mu.changed
		g.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-changed:
		}
	}
}

// wait blocks until done says so, trying again at every change and, when poll is set, in between.
func (g *gate) wait(ctx context.Context, poll bool, done func(state) (bool, error)) error {
	var tick <-chan time.Time
	if poll {
		t := time.NewTicker(pollIdle)
		defer t.Stop()
		tick = t.C
	}
	for {
		g.mu.Lock()
		s, changed := g.mu.state, g.mu.changed
		s.signals = slices.Clone(s.signals)
		g.mu.Unlock()
		if ok, err := done(s); ok || err != nil {
			return err
		}
		if s.ended != nil {
			return fmt.Errorf("applier has stopped: %w", s.ended)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		case <-tick:
		}
	}
}

// stopAt adds a hold and waits until the destination stands at it.
func (g *gate) stopAt(ctx context.Context, at change.LSN) (release func(), err error) {
	h := &hold{at}
	g.mu.Lock()
	g.mu.holds = append(g.mu.holds, h)
	g.wakeLocked()
	g.mu.Unlock()
	release = func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if i := slices.Index(g.mu.holds, h); i >= 0 {
			g.mu.holds = slices.Delete(g.mu.holds, i, i+1)
			g.wakeLocked()
		}
	}

	err = g.wait(ctx, true, func(s state) (bool, error) {
		switch {
		case at == 0:
			return s.writing == 0, nil
		case s.applied > at:
			return false, fmt.Errorf("stop at %s: %w: it stands at %s", at, ErrPassed, s.applied)
		case s.writing != 0: // on its way before we came, or up to at
			return false, nil
		}
		return s.applied == at || s.standing > at || g.idleAt(s.applied) >= at, nil
	})
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}
