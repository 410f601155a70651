package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// follows starts a migration that follows, with DDL treated as told.
func follows(t *testing.T, ddl string, source, target *pgtest.Database) *migration {
	t.Helper()
	m := move(t, "cluster-move", source, target, "--yes", "--until", "following", "--ddl", ddl)
	m.line("result", map[string]any{"phase": "following"})
	return m
}

// equal waits until the target has what the source has, and then lets Ficus prove it.
func (m *migration) equal(query string) {
	m.t.Helper()
	want := m.source.Strings(m.t, query)
	conn := m.target.Conn(m.t)
	var got []string
	m.t.Cleanup(func() {
		if m.t.Failed() {
			m.t.Logf("%s: (-source +target):\n%s", query, cmp.Diff(want, got))
		}
	})
	pgtest.Eventually(m.t, "the target to have what the source has: "+query, func() bool {
		rows, err := conn.Query(m.t.Context(), query)
		if err == nil {
			got, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		return err == nil && slices.Equal(got, want) // an error: a table that is yet to come
	})
}

// proved compares everything.
func (m *migration) proved() {
	m.t.Helper()
	if v := m.drive("verify"); v["differences"] != 0.0 {
		m.t.Errorf("verify: %v", v)
	}
}

// definition tells columns with types, defaults and nullability, and the indexes, of all tables.
const definition = `
SELECT attrelid::regclass || ' ' || attname || ' ' || format_type(atttypid, atttypmod) || ' ' || attnotnull || ' ' || coalesce(pg_get_expr(adbin, adrelid), '')
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')) AND attnum > 0 AND NOT attisdropped
UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
UNION ALL SELECT inhparent::regclass || ' has ' || inhrelid::regclass FROM pg_inherits WHERE inhparent IN (SELECT oid FROM pg_class WHERE relkind = 'p')
UNION ALL SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype IN ('p', 'u', 'f', 'x')
ORDER BY 1`

// TestDDLIsFollowed: everything that counts as safe, under load. It fails when today's default is
// taken for the value of rows that were there (const), when a volatile default is not told by the
// file (fate), when rows that came with a partition are left out (parts), and when what the stream
// does not show is not looked for (quiet, index, fresh).
func TestDDLIsFollowed(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t, pgtest.Version(17))
	source.Exec(t, `
		CREATE TABLE const (id int PRIMARY KEY, v text); INSERT INTO const SELECT i, 'row' FROM generate_series(1, 100) i;
		CREATE TABLE fate (id int PRIMARY KEY, v text); INSERT INTO fate SELECT i, 'row' FROM generate_series(1, 100) i;
		CREATE TABLE wide (id int PRIMARY KEY, n int, v varchar(5), p numeric(8,2)); INSERT INTO wide SELECT i, i, 'abc', i / 3.0 FROM generate_series(1, 2000) i;
		CREATE TABLE quiet (id int PRIMARY KEY, v varchar(5)); INSERT INTO quiet SELECT i, 'row' FROM generate_series(1, 100) i;
		CREATE TABLE twice (id int PRIMARY KEY, v text); INSERT INTO twice SELECT i, 'row' FROM generate_series(1, 100) i;
		CREATE TABLE parts (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
		CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
		CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
		CREATE TABLE parts_4 (id int, at date, v text, PRIMARY KEY (id, at)); INSERT INTO parts_4 SELECT i, '2026-04-02', 'attached' FROM generate_series(1, 50) i;
		INSERT INTO parts SELECT i, date '2026-01-15' + 20 * (i % 2), 'row' FROM generate_series(1, 100) i`)
	m := follows(t, "safe", source, target)

	load := source.Conn(t)
	ctx, quiet := context.WithCancel(t.Context())
	loaded := make(chan error, 1)
	go func() {
		var err error
		for i := 10_000; err == nil && ctx.Err() == nil; i++ {
			_, err = load.Exec(t.Context(), `INSERT INTO wide (id, n, v, p) VALUES ($1, 5, 'new', 1.25)`, i)
			if err == nil {
				_, err = load.Exec(t.Context(), `UPDATE wide SET n = n + 1 WHERE id = $1`, i%2000+1)
			}
		}
		loaded <- err
	}()

	for _, sql := range []string{
		`BEGIN; ALTER TABLE const ADD n int DEFAULT 5; ALTER TABLE const ALTER n SET DEFAULT 7; INSERT INTO const VALUES (101, 'new'); COMMIT`,
		`UPDATE const SET v = 'changed' WHERE id < 10`,
		`ALTER TABLE fate ADD u uuid DEFAULT gen_random_uuid(), ADD s serial; INSERT INTO fate (id) VALUES (101)`,
		`ALTER TABLE wide ALTER n TYPE bigint; UPDATE wide SET n = 5000000000 WHERE id = 1`,
		`ALTER TABLE wide ALTER v TYPE text, ALTER p TYPE numeric(12,2); UPDATE wide SET v = 'longer than five' WHERE id = 2`,
		`ALTER TABLE quiet ALTER v TYPE varchar(50), ADD n int NOT NULL DEFAULT 3; ALTER TABLE quiet ALTER v SET DEFAULT 'x'`,
		`BEGIN; ALTER TABLE twice ADD a int; INSERT INTO twice (id, a) VALUES (101, 1); ALTER TABLE twice ADD b text DEFAULT 'b'; INSERT INTO twice (id, a) VALUES (102, 2); COMMIT`,
		`CREATE TABLE fresh (id serial PRIMARY KEY, const int REFERENCES const, v text UNIQUE); INSERT INTO fresh (const, v) SELECT i, 'v' || i FROM generate_series(1, 50) i`,
		`CREATE INDEX wide_n ON wide (n); CREATE UNIQUE INDEX const_v ON const (id, v); ALTER TABLE quiet ADD CONSTRAINT quiet_u UNIQUE (v, id); CREATE INDEX parts_v ON parts (v)`,
		`CREATE TABLE parts_3 PARTITION OF parts FOR VALUES FROM ('2026-03-01') TO ('2026-04-01'); INSERT INTO parts SELECT i, '2026-03-03', 'third' FROM generate_series(1, 30) i`,
		`ALTER TABLE parts ATTACH PARTITION parts_4 FOR VALUES FROM ('2026-04-01') TO ('2026-05-01'); INSERT INTO parts VALUES (99, '2026-04-09', 'late')`,
		`INSERT INTO fresh (const, v) VALUES (1, 'late')`,
	} {
		source.Exec(t, sql)
	}
	m.equal(`SELECT count(*)::text FROM fresh`)
	quiet()
	must(t, <-loaded)
	for _, table := range []string{"const", "fate", "wide", "quiet", "twice", "parts", "fresh"} {
		m.equal(`SELECT to_jsonb(t)::text FROM ` + table + ` t ORDER BY 1`)
	}
	source.Exec(t, `ALTER TABLE parts DETACH PARTITION parts_1`)
	m.equal(`SELECT to_jsonb(t)::text FROM parts t ORDER BY 1`)
	m.equal(definition)
	m.proved()
	if n := target.Int(t, `SELECT count(*) FROM const WHERE n = 5`); n != 100 {
		t.Errorf("%d rows with the value that the column was added with, want 100", n)
	}

	// The new tables and columns are part of the way there and back.
	m.drive("promote", "--wait")
	target.Exec(t, `INSERT INTO fresh (const, v) VALUES (2, 'on the target'); INSERT INTO const VALUES (500, 'back', 9)`)
	m.drive("rollback", "--wait")
	if n := source.Int(t, `SELECT n FROM const WHERE id = 500`); n != 9 {
		t.Errorf("n came back as %d", n)
	}
	m.proved()
}

