package link

import (
	"context"
	"fmt"
	"testing"

	"github.com/ficus-migrate/ficus/internal/faultpg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestSmallScenarios is what other engines were found to fail at; docs/known-failures-of-others.md
// has the list.
func TestSmallScenarios(t *testing.T) {
	t.Parallel()
	many := 50_000
	if long() {
		many = 1_000_000
	}
	for _, c := range []struct{ name, ddl, fill, before, while string }{
		{
			name: "one transaction of 101 rows, and of 20,000", ddl: `CREATE TABLE t (n int)`,
			while: `INSERT INTO t SELECT generate_series(1, 101); BEGIN; INSERT INTO t SELECT generate_series(1, 20000); UPDATE t SET n = -n WHERE n % 7 = 0; COMMIT`,
		},
		{
			name: "one transaction of very many rows", ddl: `CREATE TABLE t (n int PRIMARY KEY, v text)`,
			while: fmt.Sprintf(`BEGIN; INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, %d) i; DELETE FROM t WHERE n %% 3 = 0; UPDATE t SET v = 'w' WHERE n %% 7 = 0; COMMIT`, many),
		},
		{
			name: "inserted and deleted before the reader runs", ddl: `CREATE TABLE t (id int PRIMARY KEY, v text)`,
			before: `INSERT INTO t VALUES (1, 'a'); DELETE FROM t; BEGIN; INSERT INTO t VALUES (2, 'b'); DELETE FROM t; COMMIT; DROP TABLE IF EXISTS nothing`,
		},
		{
			name: "namesakes in two schemas", ddl: `CREATE SCHEMA a; CREATE SCHEMA b; CREATE TABLE a.t (id int PRIMARY KEY, v int); CREATE TABLE b.t (id int PRIMARY KEY, v text, w int)`,
			fill: `INSERT INTO a.t VALUES (1, 1); INSERT INTO b.t VALUES (1, 'b', 2)`, while: `UPDATE a.t SET v = 2; UPDATE b.t SET v = 'c'; DELETE FROM a.t WHERE id = 1; INSERT INTO b.t VALUES (2, 'd', 3)`,
		},
		{
			name: "tables that do not move take writes", ddl: `CREATE TABLE t (id int PRIMARY KEY)`,
			before: `CREATE TABLE other (n int); INSERT INTO other VALUES (1); UPDATE other SET n = 2; DELETE FROM other`, while: `INSERT INTO other VALUES (3); UPDATE other SET n = 4; DELETE FROM other`,
		},
		{
			name: "a child's changes after its parent's, in one transaction", ddl: `CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE)`,
			fill: `INSERT INTO p VALUES (1), (2); INSERT INTO c VALUES (1, 1), (2, 2)`, while: `DELETE FROM p WHERE id = 1; BEGIN; DELETE FROM p; INSERT INTO p VALUES (2); INSERT INTO c VALUES (2, 2); COMMIT`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), c.ddl, c.fill)
			f.load(t)
			f.from.Exec(t, c.before)
			stop := run(t, f.link)
			f.from.Exec(t, c.while)
			f.catchUp(t)
			f.equal(t)
			stop()
		})
	}
}

// TestTwoDestinations: one origin, two destinations; the one that was not there catches up later and
// does not hold the other back.
func TestTwoDestinations(t *testing.T) {
	t.Parallel()
	f := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, rows)
	other := *f
	other.to, other.dir = pgtest.DB(t), t.TempDir()
	other.target = faultpg.New(t, other.to.DSN)
	other.to.Exec(t, tables+"\nCREATE TABLE public.marker (id int PRIMARY KEY)")
	f.load(t)
	other.load(t)
	t.Cleanup(func() {
		must(t, other.link.Drop(context.WithoutCancel(t.Context())))
		other.close(t)
	})
	stop, stopOther := run(t, f.link), run(t, other.link)
	stopLoad := f.write(t)
	other.target.Refuse(true)
	other.target.Cut()
	f.settle(t)
	stopLoad()
	f.equal(t)
	other.target.Refuse(false)
	other.marker = f.marker
	other.equal(t)
	stop()
	stopOther()
}

// TestTwoSources: two origins in one process, interleaved.
func TestTwoSources(t *testing.T) {
	t.Parallel()
	a := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, rows)
	b := newFaulty(t, pgtest.DB(t), pgtest.DB(t), tables, rows)
	a.load(t)
	b.load(t)
	stopA, stopB := run(t, a.link), run(t, b.link)
	loadA, loadB := a.write(t), b.write(t)
	a.settle(t)
	b.settle(t)
	loadA()
	loadB()
	a.equal(t)
	b.equal(t)
	stopA()
	stopB()
}
