package snapshot_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/transform"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	const plain = `CREATE TABLE t (id int PRIMARY KEY, a text)`
	const rows = `; INSERT INTO t VALUES (1, '1'), (2, 'hush42'), (3, NULL)`
	tests := map[string]struct {
		source, target string
		rules          map[string]transform.Rule
		change         func(*snapshot.Config)
		err, hint      string
		keeps          bool // the target's rows are still there
	}{
		"no such table":      {source: plain, target: "", err: "copy: public.t: the target has no table public.t", hint: "create the target's tables"},
		"no such column":     {source: plain, target: "CREATE TABLE t (id int); INSERT INTO t VALUES (9)", err: `table public.t on the target has no column "a"`, hint: "drop", keeps: true},
		"generated":          {source: plain, target: "CREATE TABLE t (id int, a text GENERATED ALWAYS AS ('x') STORED)", err: `column "a" of public.t is generated on the target`, hint: "drop"},
		"not a table":        {source: plain, target: "CREATE VIEW t AS SELECT 1 id, 'x' a", err: "public.t is not a table on the target"},
		"value does not fit": {source: plain + rows, target: "CREATE TABLE t (id int, a int)", err: `write to the target: invalid input syntax for type integer: (not shown), in row 2 of the chunk, column "a" (SQLSTATE 22P02)`, hint: "compare the column's type"},
		"value too long":     {source: plain + rows, target: "CREATE TABLE t (id int, a varchar(3))", err: "value too long for type character varying(3)", hint: "compare the column's type"},
		"null":               {source: plain + rows, target: "CREATE TABLE t (id int, a text NOT NULL)", err: `null value in column "a"`, hint: "give the column a default"},
		"unique":             {source: "CREATE TABLE t (id int); INSERT INTO t VALUES (1), (1)", target: "CREATE TABLE t (id int UNIQUE)", err: `violates unique constraint "t_id_key", in row 2`, hint: "drop the constraint"},
		"check":              {source: plain + rows, target: "CREATE TABLE t (id int CHECK (id < 3), a text)", err: "violates check constraint", hint: "drop the constraint"},
		"expression fails": {
			source: plain + rows, target: "CREATE TABLE t (id int, a int)", rules: map[string]transform.Rule{"t": {Columns: map[string]string{"a": "a::int"}}},
			err: "read from the source: invalid input syntax for type integer: (not shown)", hint: "expression",
		},
		"referenced from elsewhere": {
			source: "CREATE TABLE t (id int PRIMARY KEY)", target: "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE child (id int REFERENCES t); INSERT INTO t VALUES (1)",
			err: "empty the target's tables", hint: "foreign key",
		},
		"rows swallowed": {
			source: plain + rows, target: plain + `; CREATE FUNCTION drop_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
				CREATE TRIGGER a BEFORE INSERT ON t FOR EACH ROW WHEN (NEW.id = 2) EXECUTE FUNCTION drop_it(); ALTER TABLE t ENABLE ALWAYS TRIGGER a`,
			err: "the source sent 3 rows and the target stored 2", hint: "trigger",
		},
		"no snapshot":      {source: plain, target: plain, change: func(c *snapshot.Config) { c.Snapshot = "" }, err: "no snapshot"},
		"snapshot is gone": {source: plain, target: plain, change: func(c *snapshot.Config) { c.Snapshot = "00000000-00000000-1" }, err: `read under snapshot "00000000-00000000-1"`, hint: "under a new snapshot"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMove(t, tt.source, tt.target, tt.rules)
			if tt.change != nil {
				tt.change(&m.cfg)
			}
			_, err := snapshot.Run(within(t, time.Minute), m.cfg)
			if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(hint.Of(err), tt.hint) {
				t.Errorf("got %v (hint %q), want %q (hint %q)", err, hint.Of(err), tt.err, tt.hint)
			}
			if err != nil && strings.Contains(err.Error(), "hush") {
				t.Errorf("%v shows a value", err)
			}
			if n := m.dst.Int(t, "SELECT count(*) FROM pg_class WHERE relname = 't' AND relkind = 'r'"); tt.keeps && (n != 1 || m.dst.Int(t, "SELECT count(*) FROM t") != 1) {
				t.Error("the target was emptied before the copy was known to be possible")
			}
		})
	}
}

func TestFailureStopsTheOtherSide(t *testing.T) {
	t.Parallel()
	// The target refuses the first row while the source has yet to look through all others.
	m := newMove(t, `CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 200000) i`,
		"CREATE TABLE t (id int CHECK (id > 1), a text)", nil)
	_, err := snapshot.Run(within(t, time.Minute), m.cfg)
	var pe *pgconn.PgError
	if !errors.As(err, &pe) || pe.Code != "23514" {
		t.Errorf("got %v, want the target's check violation", err)
	}
}

func TestTargetTriggersDoNotFire(t *testing.T) {
	t.Parallel()
	const ddl = `CREATE TABLE t (id int PRIMARY KEY, a text); CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'fenced' USING ERRCODE = '25006'; END$$;
		CREATE TRIGGER no BEFORE INSERT OR TRUNCATE ON t FOR EACH STATEMENT EXECUTE FUNCTION no()`
	m := newMove(t, "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (1, 'x')", ddl, nil)
	m.run(t)
	m.same(t, "SELECT * FROM t")

	m.cfg.Target = as(t, m.dst, "GRANT USAGE ON SCHEMA public TO %[1]s; ALTER TABLE t OWNER TO %[1]s")
	_, err := snapshot.Run(t.Context(), m.cfg)
	if err == nil || !strings.Contains(err.Error(), "triggers on public.t would fire") || !strings.Contains(hint.Of(err), "GRANT SET ON PARAMETER") {
		t.Errorf("got %v (hint %q), want triggers refused", err, hint.Of(err))
	}
	m.dst.Exec(t, "DROP TRIGGER no ON t")
	m.run(t) // an ordinary role will do when nothing can fire
	m.same(t, "SELECT * FROM t")
}

func TestRowSecurityHidesNothing(t *testing.T) {
	t.Parallel()
	m := newMove(t, `CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2); ALTER TABLE t ENABLE ROW LEVEL SECURITY;
		CREATE POLICY odd ON t USING (id % 2 = 1)`, "CREATE TABLE t (id int PRIMARY KEY)", nil)
	m.run(t)
	m.same(t, "SELECT * FROM t")

	m.cfg.Source = as(t, m.src, "GRANT SELECT ON t TO %[1]s")
	_, err := snapshot.Run(t.Context(), m.cfg)
	if err == nil || !strings.Contains(err.Error(), "copy: public.t: read from the source") || !strings.Contains(hint.Of(err), "BYPASSRLS") {
		t.Errorf("got %v (hint %q), want the policy refused", err, hint.Of(err))
	}
	m.src.Exec(t, "REVOKE SELECT ON t FROM r_"+m.src.Name)
	_, err = snapshot.Run(t.Context(), m.cfg)
	if err == nil || !strings.Contains(hint.Of(err), "SELECT on the table") {
		t.Errorf("got %v (hint %q), want the missing privilege named", err, hint.Of(err))
	}
}

// TestPartitionsWithoutRights reads through the root where the leaves are closed to the role.
func TestPartitionsWithoutRights(t *testing.T) {
	t.Parallel()
	m := newMove(t, partitioned+"; "+partitionedRows, "CREATE TABLE log (id int, region text, pad text)", nil)
	m.cfg.Source = as(t, m.src, "GRANT SELECT ON log TO %[1]s")
	m.run(t)
	m.same(t, "SELECT * FROM log")
}