// TestDDLStops: nothing is followed unless the playbook says so; the operator mends the target or lets
// the table be copied anew, and resumes.
func TestDDLStops(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, sql string   // on the source
		says      []string // in error and hint
		target    string   // what the operator does
		anew      bool     // the table is copied anew
	}{
		{name: "column added", sql: `ALTER TABLE t ADD n int DEFAULT 5; INSERT INTO t VALUES (101, 'new', 0, 1)`, says: []string{"public.t", `"n"`, "ADD COLUMN", "resume", "follow.ddl"}, target: `ALTER TABLE t ADD n int DEFAULT 5`},
		{name: "column added, with another value", sql: `ALTER TABLE t ADD n int DEFAULT 5; INSERT INTO t VALUES (101, 'new', 0, 1)`, says: []string{`"n"`}, target: `ALTER TABLE t ADD n int DEFAULT 6; ALTER TABLE t ALTER n SET DEFAULT 5`, anew: true},
		{name: "column dropped", sql: `ALTER TABLE t DROP w; INSERT INTO t VALUES (101, 'new')`, says: []string{`"w"`, "dropped", "resume"}},
		{name: "column renamed", sql: `ALTER TABLE t RENAME w TO x; INSERT INTO t VALUES (101, 'new', 1)`, says: []string{`"w" is now called "x"`, `RENAME COLUMN "w" TO "x"`}, target: `ALTER TABLE t RENAME w TO x`},
		{name: "type changed", sql: `ALTER TABLE t ALTER w TYPE text USING 'w' || w; INSERT INTO t VALUES (101, 'new', 'x')`, says: []string{`"w" of type integer is now text`, "copies the table anew"}, target: `ALTER TABLE t ALTER w TYPE text`, anew: true},
		{name: "made again", sql: `ALTER TABLE t DROP w; ALTER TABLE t ADD w int DEFAULT 3`, says: []string{`"w" was dropped and made again`}, target: `ALTER TABLE t ALTER w SET DEFAULT 3`, anew: true},
		{name: "partition attached", sql: `ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (100) TO (200)`, says: []string{"public.p2", "not in the stream"}, target: `CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200)`, anew: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			source, target := pgtest.DB(t), pgtest.DB(t)
			source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, v text, w int); INSERT INTO t SELECT i, 'row', i FROM generate_series(1, 100) i;
				CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); INSERT INTO p SELECT generate_series(0, 99)`)
			m := follows(t, "stop", source, target)
			source.Exec(t, `CREATE TABLE p2 (id int PRIMARY KEY); INSERT INTO p2 SELECT generate_series(100, 150); INSERT INTO t VALUES (100000, 'before', 1)`)
			source.Exec(t, tt.sql)
			m.line("phase", map[string]any{"phase": "failed"})
			m.wait()
			m.mu.Lock()
			last := m.lines[len(m.lines)-1]
			m.mu.Unlock()
			text := fmt.Sprint(last["error"], " ", last["hint"])
			for _, want := range tt.says {
				if !strings.Contains(text, want) {
					t.Errorf("told %q, want %q in it", text, want)
				}
			}
			if n := target.Int(t, `SELECT count(*) FROM t WHERE id = 101`); n != 0 {
				t.Error("a row of the new shape is there")
			}
			if tt.target != "" {
				target.Exec(t, tt.target)
			}
			source.Exec(t, `UPDATE t SET v = 'while nobody followed' WHERE id = 7`)
			m.start()
			m.line("result", map[string]any{"phase": "following"})
			m.equal(`SELECT count(*) || ' ' || max(v) FROM t`)
			m.equal(`SELECT count(*)::text FROM p`)
			m.proved()
			if got := strings.Contains(m.text(), " anew"); got != tt.anew {
				t.Errorf("copied anew: %t, want %t", got, tt.anew)
			}
		})
	}
}

// TestPartitionTruncated: the stream does not tell of a TRUNCATE of one partition, so what was proved
// before must not count: the switch finds the rows that should be gone. It fails when the watcher only warns.
func TestPartitionTruncated(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
		CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200); INSERT INTO p SELECT generate_series(0, 199)`)
	m := move(t, "cluster-move", source, target, "--yes", "--until", "reads-switched")
	m.line("result", map[string]any{"phase": "reads-switched"})
	source.Exec(t, `TRUNCATE p1`)
	pgtest.Eventually(t, "the proof not to count any more", func() bool {
		return strings.Contains(m.text(), "earlier proofs do not count: partition public.p1")
	})
	m.drive("promote")
	pgtest.Eventually(t, "the difference to be found", func() bool { return strings.Contains(m.text(), "differences") })
	if n := target.Int(t, `SELECT count(*) FROM p`); n < 200 {
		t.Errorf("the target has %d rows: this test tests nothing", n)
	}
	if n := source.Int(t, `DELETE FROM p WHERE id = 150 RETURNING id`); n != 150 {
		t.Error("the source is not the owner any more")
	}
}

