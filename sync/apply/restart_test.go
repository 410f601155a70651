package apply

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestExactlyOnce ends the applier's session at the server, and the applier itself, at moments that
// nobody chooses, while plain inserts into a table without key would show every row lost or doubled.
// It fails when the progress is committed apart from the rows (before or after them).
func TestExactlyOnce(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (n int); CREATE TABLE sum (id int PRIMARY KEY, n bigint); CREATE TABLE big (n int)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	o.tx(t, "INSERT INTO sum VALUES (1, 0)")
	var ends []change.LSN
	for i := range 200 {
		o.tx(t, fmt.Sprintf("INSERT INTO t VALUES (%d); UPDATE sum SET n = n + %d", i, i))
		ends = append(ends, lsnNow(t, o.Database))
	}
	o.tx(t, "INSERT INTO big SELECT generate_series(1, 500)")
	large := o.pull(t)

	rng := rand.New(rand.NewPCG(1, 2))
	moment := func(most time.Duration) {
		timer := time.NewTimer(time.Duration(rng.Int64N(int64(most))))
		defer timer.Stop()
		<-timer.C
	}
	end := func(a *running, terminate bool) {
		t.Helper()
		if terminate {
			target.Exec(t, terminateSQL)
		}
		if err := a.stop(); err != nil {
			t.Fatal(err)
		}
	}
	restarts := 0
	for at := 0; at < len(ends); at += 1 + rng.IntN(25) {
		a := o.start(t, target, limit(1+rng.IntN(9)))
		a.wait(t, ends[at])
		moment(5 * time.Millisecond)
		end(a, restarts%2 == 0)
		restarts++
	}
	for range 5 { // in the middle of the large one
		a := o.start(t, target, limit(5))
		pgtest.Eventually(t, "the large transaction begins", func() bool { s := a.gate.read(); return s.writing > ends[len(ends)-1] || s.applied == large })
		moment(5 * time.Millisecond)
		end(a, restarts%2 == 0)
		restarts++
	}
	o.start(t, target).wait(t, large)
	o.equal(t, target)
	t.Logf("%d restarts", restarts)
}

// terminateSQL ends the applier's session at the server.
const terminateSQL = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ficus/apply' AND datname = current_database()`

// TestReconnect: a lost destination is no reason to stop.
func TestReconnect(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (n int)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	lost := make(chan error, 100)
	a := o.start(t, target, func(c *Config) { c.Events.Disconnected = func(err error) { lost <- err } })
	for i := range 5 {
		o.tx(t, fmt.Sprintf("INSERT INTO t VALUES (%d)", i))
		end := o.pull(t)
		target.Exec(t, terminateSQL)
		a.wait(t, end)
	}
	if len(lost) == 0 {
		t.Error("no disconnection was told")
	}
	o.equal(t, target)
}

