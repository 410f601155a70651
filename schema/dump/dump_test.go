package dump

import (
	"context"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
)

func TestMain(m *testing.M) { pgtest.Main(m, pgtest.CheckLeaks()) }

// tools returns programs that read every server used here as a source.
func tools(t *testing.T) Tools {
	t.Helper()
	found, err := FindTools(t.Context(), 15)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func everything(t *testing.T) string {
	t.Helper()
	sql, err := os.ReadFile("testdata/everything.sql")
	if err != nil {
		t.Fatal(err)
	}
	return string(sql)
}

func open(t *testing.T, cfg Config) *Dump {
	t.Helper()
	cfg.Tools, cfg.Dir = tools(t), t.TempDir()
	d, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("open: %v (hint: %s)", err, hint.Of(err))
	}
	if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) != 0 {
		t.Errorf("left in the folder: %v, %v", left, err)
	}
	return d
}

// TestServerGone: a tool that failed because the server went away may be tried again, one that failed otherwise may not.
func TestServerGone(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	conn, err := db.DSN.Connect(t.Context(), "schema")
	must(t, err)
	_, failed := run(t.Context(), nil, "/bin/sh", "-c", "echo 'pg_dump: error: query failed' >&2; exit 1")
	if err := serverGone(t.Context(), conn, failed); !errors.Is(err, failed) || pg.Retryable(err) {
		t.Errorf("with the server there: %v", err)
	}
	db.Exec(t, `SELECT pg_terminate_backend($1)`, conn.PgConn().PID())
	if err := serverGone(t.Context(), conn, failed); !errors.Is(err, failed) || !pg.Retryable(err) {
		t.Errorf("with the session gone: %v", err)
	}
}

// copyAll runs the three sections.
func copyAll(t *testing.T, d *Dump, target pg.DSN) {
	t.Helper()
	must(t, d.PreData(t.Context(), target))
	must(t, d.Indexes(t.Context(), target, nil))
	must(t, d.Final(t.Context(), target, nil))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v (hint: %s)", err, hint.Of(err))
	}
}

// text returns a database's schema as pg_dump prints it, without what is never copied.
func text(t *testing.T, db *pgtest.Database) string {
	t.Helper()
	out, err := run(t.Context(), environment(db.DSN), tools(t).PgDump,
		"--schema-only", "--exclude-schema=ficus", "--no-publications")
	must(t, err)
	out = regexp.MustCompile(`(?m)^(--.*|\\(un)?restrict .*)\n`).ReplaceAllString(out, "")
	out = regexp.MustCompile(`CREATE TRIGGER ficus_fence .*\n`).ReplaceAllString(out, "")
	return regexp.MustCompile(`\n\n+`).ReplaceAllString(out, "\n")
}

func same(t *testing.T, source, target *pgtest.Database) {
	t.Helper()
	if diff := cmp.Diff(strings.Split(text(t, source), "\n"), strings.Split(text(t, target), "\n")); diff != "" {
		t.Errorf("pg_dump --schema-only of both sides (-source +target):\n%s", diff)
	}
}

func TestEverything(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, everything(t))
	d := open(t, Config{Source: source.DSN, Workers: 4})
	must(t, d.PreData(t.Context(), target.DSN))

	if n := target.Int(t, "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname !~ '^pg_' AND nspname <> 'ficus'"); n != 0 {
		t.Errorf("after PreData: %d indexes", n)
	}
	if n := target.Int(t, "SELECT count(*) FROM pg_trigger"); n != 0 {
		t.Errorf("after PreData: %d triggers", n)
	}
	source.Exec(t, "INSERT INTO event (id, at, kind) VALUES (1, '2020-02-02', 'a'); REFRESH MATERIALIZED VIEW kinds")
	target.Exec(t, "INSERT INTO event (id, at, kind) VALUES (1, '2020-02-02', 'a')")

	must(t, d.Indexes(t.Context(), target.DSN, nil))
	if n := target.Int(t, "SELECT count(*) FROM pg_constraint WHERE contype = 'f'"); n != 0 {
		t.Errorf("after Indexes: %d foreign keys", n)
	}
	must(t, d.Final(t.Context(), target.DSN, nil))

	same(t, source, target)
	if got := target.Strings(t, "SELECT relname, relispopulated FROM pg_class WHERE relkind = 'm' ORDER BY 1"); !slices.Equal(got, []string{"by_key|t", "kinds|t", "on_kinds|t", "unfilled|f"}) {
		t.Errorf("materialized views: got %v", got)
	}
	if got := target.Strings(t, "SELECT k.kind, k.n, o.n FROM kinds k, on_kinds o"); !slices.Equal(got, []string{"a|1|1"}) {
		t.Errorf("rows of materialized views: got %v", got)
	}
	query := "SELECT conrelid::regclass::text, conname, convalidated FROM pg_constraint WHERE contype IN ('f', 'c') ORDER BY 1, 2"
	if diff := cmp.Diff(source.Strings(t, query), target.Strings(t, query)); diff != "" {
		t.Errorf("validated constraints (-source +target):\n%s", diff)
	}
	if got := d.Warnings(); len(got) != 0 {
		t.Errorf("warnings: %q", got)
	}
}

