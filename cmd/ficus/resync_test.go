package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// spoil changes rows of the follower behind the link's back.
func spoil(t *testing.T, db *pgtest.Database, sql string) {
	t.Helper()
	db.Exec(t, `BEGIN; SET LOCAL session_replication_role = replica; `+sql+`; COMMIT`)
}

// TestResync: an operator has one table copied anew, which others wrote to, while it and another one
// are in use; nothing else is copied, and what was proved before counts no more. Then the process is
// killed in the middle of a second time, and the next one ends it with the parts that are missing.
// Broken on purpose: with a request that is answered without a copy, and with one that only the process
// remembers, rows stay different or the next process does not follow.
func TestResync(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE spoilt (id int PRIMARY KEY, v text); INSERT INTO spoilt SELECT i, repeat('x', 500) FROM generate_series(1, 60000) i;
		CREATE TABLE other (id int PRIMARY KEY, v text); INSERT INTO other SELECT i, 'row' FROM generate_series(1, 100) i; ANALYZE`)
	file := filepath.Join(t.TempDir(), "book.yaml")
	must(t, os.WriteFile(file, []byte("name: book\ncopy: {chunk: 1MB, workers: 1}\nrouter: {type: none}\nuntil: following\n"), 0o600))
	m := move(t, "book", source, target, "-f", file)
	m.line("result", map[string]any{"phase": "following"})

	load := source.Conn(t)
	ctx, quiet := context.WithCancel(t.Context())
	loaded := make(chan error, 1)
	go func() {
		var err error
		for i := 100_000; err == nil && ctx.Err() == nil; i++ {
			_, err = load.Exec(t.Context(), fmt.Sprintf(`INSERT INTO spoilt VALUES (%[1]d, 'new'); DELETE FROM spoilt WHERE id = %[1]d - 99900;
				UPDATE spoilt SET v = v || '!' WHERE id = %[1]d %% 50000 + 1000; UPDATE other SET v = 'v%[1]d' WHERE id = %[1]d %% 100`, i))
		}
		loaded <- err
	}()

	spoil(t, target, `DELETE FROM spoilt WHERE id BETWEEN 51000 AND 51999; UPDATE spoilt SET v = 'not so' WHERE id % 7 = 0 AND id > 51000`)
	if out, status := once(t, t.TempDir(), "verify", m.name, "--api", "http://"+m.api); status != 1 || number(out["differences"]) == 0 {
		t.Fatalf("verify: status %d, %v", status, out)
	}
	const fileOf = `SELECT pg_relation_filenode('other')::text`
	before := target.Strings(t, fileOf)[0]
	if out, status := once(t, t.TempDir(), "resync", m.name, "spoild", "--api", "http://"+m.api); status != 3 || !strings.Contains(fmt.Sprint(out["hint"]), "spoilt") {
		t.Errorf("a table that is not there: status %d, %v", status, out)
	}
	m.drive("resync", "spoilt", "--wait")
	m.proved()
	m.says("copies table public.spoilt anew: asked for by")
	if after := target.Strings(t, fileOf)[0]; after != before {
		t.Error("the other table was copied, too")
	}

	// Killed in the middle, and asked for again while it is down to one.
	spoil(t, target, `DELETE FROM spoilt WHERE id BETWEEN 52000 AND 52999`)
	m.drive("resync", "spoilt")
	pgtest.Eventually(t, "a part of it to be there", func() bool {
		return target.Int(t, `SELECT count(*) FROM ficus.manifest_part`) > 0
	})
	m.stop(syscall.SIGKILL)
	m.start()
	m.line("result", map[string]any{"phase": "following"})
	pgtest.Eventually(t, "the copy to be done", func() bool { return m.drive("status")["recopy"] == nil })
	quiet()
	must(t, <-loaded)
	m.equal(`SELECT count(*) || ' ' || sum(hashtext(t::text)::bigint) FROM spoilt t`)
	m.proved()
	if n := strings.Count(m.text(), "copies table public.spoilt anew"); n != 1 {
		t.Errorf("the second process copied it %d times", n)
	}
}

// TestResyncWhere: phases in which it makes no sense refuse it; a paused migration keeps it for later,
// and one that failed goes on with it.
func TestResyncWhere(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'row' FROM generate_series(1, 100) i`)
	m := move(t, "cluster-move", source, target, "--yes", "--until", "following")
	m.line("result", map[string]any{"phase": "following"})
	refused := func(why string) {
		t.Helper()
		out, status := once(t, t.TempDir(), "resync", m.name, "t", "--api", "http://"+m.api)
		if text := fmt.Sprint(out["error"]); status != 3 || !strings.Contains(text, why) {
			t.Errorf("status %d, %v, want %q", status, out, why)
		}
	}

	m.drive("pause", "--wait")
	spoil(t, target, `DELETE FROM t WHERE id < 50`)
	m.drive("resync", "t")
	if s := m.drive("status"); s["recopy"] == nil || s["paused"] != true {
		t.Errorf("paused: %v", s)
	}
	m.drive("resume")
	m.equal(`SELECT count(*)::text FROM t`)

	// A row that the follower refuses stops the link; while somebody is connected the process stays.
	app, err := pgx.Connect(t.Context(), "postgresql://postgres@"+m.gateway+"/"+source.Name+"?sslmode=disable")
	must(t, err)
	spoil(t, target, `INSERT INTO t VALUES (1000, 'in the way')`)
	_, err = app.Exec(t.Context(), `INSERT INTO t VALUES (1000, 'mine')`)
	must(t, err)
	m.line("phase", map[string]any{"phase": "failed"})
	m.drive("resync", "t", "--wait")
	m.equal(`SELECT v FROM t WHERE id = 1000`)
	m.proved()
	must(t, app.Close(t.Context()))

	m.drive("promote", "--wait")
	refused("no link copies tables in phase promoted")
}