// TestTruncateJustBeforeTheSwitch: a TRUNCATE of one partition, which the stream does not tell of,
// begins after the last look ahead of the fence, and is committed while the fence waits for it,
// milliseconds before the new epoch. The switch takes itself back, and the next try finds the rows
// that should be gone. It fails without the step settle, but for the one time in many that the watcher
// looks just then.
func TestTruncateJustBeforeTheSwitch(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
		CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200); INSERT INTO p SELECT generate_series(0, 199)`)
	m := move(t, "cluster-move", source, target, "--yes", "--until", "reads-switched")
	m.line("result", map[string]any{"phase": "reads-switched"})
	app, err := pgx.Connect(t.Context(), "postgresql://postgres@"+m.gateway+"/"+source.Name+"?sslmode=disable")
	must(t, err)
	defer app.Close(t.Context())
	past := source.Conn(t) // goes round the gateway
	do := func(conn *pgx.Conn, sql string) {
		t.Helper()
		_, err := conn.Exec(t.Context(), sql)
		must(t, err)
	}

	do(app, `BEGIN; SELECT 1`)
	m.drive("promote")
	m.line("step", map[string]any{"message": "hold: started"}) // and waits for app
	do(past, `BEGIN; TRUNCATE p1`)
	do(app, `COMMIT`)
	m.line("progress", map[string]any{"message": "waiting for 1 writers"})
	do(past, `COMMIT`)
	m.line("phase", map[string]any{"phase": "verifying", "message": "verifying: the proof no longer holds"})
	pgtest.Eventually(t, "the difference to be found", func() bool { return strings.Contains(m.text(), "100 differences") })
	if n := source.Int(t, `DELETE FROM p WHERE id = 150 RETURNING id`); n != 150 {
		t.Error("the source is not the owner any more")
	}
}

// TestDDLResumed: the application goes on through the gateway while the link stands in front of its DDL,
// also over tables with rules and foreign keys, and "resume" goes on in the same process.
func TestDDLResumed(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, v text, w int); INSERT INTO t SELECT i, 'row', i FROM generate_series(1, 100) i;
		CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t); INSERT INTO child SELECT i, i FROM generate_series(1, 100) i`)
	file := filepath.Join(t.TempDir(), "rules.yaml")
	must(t, os.WriteFile(file, []byte("name: ruled\ntables:\n  public.t:\n    columns: {word: v, double: w * 2}\n    drop: [w]\n    inverse: {w: double / 2}\n    create: CREATE TABLE public.t (id int PRIMARY KEY, word text, double int)\nschema: {after: \"ALTER TABLE public.child ADD FOREIGN KEY (t) REFERENCES public.t\"}\npromote: {reads: []}\n"), 0o600))
	m := move(t, "schema-change", source, target, "-f", file, "--yes", "--until", "following")
	app, err := pgx.Connect(t.Context(), "postgresql://postgres@"+m.gateway+"/"+source.Name+"?sslmode=disable")
	must(t, err)
	defer app.Close(t.Context())
	m.line("result", map[string]any{"phase": "following"})
	do := func(sql string) {
		t.Helper()
		_, err := app.Exec(t.Context(), sql)
		must(t, err)
	}
	do(`ALTER TABLE t ADD n text DEFAULT 'old', ALTER w TYPE bigint USING w + 1`)
	do(`ALTER TABLE t ALTER n SET DEFAULT 'new'`)
	do(`INSERT INTO t VALUES (101, 'new', 7)`)
	m.line("phase", map[string]any{"phase": "failed"})
	do(`INSERT INTO t VALUES (102, 'meanwhile', 8)`)
	target.Exec(t, `ALTER TABLE t ADD n text, ALTER double TYPE bigint; ALTER TABLE t ALTER n SET DEFAULT 'new'`) // without the value of older rows
	m.drive("resume")
	pgtest.Eventually(t, "the target to have what the source has", func() bool {
		return slices.Equal(source.Strings(t, `SELECT id || v || w * 2 || n FROM t ORDER BY 1`), target.Strings(t, `SELECT id || word || double || n FROM t ORDER BY 1`))
	})
	m.says("anew")
	m.proved()
}

