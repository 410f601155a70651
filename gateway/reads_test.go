package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// progress stands in for a link: it says how far the other backend has come.
type progress struct{ at atomic.Uint64 }

func (p *progress) passed(Backend) change.LSN { return change.LSN(p.at.Load()) }

const everything = 1 << 62

// TestReadsByTransaction: transactions of one session are led by themselves, in about the share that was asked
// for, with the session's settings and statements on both sides and without a connection each time.
// Breaks that it catches: the number drawn once per session; a server session not kept; one that is kept
// although the client has changed its settings.
func TestReadsByTransaction(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) { c.Reads = Reads{By: ByTransaction, MaxSlower: -1} })
	if err := b.Reads(t.Context(), 50); err != nil {
		t.Fatal(err)
	}
	conn := b.client(t, b.ReadAddr(), "")
	const n = 60
	seen, pids := map[string]int{}, map[int]bool{}
	for i := range n {
		if i == n/2 {
			run(t, conn, "SET search_path = pg_catalog, public")
		}
		var name, path string
		var pid int
		if err := conn.QueryRow(t.Context(), "SELECT name, current_setting('search_path'), pg_backend_pid() FROM public.here").Scan(&name, &path, &pid); err != nil {
			t.Fatalf("read %d: %v", i, err)
		}
		if want := i >= n/2; strings.HasPrefix(path, "pg_catalog") != want {
			t.Fatalf("read %d, on the %s: search_path %q", i, name, path)
		}
		seen[name]++
		pids[pid] = true
	}
	if seen["source"] < n/6 || seen["target"] < n/6 {
		t.Errorf("of %d reads at 50 percent: %v", n, seen)
	}
	if len(pids) > 5 { // two, one more for the statement, two for the setting
		t.Errorf("%d server sessions for one client that changed once", len(pids))
	}
	run(t, conn, "BEGIN")
	first := one[string](t, conn, "SELECT name FROM public.here")
	for range 10 {
		if got := one[string](t, conn, "SELECT name FROM public.here"); got != first {
			t.Fatalf("a transaction moved from %s to %s", first, got)
		}
	}
	run(t, conn, "COMMIT")
	if err := b.Reads(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if got := one[string](t, conn, "SELECT name FROM public.here"); got != "source" {
			t.Fatalf("at 0 percent on the %s", got)
		}
	}
}

// TestReadsRule: users and applications go through the read-only door wherever they knock.
// It catches a door that is taken from the address alone.
func TestReadsRule(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) { c.Reads.Applications = []string{"report*", "exact"} })
	if err := b.Reads(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	for app, want := range map[string]string{"reporting": "target on", "exact": "target on", "exactly": "source off"} {
		conn := b.client(t, b.Addr(), "&application_name="+app)
		if got := one[string](t, conn, "SELECT name || ' ' || current_setting('default_transaction_read_only') FROM here"); got != want {
			t.Errorf("application %s: got %s, want %s", app, got, want)
		}
	}
}

