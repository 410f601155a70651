package verify

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// loaded starts writers on the source and a mirror that follows, until stop.
func loaded(t *testing.T, src, dst *pgtest.Database, writers int) (m *mirror, stop func()) {
	t.Helper()
	m = newMirror(t, src, dst)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	errs := make(chan error, writers+1)
	for i := range writers {
		conn := src.Conn(t)
		all.Go(func() { errs <- load(ctx, conn, uint64(i)) })
	}
	all.Go(func() { errs <- m.follow(ctx) })
	return m, sync.OnceFunc(func() {
		cancel()
		all.Wait()
		for range writers + 1 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
}

// long is 30 minutes for whoever has the time, else what is given.
func long(short time.Duration) time.Duration {
	if os.Getenv("FICUS_TEST_LONG") != "" {
		return 30 * time.Minute
	}
	return short
}

// While three sessions write and a mirror follows, pass after pass finds nothing; then every kind of
// wrong row is found, and only these. Catches: telling what was seen at first sight, and reading
// the source's side alone, which it waits for in vain.
func TestLive(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, loadTables+`CREATE TABLE keyless (v int); INSERT INTO keyless SELECT generate_series(1, 100);
CREATE TABLE c (x text, y int, v text, PRIMARY KEY (y, x)); INSERT INTO c SELECT 'x' || i % 7, i, 'v' FROM generate_series(1, 700) i;`)
	m, stop := loaded(t, src, dst, 3)
	defer stop()

	passes, alarms := make(chan Pass), make(chan *Report, 100)
	cfg := LiveConfig{
		Config: config(t, src, dst), Share: 0.5, PageRows: 300, Rest: time.Millisecond,
		Applied: func() change.LSN { return 1 << 62 }, // it says that it is there when it is not: the proof at one instant settles it
		Passed:  func(p Pass) { passes <- p }, Differ: func(r *Report) { alarms <- r },
	}
	cfg.Follower = m
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Live(ctx, cfg) }()
	suspects, end := int64(0), time.Now().Add(long(0))
	for n := 0; n < 2 || time.Now().Before(end); n++ {
		p := <-passes
		suspects += p.Suspects
		if p.Confirmed != 0 || len(alarms) != 0 || p.Rows < 10_000 || len(p.Uncovered) != 0 {
			t.Fatalf("%+v, %d alarms", p, len(alarms))
		}
	}
	t.Logf("%d suspects", suspects)

	dst.Exec(t, `UPDATE b SET note = 'stranger' WHERE id = (SELECT max(id) FROM b); DELETE FROM c WHERE y = 700; INSERT INTO c VALUES ('z', 701, ''); UPDATE c SET v = 'w' WHERE y = 1; UPDATE keyless SET v = 0 WHERE v = 1`)
	want := []string{"c missing", "c extra", "c changed", "keyless missing", "keyless extra"}
	got := map[string]bool{}
	pgtest.Eventually(t, "all alarms", func() bool {
		select {
		case <-passes:
		case r := <-alarms:
			for _, tr := range r.Tables {
				for _, s := range tr.Samples {
					got[tr.Table.Name+" "+string(s.Kind)] = true
				}
			}
		case <-time.After(10 * time.Second):
		}
		return !slices.ContainsFunc(want, func(w string) bool { return !got[w] })
	})
	delete(got, "b changed") // it may be overwritten before it is looked at
	if len(got) != len(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	cancel()
	for {
		select {
		case <-passes:
			continue
		case <-alarms:
			continue
		case err := <-done:
			if ctx.Err() == nil {
				t.Error(err)
			}
		}
		break
	}
}
