package source_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/sync/source"
)

// reports waits until the server has been told something a few times over.
func reports(t *testing.T, r *source.Reader) {
	t.Helper()
	for range 3 {
		before := r.Status().LastMessage // the server answers every report
		pgtest.Eventually(t, "a report", func() bool { return r.Status().LastMessage.After(before) })
	}
}

func TestAckApplied(t *testing.T) {
	t.Parallel()
	g := newRig(t, pgtest.DB(t), "CREATE TABLE public.t (id int PRIMARY KEY)")
	var applied atomic.Uint64
	g.cfg.Ack = source.AckApplied
	g.cfg.Applied = func() change.LSN { return change.LSN(applied.Load()) }
	r, stop := g.start(t)
	g.db.Exec(t, "INSERT INTO t VALUES (1)")
	g.db.Exec(t, "INSERT INTO t VALUES (2)")
	g.received(t, r)
	pgtest.Eventually(t, "all durable", func() bool { return g.cfg.Stream.Durable() == g.cfg.Stream.Head() })
	reports(t, r)
	ends := transactions(t, g.cfg.Stream, 0)
	if got := g.confirmed(t); got >= ends[0].end {
		t.Errorf("confirmed %s with nothing applied, though a transaction ends at %s", got, ends[0].end)
	}

	applied.Store(uint64(ends[0].end))
	pgtest.Eventually(t, "the first to be confirmed", func() bool { return g.confirmed(t) >= ends[0].end })
	reports(t, r)
	equal(t, "confirmed", g.confirmed(t), ends[0].end)

	applied.Store(uint64(ends[1].end))
	upTo := g.now(t)
	pgtest.Eventually(t, "the idle position to be confirmed", func() bool { return g.confirmed(t) >= upTo })

	// The store is lost, the destination is not: nothing is missing.
	if err := stop(); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	var err error
	if g.cfg.Stream, err = g.store.Stream("another"); err != nil {
		t.Fatal(err)
	}
	applied.Store(uint64(g.confirmed(t)))
	g.db.Exec(t, "INSERT INTO t VALUES (3)")
	r, _ = g.start(t)
	g.received(t, r)
	equal(t, "stream", rows(transactions(t, g.cfg.Stream, 0)), [][]string{{"insert t(3)"}})
}

// A database in which nothing happens must not keep the WAL of its neighbours.
func TestIdleDatabaseLetsWALGo(t *testing.T) {
	t.Parallel()
	g := newRig(t, pgtest.DB(t), "CREATE TABLE public.t (id int PRIMARY KEY)")
	g.db.Exec(t, "INSERT INTO t VALUES (1)")
	neighbour := pgtest.DB(t)
	for range 2 { // the second time with a slot that is beyond the head of the store
		r, stop := g.start(t)
		neighbour.Exec(t, "CREATE TABLE IF NOT EXISTS n (v text); INSERT INTO n SELECT repeat('x', 100) FROM generate_series(1, 1000)")
		g.db.Exec(t, "CREATE TABLE IF NOT EXISTS unpublished (id int); INSERT INTO unpublished VALUES (1)")
		upTo := g.now(t)
		pgtest.Eventually(t, "confirmation of the neighbour's WAL", func() bool { return g.confirmed(t) >= upTo })
		if s := r.Status(); s.Received < upTo || s.Acked < upTo {
			t.Errorf("status %+v, want positions from %s on", s, upTo)
		}
		equal(t, "stream", rows(transactions(t, g.cfg.Stream, 0)), [][]string{{"insert t(1)"}})
		if err := stop(); !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		if err := g.store.Close(); err != nil {
			t.Fatal(err)
		}
		g.open(t)
	}
}

// The server cuts connections that do not answer. Ours must, even while a write takes long.
func TestReportsWhileWritingIsSlow(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	db.Exec(t, "ALTER DATABASE "+db.Name+" SET wal_sender_timeout = '1s'")
	g := newRig(t, db, "CREATE TABLE public.t (id int PRIMARY KEY)")
	release, blocked := make(chan struct{}), make(chan struct{}, 100)
	g.cfg.Events.Stored = func(change.LSN, int) {
		blocked <- struct{}{}
		<-release
	}
	g.cfg.Events.Disconnected = func(err error) {
		if !errors.Is(err, errStopped) {
			t.Errorf("disconnected: %v", err)
		}
	}
	r, stop := g.start(t)
	walsender := g.walsender(t)
	db.Exec(t, "INSERT INTO t VALUES (1)")
	<-blocked
	start := time.Now()
	pgtest.Eventually(t, "twice the server's timeout", func() bool { return time.Since(start) > 2*time.Second })
	close(release)
	g.received(t, r)
	equal(t, "walsender", g.walsender(t), walsender)
	if err := stop(); !errors.Is(err, errStopped) {
		t.Error(err)
	}
}
