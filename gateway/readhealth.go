package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// A meter measures how the reads of the read-only door fare on one backend.
type meter struct {
	took histogram
	mu   struct {
		sync.Mutex
		reads, failed int64
	}
}

func (m *meter) add(took time.Duration, failed bool) {
	m.took.add(took)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.reads++
	if failed {
		m.mu.failed++
	}
}

// take returns what was measured and begins anew.
func (m *meter) take() ReadMeter {
	now := m.read()
	m.took.reset()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.reads, m.mu.failed = 0, 0
	return now
}

func (m *meter) read() ReadMeter {
	st := m.took.stalls()
	m.mu.Lock()
	defer m.mu.Unlock()
	return ReadMeter{Reads: m.mu.reads, Failed: m.mu.failed, P50: st.P50, P95: m.took.at(0.95)}
}

// A ReadMeter is what the reads of the read-only door came to on one backend since the percentage changed.
type ReadMeter struct {
	Reads, Failed int64
	P50, P95      time.Duration
}

// share returns the share of reads that failed.
func (m ReadMeter) share() float64 {
	if m.Reads == 0 {
		return 0
	}
	return float64(m.Failed) / float64(m.Reads)
}

// ReadStats are the figures of the read-only door. Counters start at 0 with the process.
type ReadStats struct {
	Percent      int       // of the reads, on the backend that does not own
	Owner, Other ReadMeter // since the percentage changed
	Waited       int64     // reads that waited for a write of their user
	OnOwner      int64     // reads that went to the owner because of one
	SteppedBack  int64     // times that the percentage went back by itself
}

// ReadStats returns the present figures.
func (g *Gateway) ReadStats() ReadStats {
	r := g.route.Load()
	st := ReadStats{
		Percent: r.percent, Waited: g.reads.count.waited.Load(), OnOwner: g.reads.count.owner.Load(), SteppedBack: g.reads.count.back.Load(),
	}
	for b, m := range g.reads.meters {
		if b == r.owner {
			st.Owner = m.read()
		} else {
			st.Other = m.read()
		}
	}
	return st
}

// ReadFault says why reads have stepped back by themselves since the last call of Reads, nil for not.
func (g *Gateway) ReadFault() error {
	g.reads.mu.Lock()
	defer g.reads.mu.Unlock()
	return g.reads.mu.fault
}

// stepped notes a percentage that somebody asked for.
func (r *reads) stepped(from, to int) {
	for _, m := range r.meters {
		m.take()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.fault = nil
	r.mu.steps = slices.DeleteFunc(r.mu.steps, func(p int) bool { return p >= to })
	if from < to && !slices.Contains(r.mu.steps, from) {
		r.mu.steps = append(r.mu.steps, from)
	}
}

// serveReads does what the read-only door needs beside its sessions.
func (g *Gateway) serveReads(ctx context.Context) error {
	defer g.reads.pos.close(ctx)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.watchReads(ctx) })
	if g.cfg.Shadow.Share > 0 {
		for range g.cfg.Shadow.Workers {
			group.Go(func() error { return g.shadow.work(ctx) })
		}
	}
	return group.Wait()
}

// watchReads takes reads back when they fare worse than on the owner.
func (g *Gateway) watchReads(ctx context.Context) error {
	tick := time.NewTicker(g.cfg.Reads.Look)
	defer tick.Stop()
	var base ReadMeter // the owner's, from when it had enough reads
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		st := g.ReadStats()
		if st.Owner.Reads >= int64(g.cfg.Reads.MinReads) {
			base = st.Owner
		}
		if st.Percent == 0 {
			continue
		}
		err := g.cfg.Reads.judge(base, st.Other)
		if shadow := g.ShadowStats(); err == nil && g.cfg.Reads.MaxMismatches >= 0 && shadow.Compared >= int64(g.cfg.Reads.MinReads) && shadow.Rate() > g.cfg.Reads.MaxMismatches {
			err = fmt.Errorf("%d of %d shadow reads are answered otherwise there", shadow.Mismatched, shadow.Compared)
		}
		if err != nil {
			g.stepBack(ctx, st.Percent, err)
		}
	}
}

// judge says what is wrong with reads on the other backend, compared with the owner's.
func (c Reads) judge(owner, other ReadMeter) error {
	if other.Reads < int64(c.MinReads) {
		return nil
	}
	if more := other.share() - owner.share(); c.MaxErrors >= 0 && more > c.MaxErrors {
		return fmt.Errorf("%.1f %% of %d reads fail there, and %.1f %% on the owner", 100*other.share(), other.Reads, 100*owner.share())
	}
	// Below a millisecond a factor tells nothing.
	if limit := max(time.Duration(float64(owner.P95)*c.MaxSlower), time.Millisecond); c.MaxSlower >= 0 && owner.Reads > 0 && other.P95 > limit {
		return fmt.Errorf("the slowest of 20 reads takes %s there, and %s on the owner", other.P95, owner.P95)
	}
	return nil
}

// stepBack goes back to the percentage before from.
func (g *Gateway) stepBack(ctx context.Context, from int, why error) {
	g.mu.Lock()
	next := *g.route.Load()
	if next.percent != from { // somebody was faster
		g.mu.Unlock()
		return
	}
	g.reads.mu.Lock()
	next.percent = 0
	if n := len(g.reads.mu.steps); n > 0 {
		next.percent, g.reads.mu.steps = g.reads.mu.steps[n-1], g.reads.mu.steps[:n-1]
	}
	g.reads.mu.fault = hint.Wrap(fmt.Errorf("reads stepped back from %d to %d percent: %w", from, next.percent, why),
		"find out what ails the database that follows")
	g.reads.mu.Unlock()
	g.route.Store(&next)
	g.mu.Unlock()
	for _, m := range g.reads.meters {
		m.take()
	}
	g.reads.count.back.Add(1)
	g.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "reads stepped back",
		slog.Int("from", from), slog.Int("to", next.percent), slog.Any("err", why))
	g.askSweep()
}

// beginsReadLocked notes when a read-only session begins something.
func (s *session) beginsReadLocked() {
	if s.who.door == readOnly && s.mu.track.border() {
		s.mu.began, s.mu.first = time.Now(), true
	}
}

// first reports, once, that the present message begins a transaction on the read-only door.
func (s *session) first() bool {
	if s.rec.sh == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.mu.first
	s.mu.first = false
	return was
}

// endedLocked notes the end of a unit, for the meters and for those who read what they have written.
func (s *session) endedLocked(status byte) {
	if s.who.door == readWrite {
		if s.choice.mark != nil && status == statusIdle {
			s.choice.mark.Add(1)
		}
		return
	}
	if t := s.taped.Swap(nil); t != nil && status == statusIdle {
		s.g.shadow.submit(t)
	}
	if !s.mu.began.IsZero() {
		s.g.reads.meters[s.srv.backend].add(time.Since(s.mu.began), s.failed)
		s.mu.began = time.Time{}
	}
	s.failed = false
}
