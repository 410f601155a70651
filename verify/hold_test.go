package verify

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// A brake is what pauses a comparison.
type brake struct {
	mu   sync.Mutex
	held chan struct{} // nil while it may go on
	asks atomic.Int64
}

func (b *brake) ask() <-chan struct{} {
	b.asks.Add(1)
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held
}

func (b *brake) pull() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held == nil {
		b.held = make(chan struct{})
	}
}

func (b *brake) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.held)
	b.held = nil
}

const pauseTables = `
CREATE TABLE large (id int PRIMARY KEY, v text); INSERT INTO large SELECT i, 'v' || i FROM generate_series(1, 20000) i;
CREATE TABLE middle (id int PRIMARY KEY, v text); INSERT INTO middle SELECT i, 'v' || i FROM generate_series(1, 3000) i;
CREATE TABLE small (v text); INSERT INTO small VALUES ('a'); ANALYZE;`

// pausable returns a comparison that is paused when table large was compared, before any other was on
// both sides: no side has more rows than that in all the others.
func pausable(t *testing.T, src, dst *pgtest.Database) (Config, *brake) {
	t.Helper()
	b := new(brake)
	cfg := config(t, src, dst)
	cfg.Workers, cfg.Held = 1, b.ask
	var once sync.Once
	cfg.Progress = func(done, _ int64) {
		if done >= 40_000 {
			once.Do(b.pull)
		}
	}
	return cfg, b
}

func sessions(t *testing.T, db *pgtest.Database) int64 {
	t.Helper()
	return db.Int(t, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ficus/verify' AND datname = current_database()")
}

type outcome struct {
	r   *Report
	err error
}

func begin(t *testing.T, cfg Config) <-chan outcome {
	t.Helper()
	done := make(chan outcome, 1)
	go func() {
		r, err := Run(t.Context(), cfg)
		done <- outcome{r, err}
	}()
	return done
}

// A long pause lets snapshots and connections go; what was compared before counts, at the instant that
// it was compared at, and the rest is compared as it is afterwards. Catches: reading all anew, keeping a
// session open, taking what was left for equal, progress that begins anew.
func TestLongPause(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, pauseTables)
	cfg, b := pausable(t, src, dst)
	cfg.HoldSnapshots = time.Millisecond
	var least atomic.Int64 // rows told after the pause
	pause := cfg.Progress
	var woken atomic.Bool
	cfg.Progress = func(done, total int64) {
		if woken.Load() {
			least.CompareAndSwap(0, done)
		}
		pause(done, total)
	}
	done := begin(t, cfg)
	pgtest.Eventually(t, "snapshots let go", func() bool { return b.asks.Load() > 2 && sessions(t, src)+sessions(t, dst) == 0 })
	dst.Exec(t, "DELETE FROM large WHERE id > 10000; UPDATE middle SET v = 'late' WHERE id = 3000; INSERT INTO small VALUES ('a')")
	woken.Store(true)
	b.release()
	got := <-done
	if got.err != nil {
		t.Fatal(got.err)
	}
	for name, want := range map[string]string{
		"large": "0 0 0 []", "middle": "0 0 1 [changed id=3000 [v]]", "small": "0 1 0 [extra  []]",
	} {
		if s := summary(got.r.table(t, name)); s != want {
			t.Errorf("%s: got %s, want %s", name, s, want)
		}
	}
	if n := got.r.Instants; len(n) != 2 || n[0].Tables != 1 || n[1].Tables != 2 || !n[0].At.Before(n[1].At) {
		t.Errorf("instants %+v, want one of a table and a later one of two", n)
	}
	if least.Load() < 40_000 {
		t.Errorf("after the pause it told of %d rows, want those before it, too", least.Load())
	}
}

// A short pause keeps the snapshots, so that all is compared at one instant. Catches: letting go at once.
func TestShortPause(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, pauseTables)
	cfg, b := pausable(t, src, dst)
	done := begin(t, cfg)
	// Idle in their transactions, with the last query a read: both sides wait at the brake.
	waiting := func(db *pgtest.Database) bool {
		return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ficus/verify' AND datname = current_database()
			AND state = 'idle in transaction' AND query LIKE 'SELECT count(%'`) == 1
	}
	pgtest.Eventually(t, "a pause", func() bool {
		b.mu.Lock()
		held := b.held != nil
		b.mu.Unlock()
		return held && waiting(src) && waiting(dst)
	})
	dst.Exec(t, "UPDATE middle SET v = 'late' WHERE id = 3000")
	b.release()
	got := <-done
	if got.err != nil || got.r.Differences != 0 || len(got.r.Instants) != 0 {
		t.Errorf("%+v, %v, want one instant and no difference", got.r, got.err)
	}
}

// What was truncated on both sides between snapshot and reading looks equal, and must not be taken into
// the next round for it. Catches: keeping parts without another look at their files.
func TestPauseKeepsNoRewrittenTable(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, pauseTables)
	b := new(brake)
	cfg := config(t, src, dst)
	cfg.Workers, cfg.HoldSnapshots = 1, time.Millisecond
	var once sync.Once
	cfg.Held = func() <-chan struct{} {
		once.Do(func() {
			src.Exec(t, "TRUNCATE large")
			dst.Exec(t, "TRUNCATE large")
		})
		if b.asks.Load() >= 2 { // each side has read large
			b.pull()
		}
		return b.ask()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // it would sleep for ever
	defer cancel()
	if _, err := Run(ctx, cfg); !errors.Is(err, errShape) {
		t.Errorf("got %v, want %v", err, errShape)
	}
}
