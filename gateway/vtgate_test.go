package gateway

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// This file holds the known bugs of vtgate's buffer as cases: what went wrong there must not here.

// says is an answer of the databases that a test changes.
type says struct {
	sync.Mutex
	o     Ownership
	asked int
}

func (s *says) set(o Ownership) {
	s.Lock()
	defer s.Unlock()
	s.o = o
}

func (s *says) ask(context.Context) (Ownership, error) {
	s.Lock()
	defer s.Unlock()
	s.asked++
	return s.o, nil
}

func (s *says) times() int {
	s.Lock()
	defer s.Unlock()
	return s.asked
}

// vitess 17629: a lossy channel lost the end of the failover, and some gateways waited until the time
// was over. Here the databases are asked once the orchestrator is gone; while it lives its word counts.
// Breaks that it catches: Lost without effect, a closed gate taken for an answer.
func TestVtgateLostEnd(t *testing.T) {
	t.Parallel()
	for what, tc := range map[string]struct {
		last Ownership
		want string
	}{
		"it was undone": {Ownership{Owner: source, Epoch: 1, Open: true}, "source"},
		"it was done":   {Ownership{Owner: target, Epoch: 2, Open: true}, "target"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			db := &says{o: Ownership{Owner: source, Epoch: 1, Open: true}}
			b := start(t, func(c *Config) { c.Ask, c.AskEvery = db.ask, 10*time.Millisecond })
			conn := b.client(t, b.Addr(), "")
			if err := b.Hold(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
			got := make(chan string, 1)
			go func() { got <- one[string](t, conn, "SELECT name FROM here") }()
			again := func(why string) {
				t.Helper()
				n := db.times()
				pgtest.Eventually(t, "asked again", func() bool { return db.times() >= n+3 })
				b.mu.Lock()
				defer b.mu.Unlock()
				if b.mu.hold == nil { // the client may take its time to notice
					t.Fatalf("the client went on %s", why)
				}
			}
			pgtest.Eventually(t, "the client is held", func() bool { return b.Stats().Held == 1 })
			again("while the orchestrator was alive")
			db.set(Ownership{Owner: source, Epoch: 1})
			b.Lost(1) // of an older hold
			b.Lost(2)
			again("while no gate was open")
			db.set(tc.last)
			if g := <-got; g != tc.want {
				t.Errorf("got %s, want %s", g, tc.want)
			}
		})
	}
}

// A gateway that was told nothing at all follows the databases.
// Break that it catches: the epoch not compared.
func TestVtgateNeverTold(t *testing.T) {
	t.Parallel()
	db := &says{o: Ownership{Owner: source, Epoch: 1, Open: true}}
	b := start(t, func(c *Config) { c.Ask, c.AskEvery = db.ask, 10*time.Millisecond })
	conn := b.client(t, b.Addr(), "")
	_ = one[string](t, conn, "SELECT name FROM here")
	db.set(Ownership{Owner: target, Epoch: 2, Open: true})
	pgtest.Eventually(t, "it found the owner", func() bool { return one[string](t, conn, "SELECT name FROM here") == "target" })
	db.set(Ownership{Owner: source, Epoch: 1, Open: true}) // an answer that is out of date
	n := db.times()
	pgtest.Eventually(t, "asked again", func() bool { return db.times() >= n+3 })
	if got := one[string](t, conn, "SELECT name FROM here"); got != "target" {
		t.Errorf("an old answer led back to the %s", got)
	}
}

