package fidelity

import (
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate/preflight"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

// What PostgreSQL 18 brought to tables: virtual generated columns (also over large values), stored ones
// in a table without key, which it lets nobody update unless they are published, constraints that are not enforced, named and unvalidated NOT NULL, keys over
// periods. It fails when a virtual column is taken for a plain one: it cannot be written.
func TestVersion18(t *testing.T) {
	t.Parallel()
	from, to := pgtest.DB(t, pgtest.Version(18)), pgtest.DB(t, pgtest.Version(18))
	if from.Major < 18 {
		t.Skip("this machine lacks PostgreSQL 18")
	}
	const ddl = `
		CREATE TABLE virtual (id int PRIMARY KEY, a int, big text, v int GENERATED ALWAYS AS (a * 2) VIRTUAL, w text GENERATED ALWAYS AS (upper(big)) VIRTUAL, s int GENERATED ALWAYS AS (a + 1) STORED);
		CREATE TABLE stored_no_key (a int, v int GENERATED ALWAYS AS (a * 2) STORED, b text); ALTER TABLE stored_no_key REPLICA IDENTITY FULL;
		CREATE TABLE lax (id int PRIMARY KEY, a int, CONSTRAINT c CHECK (a > 0) NOT ENFORCED, r int, CONSTRAINT f FOREIGN KEY (r) REFERENCES virtual NOT ENFORCED);
		CREATE TABLE named (id int PRIMARY KEY, a int, CONSTRAINT a_is_there NOT NULL a);
		CREATE TABLE period (r int4range, during daterange, v int, PRIMARY KEY (r, during WITHOUT OVERLAPS));`
	const late = `CREATE TABLE late (id int PRIMARY KEY, a int); INSERT INTO late VALUES (1, NULL); ALTER TABLE late ADD CONSTRAINT n NOT NULL a NOT VALID;`
	from.Exec(t, ddl+late)
	to.Exec(t, ddl+"CREATE TABLE late (id int PRIMARY KEY, a int)")
	from.Exec(t, `INSERT INTO virtual SELECT i, i, repeat('x', 5000) FROM generate_series(1, 9) i; INSERT INTO stored_no_key (a, b) SELECT i, 'b' FROM generate_series(1, 9) i;
		INSERT INTO lax VALUES (1, -1, 77); INSERT INTO named VALUES (1, 1);
		INSERT INTO period VALUES ('[1,2)', '[2020-01-01,2021-01-01)', 1), ('[2,3)', '[2021-01-01,2022-01-01)', 2)`)
	p := start(t, from, to)
	from.Exec(t, `UPDATE virtual SET a = 100 WHERE id < 3; UPDATE virtual SET id = id + 100 WHERE id = 4; DELETE FROM virtual WHERE id = 5; INSERT INTO virtual (id, a, big) VALUES (50, 1, 'y');
		UPDATE stored_no_key SET b = 'c' WHERE a < 3; DELETE FROM stored_no_key WHERE a = 4; INSERT INTO stored_no_key (a, b) VALUES (NULL, NULL);
		UPDATE lax SET a = -2; INSERT INTO lax VALUES (2, -5, 78); UPDATE named SET a = 2; UPDATE late SET a = 5; DELETE FROM late; INSERT INTO late VALUES (2, 2);
		UPDATE period SET during = '[2019-01-01,2020-01-01)' WHERE v = 1; UPDATE period SET r = '[7,8)', v = 3 WHERE v = 2; INSERT INTO period VALUES ('[9,10)', '[2030-01-01,2031-01-01)', 4);
		DELETE FROM period WHERE v = 1`)
	p.equal(t)

	// A table that is found by the whole row and has a virtual column could not be updated any more.
	from.Exec(t, "CREATE TABLE stuck (a int, v int GENERATED ALWAYS AS (a * 2) VIRTUAL)")

	// An older server has none of these: the check says so before anything is made.
	older := pgtest.DB(t, pgtest.Version(17))
	tables, err := inspect.Tables(t.Context(), from.Conn(t), inspect.Filter{})
	must(t, err)
	mappings, err := transform.Compile(tables, nil, nil)
	must(t, err)
	findings, err := preflight.Run(t.Context(), preflight.Config{Migration: "m", Source: from.DSN, Target: older.DSN, Tables: tables, Mappings: mappings, CopiesSchema: true, Follows: true, Full: needFull(mappings), ForwardSlot: "f", ReverseSlot: "r"})
	must(t, err)
	var all strings.Builder
	for _, f := range findings {
		all.WriteString(f.Check + " " + f.Object + ": " + f.Message + "\n")
	}
	if !strings.Contains(all.String(), `virtual-column "public"."stuck"`) {
		t.Errorf("no finding about public.stuck in\n%s", &all)
	}
	for _, want := range []string{"public.virtual", "public.lax", "public.late", "public.period"} {
		if older.Major < 18 && !strings.Contains(all.String(), "newer "+want) {
			t.Errorf("no finding about %s in\n%s", want, &all)
		}
	}
}
