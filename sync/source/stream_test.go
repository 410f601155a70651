package source_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

func TestStream(t *testing.T) {
	t.Parallel()
	// Before 15, PostgreSQL sends the begin and commit of transactions in which nothing is published.
	for _, major := range []int{13, 14, 15, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			testStream(t, pgtest.DB(t, pgtest.Version(major)))
		})
	}
}

func testStream(t *testing.T, db *pgtest.Database) {
	t.Helper()
	g := newRig(t, db, `
		CREATE TABLE public.t (id int PRIMARY KEY, v text);
		CREATE TABLE public.parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
		CREATE TABLE public.part1 PARTITION OF public.parts FOR VALUES FROM (0) TO (10)`)
	g.db.Exec(t, "INSERT INTO t VALUES (0, 'before the reader')")
	r, stop := g.start(t)
	g.db.Exec(t, "INSERT INTO t VALUES (1, 'one'), (2, 'two')")
	g.received(t, r)
	middle := g.cfg.Stream.Head()
	g.db.Exec(t, "UPDATE t SET v = 'zwei' WHERE id = 2; DELETE FROM t WHERE id = 1") // one transaction
	g.db.Exec(t, "INSERT INTO part1 VALUES (5)")
	g.db.Exec(t, "TRUNCATE t, parts")
	g.db.Exec(t, "CREATE TABLE public.other (id int); INSERT INTO public.other VALUES (1)") // not published
	g.received(t, r)

	all := [][]string{
		{"insert t(0,before the reader)"},
		{"insert t(1,one)", "insert t(2,two)"},
		{"update t(2,zwei)", "delete t(1,)"},
		{"insert parts(5)"},
		{"truncate of 2"},
	}
	equal(t, "from 0", rows(transactions(t, g.cfg.Stream, 0)), all)
	// This needs the description of t, which came before.
	equal(t, "from the middle", rows(transactions(t, g.cfg.Stream, middle)), all[2:])

	s := r.Status()
	if !s.Connected || s.LastMessage.IsZero() || s.ServerEnd < g.cfg.Stream.Head() {
		t.Errorf("status %+v", s)
	}
	if err := stop(); !errors.Is(err, errStopped) {
		t.Errorf("Run returned %v, want the cause of its context", err)
	}
	if r.Status().Connected {
		t.Error("connected after Run")
	}
}

func TestLargeTransactions(t *testing.T) {
	t.Parallel()
	g := newRig(t, pgtest.DB(t), "CREATE TABLE public.t (id int PRIMARY KEY, v text)")
	r, _ := g.start(t)
	g.db.Exec(t, "INSERT INTO t VALUES (-1, 'small')")
	g.db.Exec(t, "INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 20000) i")
	g.db.Exec(t, "INSERT INTO t VALUES (-2, 'small')")
	g.db.Exec(t, "INSERT INTO t SELECT -3, string_agg(md5(i::text), '') FROM generate_series(1, 100000) i") // one row of 3.2 MB
	g.db.Exec(t, "INSERT INTO t VALUES (-4, 'small')")
	g.received(t, r)

	list := transactions(t, g.cfg.Stream, 0)
	var got []string
	for _, x := range list {
		got = append(got, fmt.Sprintf("%d rows, spilled %v", len(x.rows), x.spilled))
	}
	equal(t, "transactions", got, []string{
		"1 rows, spilled false", "20000 rows, spilled true", "1 rows, spilled false",
		"1 rows, spilled true", "1 rows, spilled false",
	})
	for i, row := range list[1].rows {
		if want := fmt.Sprintf("insert t(%d,%s)", i+1, strings.Repeat("x", 200)); row != want {
			t.Fatalf("row %d: got %.40s", i, row)
		}
	}
	if want := g.db.Strings(t, "SELECT v FROM t WHERE id = -3")[0]; list[3].rows[0] != "insert t(-3,"+want+")" {
		t.Errorf("the large row came as %.40s, %d bytes", list[3].rows[0], len(list[3].rows[0]))
	}
	equal(t, "from after the large one", rows(transactions(t, g.cfg.Stream, list[3].end)), [][]string{{"insert t(-4,small)"}})
}

// Streams are in commit order, whatever the order in which transactions began.
func TestOverlappingTransactions(t *testing.T) {
	t.Parallel()
	g := newRig(t, pgtest.DB(t), "CREATE TABLE public.t (id int PRIMARY KEY)")
	r, stop := g.start(t)
	first, second := g.db.Conn(t), g.db.Conn(t)
	run := func(sql string) {
		t.Helper()
		conn := first
		if strings.HasPrefix(sql, "2:") {
			conn = second
		}
		if _, err := conn.Exec(t.Context(), "SET search_path = public; "+sql[2:]); err != nil {
			t.Fatal(err)
		}
	}
	run("1:BEGIN; INSERT INTO t VALUES (1)")
	run("2:BEGIN; INSERT INTO t VALUES (2)")
	run("2:COMMIT")
	g.received(t, r)
	if err := stop(); !errors.Is(err, errStopped) { // the slot goes back to where 1 began
		t.Fatal(err)
	}
	r, _ = g.start(t)
	run("2:BEGIN; INSERT INTO t VALUES (3)")
	run("1:INSERT INTO t VALUES (4); COMMIT")
	run("2:COMMIT")
	run("1:BEGIN; INSERT INTO t VALUES (5); ROLLBACK")
	g.received(t, r)
	equal(t, "stream", rows(transactions(t, g.cfg.Stream, 0)), [][]string{
		{"insert t(2)"}, {"insert t(1)", "insert t(4)"}, {"insert t(3)"},
	})
}

// The connection is killed again and again, also inside of large transactions, and so is the
// process: the store is opened anew. No row is lost or comes twice.
func TestResume(t *testing.T) {
	t.Parallel()
	g := newRig(t, pgtest.DB(t), "CREATE TABLE public.t (id int PRIMARY KEY, v text)")
	r, stop := g.start(t)
	const rounds, each = 8, 300
	total := 0
	for round := range rounds {
		g.db.Exec(t, fmt.Sprintf("INSERT INTO t SELECT %d + i, repeat('x', 1000) FROM generate_series(1, 10000) i", 1e6+round*1e5))
		total += 10000
		for i := range each {
			if i%100 == 50 {
				g.db.Exec(t, "SELECT pg_terminate_backend($1)", g.walsender(t))
			}
			g.db.Exec(t, "INSERT INTO t VALUES ($1, 'small')", round*each+i)
			total++
		}
		if round%3 == 1 {
			if err := stop(); !errors.Is(err, errStopped) {
				t.Fatal(err)
			}
			if err := g.store.Close(); err != nil {
				t.Fatal(err)
			}
			g.open(t)
			r, stop = g.start(t)
		}
	}
	g.received(t, r)

	seen := map[string]int{}
	var last change.LSN
	for _, x := range transactions(t, g.cfg.Stream, 0) {
		last = x.end
		for _, row := range x.rows {
			seen[strings.SplitN(row, ",", 2)[0]]++
		}
	}
	equal(t, "head", g.cfg.Stream.Head(), last)
	if len(seen) != total {
		t.Errorf("%d different rows, want %d", len(seen), total)
	}
	for row, n := range seen {
		if n != 1 {
			t.Fatalf("%s came %d times", row, n)
		}
	}
}