// A gateway that was left to guess the end, and guessed wrong because the decision came late, follows the
// decision: the databases have the last word about an epoch.
func TestVtgateLateDecision(t *testing.T) {
	t.Parallel()
	db := &says{o: Ownership{Owner: source, Epoch: 1, Open: true}}
	b := start(t, func(c *Config) { c.Ask, c.AskEvery = db.ask, 10*time.Millisecond })
	conn := b.client(t, b.Addr(), "")
	if err := b.Hold(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	b.Lost(2)
	if got := one[string](t, conn, "SELECT name FROM here"); got != "source" {
		t.Errorf("got %s, want source", got)
	}
	db.set(Ownership{Owner: target, Epoch: 2, Open: true})
	pgtest.Eventually(t, "it follows", func() bool { return one[string](t, conn, "SELECT name FROM here") == "target" })
}

// vitess 15707, 15701: a late error opened a second window that no event ended. Here a window opens by
// a new epoch only, and never by an error.
func TestVtgateLateSecondWindow(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	conn := b.client(t, b.Addr(), "")
	b.shift(t, target, 2)
	if err := b.Hold(t.Context(), 2); !errors.Is(err, ErrStale) {
		t.Errorf("a hold of the epoch that is over: got %v, want ErrStale", err)
	}
	_, err := conn.Exec(t.Context(), "DO $$BEGIN RAISE 'not the owner' USING errcode = '25006'; END$$")
	wantCode(t, err, "25006")
	if got := one[string](t, conn, "SELECT name FROM here"); got != "target" || b.Stats().Held != 0 {
		t.Errorf("after a refused write: on %s, %d held", got, b.Stats().Held)
	}
}

// vitess 20281: starting to buffer and hearing of the end waited for one another for ever. Here holds,
// releases, reads, figures and clients run all at once, and everything ends.
func TestVtgateDeadlock(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var epoch atomic.Int64
	epoch.Store(1)
	var wg sync.WaitGroup
	for i := range 4 {
		conn := b.client(t, b.Addr(), "")
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := conn.Exec(t.Context(), "SELECT 1"); err != nil { //nolint:contextcheck // the last one is to be answered, too
					t.Error(err)
					return
				}
			}
		})
		wg.Go(func() {
			for ctx.Err() == nil {
				e := epoch.Add(1)
				_ = b.Hold(ctx, e) // another one may overtake it
				_ = b.Reads(ctx, i)
				_, _ = b.Stats(), b.Stalls()
				_ = b.Release(t.Context(), []Backend{source, target}[e%2], e) //nolint:contextcheck // the last hold must end, too
			}
		})
	}
	wg.Wait()
	if err := b.Release(t.Context(), source, epoch.Add(1)); err != nil {
		t.Error(err)
	}
	pgtest.Eventually(t, "nobody is held", func() bool { return b.Stats().Held == 0 })
}

// vitess 19954: buffering began again after the shutdown, and its clients waited for nothing.
func TestVtgateHoldAfterShutdown(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	conn := b.client(t, b.Addr(), "")
	_ = b.stop()
	if err := b.Hold(t.Context(), 2); err != nil {
		t.Errorf("hold after the end: %v", err)
	}
	if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a query after the end: got %v, want an error at once", err)
	}
}

// vitess: slots of requests that left the queue early were never given back.
func TestVtgateSlotLeak(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) { c.MaxHeld, c.HoldTimeout = 1, 50*time.Millisecond })
	conn := b.client(t, b.Addr(), "")
	for epoch := int64(2); epoch < 8; epoch++ {
		if err := b.Hold(t.Context(), epoch); err != nil {
			t.Fatal(err)
		}
		if epoch%2 == 0 {
			_, err := conn.Exec(t.Context(), "SELECT 1")
			wantCode(t, err, "40001") // expired, not 53300: the slot was free
		} else {
			failed := make(chan error, 1)
			go func() {
				_, err := conn.Exec(t.Context(), "SELECT 1")
				failed <- err
			}()
			pgtest.Eventually(t, "held or expired", func() bool { return b.Stats().Held == 1 || len(failed) == 1 })
			_ = conn.PgConn().CancelRequest(t.Context())
			if code := pg.Code(<-failed); code != "57014" && code != "40001" {
				t.Errorf("got %s", code)
			}
		}
		if n := b.Stats().Held; n != 0 {
			t.Errorf("%d places are taken", n)
		}
		if err := b.Release(t.Context(), source, epoch); err != nil {
			t.Fatal(err)
		}
		_ = one[string](t, conn, "SELECT name FROM here")
	}
}

// vitess 9356: buffering needed traffic to start. Here the first client after a Hold waits.
func TestVtgateNoTraffic(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	if err := b.Hold(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() { got <- one[string](t, b.client(t, b.Addr(), ""), "SELECT name FROM here") }()
	pgtest.Eventually(t, "the first one is held", func() bool { return b.Stats().Held == 1 })
	if err := b.Release(t.Context(), target, 2); err != nil {
		t.Fatal(err)
	}
	if g := <-got; g != "target" {
		t.Errorf("got %s, want target", g)
	}
}

// A dry run makes nobody wait and counts who would have; transactions in flight are still waited for.
func TestDryRunOnlyCounts(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) { c.DryRun = true })
	conn, reader := b.client(t, b.Addr(), ""), b.client(t, b.ReadAddr(), "")
	_ = one[string](t, conn, "SELECT name FROM here")
	if err := b.Hold(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_ = one[string](t, conn, "SELECT name FROM here")
		_ = one[string](t, reader, "SELECT name FROM here")
	}
	counted := b.Stats().WouldHold
	if err := b.Release(t.Context(), target, 2); err != nil {
		t.Fatal(err)
	}
	if got := one[string](t, conn, "SELECT name FROM here"); got != "target" {
		t.Errorf("got %s, want target", got)
	}
	if st := b.Stats(); counted < 3 || st.WouldHold != counted || st.Refused != 0 {
		t.Errorf("counted %d, then %+v", counted, st)
	}
}