// TestTargetSessionAttrs: a client that names both doors finds the one that it asks for.
func TestTargetSessionAttrs(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	if err := b.Reads(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	hosts := fmt.Sprintf("%s,%s", b.ReadAddr(), b.Addr())
	for attrs, want := range map[string]string{"read-write": "source", "read-only": "target", "any": "target"} {
		conn, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable&target_session_attrs=%s", hosts, b.dbs[source].DSN.Database(), attrs))
		if err != nil {
			t.Fatalf("%s: %v", attrs, err)
		}
		if got := one[string](t, conn, "SELECT name FROM here"); got != want {
			t.Errorf("%s: on the %s, want the %s", attrs, got, want)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestYourWrites: after its user has written, a session reads on the owner, or waits, until the other backend
// has applied that, and then reads there again. Breaks that it catches: no fallback to the owner; writes that are
// not counted.
func TestYourWrites(t *testing.T) {
	t.Parallel()
	var p progress
	b := start(t, func(c *Config) {
		c.Reads = Reads{YourWrites: SeeOwner, Passed: p.passed, MaxSlower: -1}
	})
	if err := b.Reads(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	writer, reader := b.client(t, b.Addr(), ""), b.client(t, b.ReadAddr(), "")
	read := func(want Backend) {
		t.Helper()
		for range 3 {
			if got := one[string](t, reader, "SELECT name FROM here"); got != string(want) {
				t.Fatalf("read on the %s, want the %s", got, want)
			}
		}
	}
	run(t, writer, "CREATE TABLE w (x int)")
	read(source)
	p.at.Store(everything)
	read(target)
	p.at.Store(0)
	read(target) // nothing was written since it had caught up
	run(t, writer, "INSERT INTO w VALUES (1)")
	read(source)
	at, err := change.ParseLSN(b.dbs[source].Strings(t, "SELECT pg_current_wal_insert_lsn()")[0])
	if err != nil {
		t.Fatal(err)
	}
	p.at.Store(uint64(at) + 1<<20)
	read(target)
	if st := b.ReadStats(); st.OnOwner < 6 || st.Percent != 100 {
		t.Errorf("figures: %+v", st)
	}
}

func TestYourWritesWait(t *testing.T) {
	t.Parallel()
	var p progress
	b := start(t, func(c *Config) {
		c.Reads = Reads{YourWrites: SeeWait, MaxWait: time.Second, Passed: p.passed, MaxSlower: -1}
	})
	if err := b.Reads(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	writer, reader := b.client(t, b.Addr(), ""), b.client(t, b.ReadAddr(), "")
	p.at.Store(everything)
	if got := one[string](t, reader, "SELECT name FROM here"); got != "target" {
		t.Fatalf("read on the %s", got)
	}
	p.at.Store(0)
	run(t, writer, "CREATE TABLE w (x int)")
	go func() { // ends with the test's patience at the latest
		pgtest.Eventually(t, "a read that waits", func() bool { return b.ReadStats().Waited > 0 })
		p.at.Store(everything)
	}()
	if got := one[string](t, reader, "SELECT name FROM here"); got != "target" {
		t.Errorf("a read that waited for its write: on the %s", got)
	}
	p.at.Store(0)
	run(t, writer, "INSERT INTO w VALUES (1)")
	began := time.Now()
	if got := one[string](t, reader, "SELECT name FROM here"); got != "source" || time.Since(began) < 900*time.Millisecond {
		t.Errorf("a read whose write does not come: on the %s after %s", got, time.Since(began))
	}
}

// TestReadsStepBack: reads that fail on the other backend only go back step by step until they succeed, and
// that is told until somebody routes reads again. It catches errors that are counted for the wrong backend.
func TestReadsStepBack(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) {
		c.Reads = Reads{By: ByTransaction, MinReads: 10, Look: 20 * time.Millisecond, MaxSlower: -1}
	})
	conn := b.client(t, b.ReadAddr(), "&default_query_exec_mode=simple_protocol")
	ctx := t.Context()
	for _, percent := range []int{10, 50} {
		if err := b.Reads(ctx, percent); err != nil {
			t.Fatal(err)
		}
	}
	for range 200 {
		one[string](t, conn, "SELECT name FROM here")
	}
	if err := b.ReadFault(); err != nil {
		t.Fatalf("reads that are well: %v", err)
	}
	b.dbs[target].Exec(t, "ALTER TABLE here RENAME TO gone")
	pgtest.Eventually(t, "reads to step back to none", func() bool {
		var name string
		err := conn.QueryRow(ctx, "SELECT name FROM here").Scan(&name)
		if err != nil && !strings.Contains(err.Error(), "42P01") {
			t.Fatal(err)
		}
		return b.ReadStats().Percent == 0
	})
	if err := b.ReadFault(); err == nil || !strings.Contains(err.Error(), "from 10 to 0 percent") || b.ReadStats().SteppedBack != 2 {
		t.Errorf("after stepping back: %v, %+v", err, b.ReadStats())
	}
	if err := b.Reads(ctx, 10); err != nil || b.ReadFault() != nil {
		t.Errorf("routed anew: %v, fault %v", err, b.ReadFault())
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	ms := time.Millisecond
	c := Reads{}.withDefaults()
	for _, tt := range []struct {
		name         string
		owner, other ReadMeter
		bad          bool
	}{
		{"equal", ReadMeter{1000, 100, ms, 4 * ms}, ReadMeter{1000, 105, ms, 4 * ms}, false},
		{"few", ReadMeter{1000, 0, ms, ms}, ReadMeter{99, 99, ms, 100 * ms}, false},
		{"errors", ReadMeter{1000, 0, ms, ms}, ReadMeter{100, 2, ms, ms}, true},
		{"errors without a base", ReadMeter{}, ReadMeter{100, 2, ms, ms}, true},
		{"slow", ReadMeter{1000, 0, ms, 2 * ms}, ReadMeter{100, 0, ms, 11 * ms}, true},
		{"slower", ReadMeter{1000, 0, ms, 2 * ms}, ReadMeter{100, 0, ms, 9 * ms}, false},
		{"fast both", ReadMeter{1000, 0, ms, ms / 100}, ReadMeter{100, 0, ms, ms / 2}, false},
		{"slow without a base", ReadMeter{}, ReadMeter{100, 0, ms, time.Minute}, false},
	} {
		if err := c.judge(tt.owner, tt.other); (err != nil) != tt.bad {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// TestStateEqual: what may differ between two servers is no difference, and what the client did is.
func TestStateEqual(t *testing.T) {
	t.Parallel()
	a := state{
		settings:   [][2]string{{"work_mem", "4MB"}, {"role", "x"}},
		statements: []statement{{name: "s", text: "SELECT $1", types: []string{"mood"}, oids: []uint32{20000}}},
	}
	same := state{
		settings:   [][2]string{{"role", "x"}, {"work_mem", "4MB"}},
		statements: []statement{{name: "s", text: "SELECT $1", types: []string{"mood"}, oids: []uint32{30000}}},
	}
	if !a.equal(&same) {
		t.Error("order, and OIDs of types that the databases made, count as differences")
	}
	for name, change := range map[string]func(*state){
		"setting":   func(s *state) { s.settings[1][1] = "8MB" },
		"less":      func(s *state) { s.settings = s.settings[1:] },
		"statement": func(s *state) { s.statements[0].text = "SELECT 2" },
		"type":      func(s *state) { s.statements[0].oids[0] = 23 },
		"more":      func(s *state) { s.statements = append(s.statements, statement{name: "t"}) },
	} {
		other := state{
			settings:   [][2]string{{"role", "x"}, {"work_mem", "4MB"}},
			statements: []statement{{name: "s", text: "SELECT $1", types: []string{"mood"}, oids: []uint32{30000}}},
		}
		change(&other)
		if a.equal(&other) {
			t.Errorf("%s: no difference", name)
		}
	}
}

// TestPositionsShareQuestions: who asks gets an answer to a question put after that, also when it is shared, and
// one that gives up does not harm the others.
func TestPositionsShareQuestions(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	cfg := Config{}
	cfg.Backends = map[Backend]pg.DSN{source: db.DSN}
	p := positions{cfg: &cfg, turn: make(chan struct{}, 1)}
	defer p.close(t.Context())
	done := make(chan error, 20)
	for i := range cap(done) {
		go func() { // each sends, below
			ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
			if i%5 == 0 {
				cancel()
			}
			defer cancel()
			_, err := p.ask(ctx, source)
			if i%5 == 0 && errors.Is(err, context.Canceled) {
				err = nil
			}
			done <- err
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	first, err := p.ask(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "CREATE TABLE moved (x int)")
	if next, err := p.ask(t.Context(), source); err != nil || next <= first {
		t.Errorf("after a write: %s, before it %s, %v", next, first, err)
	}
}