// TestOrphan: an earlier session of ours that still commits is waited for, not repeated.
// It fails when the progress row is not locked and compared before the rows.
func TestOrphan(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (n int)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	a := o.start(t, target)
	o.tx(t, "INSERT INTO t VALUES (1)")
	a.wait(t, o.pull(t))
	_ = a.stop()
	o.tx(t, "INSERT INTO t VALUES (2)")
	end := o.pull(t)

	orphan := target.Conn(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := orphan.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec("BEGIN; INSERT INTO t VALUES (2); UPDATE ficus.progress SET lsn = '" + end.String() + "'")
	a = o.start(t, target)
	pgtest.Eventually(t, "the applier waits for the orphan", func() bool {
		return target.Int(t, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ficus/apply' AND datname = current_database() AND wait_event_type = 'Lock'") == 1
	})
	exec("COMMIT")
	a.wait(t, end)
	o.equal(t, target)
}

// TestLargeTransaction: it arrives whole, in bounded memory, also where a part is refused at first.
// It fails when a part commits by itself.
func TestLargeTransaction(t *testing.T) {
	t.Parallel()
	const rows = 300_000
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, a text)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	o.tx(t, fmt.Sprintf("INSERT INTO t SELECT i, i, repeat('x', 100) FROM generate_series(1, %d) i", rows))
	first := o.pull(t)
	o.tx(t, "INSERT INTO t VALUES (0, 0, 'small')")
	o.tx(t, "UPDATE t SET u = -1 WHERE id = 1; UPDATE t SET u = 1 WHERE id = 2; UPDATE t SET u = 2 WHERE id = 1; UPDATE t SET a = 'y' WHERE id <= 30000; DELETE FROM t WHERE id > 299000")

	var peak uint64
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	watch := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-watch:
				return
			case <-tick.C:
				runtime.ReadMemStats(&now)
				peak = max(peak, now.HeapInuse)
			}
		}
	})
	a := o.start(t, target, func(c *Config) { c.MaxBytes = 1 << 20 })
	pgtest.Eventually(t, "half of it is written", func() bool { return target.Int(t, "SELECT pg_relation_size('t')") > rows*60 })
	if n := target.Int(t, "SELECT count(*) FROM t"); n != 0 && n != rows {
		t.Errorf("%d rows of the transaction are seen", n)
	}
	a.wait(t, first)
	close(watch)
	watcher.Wait()
	if grown := int64(peak) - int64(before.HeapInuse); grown > 64<<20 {
		t.Errorf("heap grew by %d MiB", grown>>20)
	}
	a.wait(t, o.pull(t))
	if s := a.Stats(); s.Transactions != 3 || s.Replayed == 0 {
		t.Errorf("got %+v, want three transactions, one of them replayed", s)
	}
	o.equal(t, target)
}

// TestEventStore runs over the real store, through a restart in the middle, where relations come
// from its pins.
func TestEventStore(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, a text)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	o.spill = 10_000
	store, err := eventstore.Open(eventstore.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	stream, err := store.Stream("test")
	if err != nil {
		t.Fatal(err)
	}
	run := func(end change.LSN) {
		t.Helper()
		a, err := New(Config{DSN: target.DSN, Link: "test", Mappings: o.mappings, Stream: stream, Start: o.from, Touch: true})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		(&running{Applier: a, done: done}).wait(t, end)
		cancel(errTestOver)
		if err := <-done; !errors.Is(err, errTestOver) {
			t.Fatal(err)
		}
	}
	o.tx(t, "INSERT INTO t VALUES (1, 'a')")
	o.tx(t, "INSERT INTO t SELECT i, repeat('b', 100) FROM generate_series(2, 1000) i")
	o.tx(t, "UPDATE t SET a = 'c' WHERE id = 1")
	run(o.store(t, stream))
	o.equal(t, target)
	o.tx(t, "DELETE FROM t WHERE id % 2 = 0; UPDATE t SET id = 2 WHERE id = 1")
	run(o.store(t, stream))
	o.equal(t, target)

	n := 0
	err = stream.Touches().Scan(0, func(table string, key []byte) error {
		n++
		if columns, err := TouchedKey(key); err != nil || len(columns) != 1 || table != `"public"."t"` {
			return fmt.Errorf("table %s, key %q: %w", table, columns, err)
		}
		return nil
	})
	if err != nil || n != 1000 {
		t.Errorf("%d rows touched, want 1000: %v", n, err)
	}
}

// store pulls into the event store, as sync/source would: relations are announced once only.
func (o *origin) store(t *testing.T, stream *eventstore.Stream) change.LSN {
	t.Helper()
	known := len(o.log.chunks)
	end := o.pull(t)
	b := stream.NewBatch()
	for _, p := range o.log.pins {
		b.Pin("r/"+strings.ToUpper(fmt.Sprintf("%x", p.value[1:5])), p.at, p.value)
	}
	o.log.pins = nil
	for i, c := range o.log.chunks[known:] {
		if !c.Spilled {
			b.Append(c.End, c.Data)
			continue
		}
		b.Spill(7, c.Data)
		if rest := o.log.chunks[known+i+1:]; len(rest) == 0 || rest[0].End != c.End {
			b.CommitSpilled(7, c.End)
		}
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	return end
}