// TestDDLWhileDown: two changes of one table, and rows of all three shapes, while nobody follows.
func TestDDLWhileDown(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 100) i`)
	m := follows(t, "safe", source, target)
	m.stop(syscall.SIGKILL)
	for _, sql := range []string{
		`INSERT INTO t VALUES (101, 1)`, `ALTER TABLE t ADD a int DEFAULT 1`, `INSERT INTO t VALUES (102, 2, 2)`, `ALTER TABLE t ALTER a SET DEFAULT 9`,
		`ALTER TABLE t ADD b text, ALTER v TYPE bigint`, `INSERT INTO t VALUES (103, 3000000000, 3, 'b')`, `UPDATE t SET b = 'x' WHERE id < 5`,
	} {
		source.Exec(t, sql)
	}
	m.start()
	m.equal(`SELECT to_jsonb(t)::text FROM t ORDER BY 1`)
	m.proved()
}

// TestDDLBeforeTheCopy: a column comes after the plan was made, with rows, and before the snapshot that
// is copied. It fails when the copy does not look again: the rows' values would be taken for those of
// rows that were there before the column.
func TestDDLBeforeTheCopy(t *testing.T) {
	t.Parallel()
	for _, ddl := range []string{"stop", "safe"} {
		t.Run(ddl, func(t *testing.T) {
			t.Parallel()
			source, target := pgtest.DB(t), pgtest.DB(t)
			source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 100) i`)
			m := move(t, "cluster-move", source, target, "--yes", "--until", "following", "--ddl", ddl)
			m.line("phase", map[string]any{"phase": "preparing"})
			app := source.Conn(t)
			for _, sql := range []string{`BEGIN`, `ALTER TABLE t ADD n int DEFAULT 5`, `INSERT INTO t VALUES (101, 1, 9)`} {
				_, err := app.Exec(t.Context(), sql)
				must(t, err)
			}
			pgtest.Eventually(t, "somebody to wait for the table", func() bool {
				return source.Int(t, `SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass`) > 0
			})
			_, err := app.Exec(t.Context(), `COMMIT`)
			must(t, err)
			m.line("result", map[string]any{"phase": "following"})
			m.says("ahead of its copy")
			source.Exec(t, `INSERT INTO t VALUES (102, 1, 10)`)
			m.equal(`SELECT to_jsonb(t)::text FROM t ORDER BY 1`)
			m.proved()
		})
	}
}