func TestChinook(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	pgtest.Load(t, source, "chinook")
	d := open(t, Config{Source: source.DSN, Workers: 1}) // several tell in any order what they begin with
	must(t, d.PreData(t.Context(), target.DSN))

	var lines []string
	total := 0
	must(t, d.Indexes(t.Context(), target.DSN, func(what string, done, all int) {
		lines, total = append(lines, what), all
		if done >= all {
			t.Errorf("%s: %d of %d", what, done, all)
		}
	}))
	if len(lines) != total || total == 0 {
		t.Errorf("progress: %d calls for %d objects", len(lines), total)
	}
	last := slices.IndexFunc(lines, func(s string) bool { return strings.HasPrefix(s, "index ") })
	if last >= 0 && slices.ContainsFunc(lines[last:], func(s string) bool { return strings.HasPrefix(s, "constraint ") }) {
		t.Errorf("keys come first: got %q", lines)
	}
	must(t, d.Final(t.Context(), target.DSN, nil))
	same(t, source, target)
}

// Every section may be run again, by the same process or by one that reads the schema anew.
func TestRepeat(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, everything(t))
	for range 2 {
		d := open(t, Config{Source: source.DSN})
		for range 2 {
			must(t, d.PreData(t.Context(), target.DSN))
		}
	}
	d := open(t, Config{Source: source.DSN})
	copyAll(t, d, target.DSN)
	copyAll(t, d, target.DSN)
	copyAll(t, open(t, Config{Source: source.DSN}), target.DSN)
	same(t, source, target)
}

// errStop interrupts a section in the middle.
var errStop = errors.New("stopped by the test")

func TestInterrupt(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, everything(t))
	d := open(t, Config{Source: source.DSN, Workers: 3})
	must(t, d.PreData(t.Context(), target.DSN))

	for _, part := range []struct { // in this order: what is built already cannot be interrupted
		name    string
		section func(context.Context, pg.DSN, Progress) error
	}{{"indexes", d.Indexes}, {"final", d.Final}} {
		name, section := part.name, part.section
		rounds := 0
		for at := 1; ; at += 9 {
			ctx, cancel := context.WithCancelCause(t.Context())
			calls := 0
			err := section(ctx, target.DSN, func(string, int, int) {
				if calls++; calls == at {
					cancel(errStop)
				}
			})
			cancel(nil)
			if err == nil {
				break
			}
			if !errors.Is(err, errStop) && !errors.Is(err, context.Canceled) {
				t.Fatalf("%s, stopped at step %d: %v", name, at, err)
			}
			rounds++
		}
		if rounds == 0 {
			t.Errorf("%s: never interrupted", name)
		}
	}
	same(t, source, target)
}

// A canceled build ends on the server, too, instead of keeping its lock.
func TestCancelReachesTheServer(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, "CREATE TABLE a (id int PRIMARY KEY)")
	d := open(t, Config{Source: source.DSN})
	must(t, d.PreData(t.Context(), target.DSN))
	lock, err := target.Conn(t).Begin(t.Context())
	must(t, err)
	if _, err := lock.Exec(t.Context(), "LOCK TABLE a IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Indexes(ctx, target.DSN, nil) }() // ends with ctx, and is waited for below
	const ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'ficus/schema'"
	pgtest.Eventually(t, "the build waits for the lock", func() bool {
		return target.Int(t, ours+" AND wait_event_type = 'Lock'") == 1
	})
	cancel(errStop)
	if err := <-done; !errors.Is(err, errStop) {
		t.Errorf("canceled: got %v", err)
	}
	pgtest.Eventually(t, "no session is left", func() bool { return target.Int(t, ours) == 0 })
	must(t, lock.Rollback(t.Context()))
	must(t, d.Indexes(t.Context(), target.DSN, nil))
}

