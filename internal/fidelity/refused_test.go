package fidelity

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate/preflight"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/transform"
)

// What cannot be moved is told before anything is done, and moves nothing else wrongly.
func TestWhatDoesNotMoveIsReported(t *testing.T) {
	t.Parallel()
	from, to := pgtest.DB(t), pgtest.DB(t)
	from.Exec(t, `
		CREATE TABLE plain (id int PRIMARY KEY);
		CREATE UNLOGGED TABLE quick (id int PRIMARY KEY);
		CREATE MATERIALIZED VIEW summary AS SELECT count(*) FROM plain;
		CREATE EXTENSION postgres_fdw SCHEMA public; CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw; CREATE FOREIGN TABLE far (id int) SERVER elsewhere;
		CREATE VIEW a_view AS SELECT * FROM plain; CREATE SEQUENCE numbers;
		SELECT lo_create(0)`)
	session := from.Conn(t)
	_, err := session.Exec(t.Context(), `CREATE TEMP TABLE mine (id int)`)
	must(t, err)
	tables, err := inspect.Tables(t.Context(), from.Conn(t), inspect.Filter{})
	must(t, err)
	mappings, err := transform.Compile(tables, nil, nil)
	must(t, err)
	if len(mappings) != 1 || mappings[0].Source.Name.Name != "plain" {
		t.Fatalf("mapped %d tables, want plain alone", len(mappings))
	}
	findings, err := preflight.Run(t.Context(), preflight.Config{
		Migration: "m", Source: from.DSN, Target: to.DSN, Tables: tables, Mappings: mappings, CopiesSchema: true, Follows: true,
		ForwardSlot: "f", ReverseSlot: "r",
	})
	must(t, err)
	var all strings.Builder
	for _, f := range findings {
		all.WriteString(f.Check + " " + f.Object + ": " + f.Message + "\n")
	}
	for _, want := range []string{
		"not-moved public.quick: its rows are not moved: it is unlogged",
		"not-moved public.summary: its rows are not moved: it is a materialized view",
		"not-moved public.far: its rows are not moved: it is a foreign table",
		"large-objects source: 1 large objects are not moved",
		"temporary source: 1 temporary relations belong to sessions and are not moved",
	} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("no finding %q in\n%s", want, &all)
		}
	}
}

// An infinite interval stops the copy to a server that has none. It fails when intervals go in binary:
// the older server then takes it for a number of years.
func TestInfiniteIntervalToOlderVersion(t *testing.T) {
	t.Parallel()
	from, to := pgtest.DB(t, pgtest.Version(18)), pgtest.DB(t, pgtest.Version(16))
	if from.Major < 17 || to.Major >= 17 {
		t.Skip("this machine lacks one of the versions")
	}
	const ddl = `CREATE TABLE t (id int PRIMARY KEY, i interval, a interval[])`
	from.Exec(t, ddl+`; INSERT INTO t VALUES (1, '1 day', '{1 day}')`)
	to.Exec(t, ddl)
	for _, change := range []string{"i = 'infinity'", "i = '-infinity'", "i = '1 day', a = '{infinity}'"} {
		from.Exec(t, "UPDATE t SET "+change)
		if err := copyOnce(t, from, to); pg.Code(err) == "" || !strings.Contains(err.Error(), "public.t") {
			t.Errorf("%s: got %v, want the target's refusal; it has %q", change, err, to.Strings(t, `SELECT i::text, a::text FROM t`))
		}
	}
}

// copyOnce copies all tables of a database.
func copyOnce(t *testing.T, from, to *pgtest.Database) error {
	t.Helper()
	conn := from.Conn(t)
	tables, err := inspect.Tables(t.Context(), conn, inspect.Filter{})
	must(t, err)
	mappings, err := transform.Compile(tables, nil, nil)
	must(t, err)
	_, err = conn.Exec(t.Context(), `BEGIN ISOLATION LEVEL REPEATABLE READ`)
	must(t, err)
	var name string
	must(t, conn.QueryRow(t.Context(), `SELECT pg_export_snapshot()`).Scan(&name))
	_, err = snapshot.Run(t.Context(), snapshot.Config{Source: from.DSN, Target: to.DSN, Snapshot: name, Mappings: mappings, Workers: 1})
	_, end := conn.Exec(t.Context(), `ROLLBACK`)
	must(t, end)
	return err
}

// A "char" above 127 arrives, although 15 and newer write it in a way that 14 and older do not read.
// It fails without the applier's own reading of that text.
func TestHighCharToOlderVersion(t *testing.T) {
	t.Parallel()
	from, to := pgtest.DB(t, pgtest.Version(18)), pgtest.DB(t, pgtest.Version(13))
	if from.Major < 15 || to.Major >= 15 {
		t.Skip("this machine lacks one of the versions")
	}
	const ddl = `CREATE TABLE t (id int PRIMARY KEY, c "char"); CREATE TABLE k (c "char" PRIMARY KEY, v int);
		CREATE TABLE f (c "char", v int); ALTER TABLE f REPLICA IDENTITY FULL`
	from.Exec(t, ddl)
	to.Exec(t, ddl)
	from.Exec(t, `INSERT INTO t VALUES (0, '\200'), (1, '\377'), (2, 'x'), (3, ''), (4, '\')`)
	p := start(t, from, to)
	from.Exec(t, `INSERT INTO t VALUES (10, '\200'), (11, '\377'), (12, 'x'), (13, ''), (14, '\'), (15, '\301'); UPDATE t SET c = '\222' WHERE id = 2;
		INSERT INTO k SELECT c, id FROM t WHERE id > 9; INSERT INTO f SELECT c, id FROM t;
		UPDATE k SET v = 0 WHERE c IN ('\200', 'x'); UPDATE k SET c = '\333' WHERE c = '\377'; DELETE FROM k WHERE c = '\301';
		UPDATE f SET v = 0 WHERE c IN ('\200', 'x'); DELETE FROM f WHERE c = '\377'`)
	p.catchUp(t)
	for table, column := range map[string]string{"t": "id", "k": "v", "f": "v"} {
		sql := fmt.Sprintf(`SELECT format('%%s %%s', c::int, %s) FROM %s ORDER BY 1`, column, table)
		if diff := cmp.Diff(from.Strings(t, sql), to.Strings(t, sql)); diff != "" {
			t.Errorf("%s (-source +target):\n%s", table, diff)
		}
	}
}
