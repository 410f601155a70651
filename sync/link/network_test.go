package link

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/faultpg"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/sync/source"
)

// A fault bends the connections of one side, once.
type fault struct {
	name string
	bend func(t *testing.T, r *rand.Rand, p *faultpg.Proxy, moves faultpg.Direction)
}

func faults() []fault {
	return []fault{
		{"cut", func(_ *testing.T, _ *rand.Rand, p *faultpg.Proxy, _ faultpg.Direction) { p.Cut() }},
		{"reset", func(_ *testing.T, _ *rand.Rand, p *faultpg.Proxy, _ faultpg.Direction) { p.Reset() }},
		{"reset in the middle of a message", func(t *testing.T, r *rand.Rand, p *faultpg.Proxy, moves faultpg.Direction) {
			t.Helper()
			resets := p.Resets()
			p.ResetAfter(moves, 1+r.Int64N(20_000))
			pgtest.Eventually(t, "the reset", func() bool { return p.Resets() > resets })
		}},
		{"stalled", func(_ *testing.T, _ *rand.Rand, p *faultpg.Proxy, _ faultpg.Direction) { p.Freeze() }},
		{"slow", func(_ *testing.T, r *rand.Rand, p *faultpg.Proxy, moves faultpg.Direction) {
			p.Slow(moves, 50_000)
			p.Delay(20 * time.Millisecond)
			pause(r, time.Second)
			p.Flow()
		}},
	}
}

// TestNetworkByPhase bends the connections to either side in every way while a link copies, goes on
// with an interrupted copy, catches up and follows. It must go on by itself, and in the end nothing
// may be missing and nothing doubled. A stalled connection is one that swallows all it is given; no
// server and no client is told.
//
// The short form takes a sample in which there is every fault, every phase and either side. The test
// fails, by "stalled", when snapshot's workers have no pulse (the copy never ends), when the sessions
// of an earlier copy are not ended (it waits for their locks), and when the applier's are not; by
// "cut" in a copy, when the error is not one to try again.
func TestNetworkByPhase(t *testing.T) {
	t.Parallel()
	phases := []struct {
		name string
		run  func(t *testing.T, f *faulty, bend func())
	}{{"copy", bendCopy}, {"resumed copy", bendResumedCopy}, {"catch-up", bendCatchUp}, {"follow", bendFollow}}
	for nf, c := range faults() {
		for np, phase := range phases {
			for ns, side := range []string{"source", "target"} {
				if !long() && (np != nf%len(phases) || ns != nf%2) && (c.name != "stalled" || phase.name != "copy" || side != "target") {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%s", c.name, phase.name, side), func(t *testing.T) {
					t.Parallel()
					f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), copied, copiedRows)
					f.answer = time.Second
					f.ack = []source.AckPolicy{source.AckStored, source.AckApplied}[np%2]
					// A server that is not told that its client is gone keeps the slot until then.
					f.from.Exec(t, `DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET wal_sender_timeout = ''1s''', current_database()); END$$`)
					proxy, moves := f.source, faultpg.ToClient
					if side == "target" {
						proxy, moves = f.target, faultpg.ToServer
					}
					r := rand.New(rand.NewPCG(uint64(nf), uint64(np)))
					phase.run(t, f, func() { c.bend(t, r, proxy, moves) })
				})
			}
		}
	}
}

func bendCopy(t *testing.T, f *faulty, bend func()) {
	t.Helper()
	f.open(t)
	stop := f.churn(t)
	loaded := f.loadThrough(t)
	f.awaitChunks(t, nil, 20)
	bend()
	f.finish(t, loaded, stop)
}

func bendResumedCopy(t *testing.T, f *faulty, bend func()) {
	t.Helper()
	stop := f.churn(t)
	f.interrupt(t, 20)
	f.open(t)
	before := f.chunks(t)
	loaded := f.loadThrough(t)
	f.awaitChunks(t, before, 5)
	bend()
	f.finish(t, loaded, stop)
}

// finish waits for the copy, follows and compares.
func (f *faulty) finish(t *testing.T, loaded <-chan error, stop func()) {
	t.Helper()
	select {
	case err := <-loaded:
		must(t, err)
	case <-time.After(pgtest.Patience):
		t.Fatal("the copy does not end")
	}
	stopLink := run(t, f.link)
	stop()
	f.equal(t)
	stopLink()
}

// loadThrough copies as the workflow does: what may pass by itself is tried again.
func (f *faulty) loadThrough(t *testing.T) <-chan error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended, done := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(ended)
		for {
			_, err := f.link.Load(ctx, onePage)
			again := pg.Retryable(err) || errors.Is(err, snapshot.ErrSnapshotGone) || errors.Is(err, snapshot.ErrMoved)
			if !again || backoff.Sleep(ctx, 100*time.Millisecond) != nil {
				done <- err
				return
			}
			t.Logf("copy: %v", err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return done
}

func bendCatchUp(t *testing.T, f *faulty, bend func()) {
	t.Helper()
	f.load(t)
	stop := f.churn(t)
	pgtest.Eventually(t, "a backlog", func() bool {
		lag, err := f.link.Lag(t.Context())
		must(t, err)
		return lag.Bytes > 1<<20
	})
	stopLink := run(t, f.link)
	bend()
	stop()
	f.equal(t)
	stopLink()
}

func bendFollow(t *testing.T, f *faulty, bend func()) {
	t.Helper()
	f.load(t)
	stopLink := run(t, f.link)
	stop := f.churn(t)
	f.settle(t)
	bend()
	stop()
	f.equal(t)
	stopLink()
}