func TestObjectsInTheWay(t *testing.T) {
	t.Parallel()
	source := pgtest.DB(t)
	source.Exec(t, "CREATE SCHEMA app; CREATE TABLE app.a (id int PRIMARY KEY); CREATE TABLE app.b (id int REFERENCES app.a); CREATE TYPE mood AS ENUM ('x')")
	d := open(t, Config{Source: source.DSN})

	for name, tt := range map[string]struct {
		before, between, want string
	}{
		"table":        {before: "CREATE SCHEMA app; CREATE TABLE app.b (x int)", want: "create tables: table app.b: "},
		"type":         {before: "CREATE TYPE mood AS ENUM ('y')", want: "create tables: type public.mood: "},
		"primary key":  {between: "ALTER TABLE app.a ADD PRIMARY KEY (id)", want: "build indexes: constraint app.a a_pkey: "},
		"index":        {between: "CREATE TABLE app.a_pkey (x int)", want: "build indexes: constraint app.a a_pkey: "},
		"empty schema": {before: "CREATE SCHEMA app"},
	} {
		target := pgtest.DB(t)
		target.Exec(t, tt.before)
		err := d.PreData(t.Context(), target.DSN)
		if tt.between != "" && err == nil {
			target.Exec(t, tt.between)
		}
		if err == nil {
			err = d.Indexes(t.Context(), target.DSN, nil)
		}
		switch {
		case tt.want == "":
			must(t, err)
		case err == nil:
			t.Errorf("%s: no error", name)
		case !strings.HasPrefix(err.Error(), tt.want) || hint.Of(err) == "":
			t.Errorf("%s: got %v (hint: %s), want %s...", name, err, hint.Of(err), tt.want)
		}
		if tt.before != "" && tt.want != "" && target.Int(t, "SELECT count(*) FROM pg_namespace WHERE nspname = 'ficus'") != 0 {
			t.Errorf("%s: something stayed behind after a PreData that failed", name)
		}
	}
}

func TestSectionsOutOfOrder(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	err := open(t, Config{Source: source.DSN}).Indexes(t.Context(), target.DSN, nil)
	if err == nil || hint.Of(err) == "" {
		t.Errorf("Indexes before PreData: got %v (hint: %s)", err, hint.Of(err))
	}
}

// A row that violates a key stops the section; what was built stays, and a second run goes on.
func TestRowsThatViolate(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a)")
	d := open(t, Config{Source: source.DSN})
	must(t, d.PreData(t.Context(), target.DSN))
	target.Exec(t, "INSERT INTO a VALUES (1), (1); INSERT INTO b VALUES (1, 2)")

	err := d.Indexes(t.Context(), target.DSN, nil)
	if pg.Code(err) != codeUnique || hint.Of(err) == "" || !strings.Contains(err.Error(), "a_pkey") {
		t.Errorf("double key: got %v (hint: %s)", err, hint.Of(err))
	}
	target.Exec(t, "DELETE FROM a WHERE ctid = '(0,1)'")
	must(t, d.Indexes(t.Context(), target.DSN, nil))

	err = d.Final(t.Context(), target.DSN, nil)
	if pg.Code(err) != codeForeignKey || hint.Of(err) == "" || !strings.Contains(err.Error(), "b_a_fkey") {
		t.Errorf("orphan: got %v (hint: %s)", err, hint.Of(err))
	}
	target.Exec(t, "UPDATE b SET a = 1")
	must(t, d.Final(t.Context(), target.DSN, nil))
	same(t, source, target)
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, "CREATE TABLE before (id int)")
	conn := source.Conn(t)
	tx, err := conn.Begin(t.Context())
	must(t, err)
	if _, err := tx.Exec(t.Context(), "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"); err != nil {
		t.Fatal(err)
	}
	var snapshot string
	must(t, tx.QueryRow(t.Context(), "SELECT pg_export_snapshot()").Scan(&snapshot))
	source.Exec(t, "CREATE TABLE after (id int)")

	copyAll(t, open(t, Config{Source: source.DSN, Snapshot: snapshot}), target.DSN)
	if got := target.Strings(t, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"); !slices.Equal(got, []string{"before"}) {
		t.Errorf("tables of the snapshot: got %v", got)
	}
	must(t, tx.Rollback(t.Context()))

	_, err = Open(t.Context(), Config{Source: source.DSN, Tools: tools(t), Snapshot: snapshot})
	if err == nil || !strings.Contains(err.Error(), "snapshot") {
		t.Errorf("snapshot that is gone: got %v", err)
	}
}

// names returns the relations, other than indexes, that a target got.
func names(t *testing.T, db *pgtest.Database) []string {
	t.Helper()
	return db.Strings(t, `SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('ficus', 'information_schema') AND c.relkind NOT IN ('i', 'I', 't', 'c') ORDER BY 1`)
}

func name(s, n string) schema.Name { return schema.Name{Schema: s, Name: n} }