// TestDDLKilled: killed while it follows DDL, at whatever moment, the next run ends it.
func TestDDLKilled(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i`)
	m := follows(t, "safe", source, target)
	for i, said := range [][]string{{"followed DDL", "table"}, {"follows table", "ahead of"}, {"anew"}, {"takes in"}} {
		source.Exec(t, fmt.Sprintf(`ALTER TABLE t ADD a%[1]d int DEFAULT %[1]d, ADD u%[1]d uuid DEFAULT gen_random_uuid(); INSERT INTO t (id, v) VALUES (%[1]d + 2000, 0);
			CREATE TABLE n%[1]d (id serial PRIMARY KEY, v int UNIQUE); INSERT INTO n%[1]d (v) SELECT generate_series(1, 100)`, i))
		m.says(said...)
		m.stop(syscall.SIGKILL)
		source.Exec(t, fmt.Sprintf(`UPDATE t SET v = v + 1 WHERE id < 50; INSERT INTO n%d (v) VALUES (1000)`, i))
		m.start()
	}
	for i := range 4 {
		m.equal(fmt.Sprintf(`SELECT to_jsonb(t)::text FROM n%d t ORDER BY 1`, i))
	}
	m.equal(`SELECT to_jsonb(t)::text FROM t ORDER BY 1`)
	m.equal(definition)
	m.proved()
}

// says waits for an event of type ddl with one of the texts in it.
func (m *migration) says(texts ...string) {
	m.t.Helper()
	pgtest.Eventually(m.t, fmt.Sprintf("an event of %q", texts), func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return slices.ContainsFunc(m.lines, func(l map[string]any) bool {
			message, _ := l["message"].(string)
			return l["type"] == "ddl" && slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(message, text) })
		})
	})
}
