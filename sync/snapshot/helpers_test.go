package snapshot_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/transform"
)

func TestMain(m *testing.M) { pgtest.Main(m, pgtest.CheckLeaks()) }

// compile inspects a database as the planner does.
func compile(t *testing.T, db *pgtest.Database, rules map[string]transform.Rule) []transform.Mapping {
	t.Helper()
	conn, err := db.DSN.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	tables, err := inspect.Tables(t.Context(), conn, inspect.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	ms, err := transform.Compile(tables, rules, func(table schema.Name, expr string) (schema.Type, error) {
		return inspect.Describe(t.Context(), conn, table, expr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return ms
}

// export opens a snapshot that lives as long as the test, and the session that reads under it.
func export(t *testing.T, db *pgtest.Database) (id string, conn *pgx.Conn) {
	t.Helper()
	conn = db.Conn(t)
	if _, err := conn.Exec(t.Context(), "BEGIN ISOLATION LEVEL REPEATABLE READ"); err != nil {
		t.Fatal(err)
	}
	if err := conn.QueryRow(t.Context(), "SELECT pg_export_snapshot()").Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id, conn
}

// A move is a source, a target and the snapshot between them.
type move struct {
	src, dst *pgtest.Database
	frozen   *pgx.Conn // reads the source under the snapshot
	cfg      snapshot.Config
}

// newMove runs sourceSQL and targetSQL and takes a snapshot.
func newMove(t *testing.T, sourceSQL, targetSQL string, rules map[string]transform.Rule) *move {
	t.Helper()
	return newMoveBetween(t, pgtest.DB(t), pgtest.DB(t), sourceSQL, targetSQL, rules)
}

func newMoveBetween(t *testing.T, src, dst *pgtest.Database, sourceSQL, targetSQL string, rules map[string]transform.Rule) *move {
	t.Helper()
	src.Exec(t, sourceSQL)
	dst.Exec(t, targetSQL)
	m := &move{src: src, dst: dst}
	m.cfg = snapshot.Config{Source: src.DSN, Target: dst.DSN, Mappings: compile(t, src, rules), Workers: 2}
	m.cfg.Snapshot, m.frozen = export(t, src)
	return m
}

func (m *move) run(t *testing.T) snapshot.Result {
	t.Helper()
	res, err := snapshot.Run(t.Context(), m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// same compares a query's rows, as text and sorted, at the source's snapshot and at the target.
func (m *move) same(t *testing.T, query string) {
	t.Helper()
	m.sameAs(t, query, query)
}

func (m *move) sameAs(t *testing.T, source, target string) {
	t.Helper()
	wrap := func(q string) string {
		return `SELECT coalesce(string_agg(x::text, E'\n' ORDER BY x::text COLLATE "C"), '') FROM (` + q + `) x`
	}
	var want string
	if err := m.frozen.QueryRow(t.Context(), wrap(source)).Scan(&want); err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	got := m.dst.Strings(t, wrap(target))[0]
	if want != got {
		if len(want) > 4000 || len(got) > 4000 {
			t.Errorf("%s: rows differ (%d bytes of text on the source, %d on the target)", target, len(want), len(got))
			return
		}
		t.Errorf("%s (-source +target):\n%s", target, cmp.Diff(want, got))
	}
}

// as returns the DSN of another role in db, which it creates.
func as(t *testing.T, db *pgtest.Database, grants string) pg.DSN {
	t.Helper()
	role := "r_" + db.Name
	db.Exec(t, fmt.Sprintf(`CREATE ROLE %[1]s LOGIN; `+grants, role))
	t.Cleanup(func() { db.Exec(t, fmt.Sprintf("DROP OWNED BY %s; DROP ROLE %s", role, role)) })
	dsn, err := pg.Parse(fmt.Sprintf("host=%s port=%d dbname=%s user=%s", db.Host(), db.Port(), db.Name, role))
	if err != nil {
		t.Fatal(err)
	}
	return dsn
}

// within bounds a test that would otherwise hang.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
