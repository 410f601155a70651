package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// What a person does who needs a proof of two databases: compare, keep the evidence, look at what
// differs, mend it, compare again.
func TestVerifyDatabases(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	const create = `CREATE TABLE t (id serial PRIMARY KEY, v text NOT NULL); INSERT INTO t (v) SELECT 'v' || i FROM generate_series(1, 1000) i; CREATE TABLE k (v text); INSERT INTO k VALUES ('a'), ('b')`
	source.Exec(t, create)
	target.Exec(t, create)
	dir := t.TempDir()
	page, data, sql := filepath.Join(dir, "proof.html"), filepath.Join(dir, "proof.json"), filepath.Join(dir, "mend.sql")
	verify := func(more ...string) (map[string]any, int) {
		t.Helper()
		return once(t, dir, append(append([]string{"verify"}, pair(source.URL, target.URL)...), more...)...)
	}
	want := func(status int, verdict string, more ...string) map[string]any {
		t.Helper()
		out, got := verify(more...)
		if got != status || out["verdict"] != verdict {
			t.Errorf("%q: status %d, %v, want %d, %s", more, got, out, status, verdict)
		}
		return out
	}

	want(0, "equal", "--evidence", page, "--evidence", data)
	for _, file := range []string{page, data} {
		if out, status := once(t, dir, "verify", "--check", file); status != 0 || out["altered"] != false {
			t.Errorf("%s: status %d, %v", file, status, out)
		}
		text, err := os.ReadFile(file)
		must(t, err)
		must(t, os.WriteFile(file, []byte(strings.ReplaceAll(string(text), "1002", "1003")), 0o600))
		if out, status := once(t, dir, "verify", "--check", file); status != 1 || out["altered"] != true {
			t.Errorf("%s, altered: status %d, %v", file, status, out)
		}
	}

	target.Exec(t, `UPDATE t SET v = 'secret' WHERE id = 7; DELETE FROM t WHERE id = 8; DELETE FROM k WHERE v = 'b'; INSERT INTO t VALUES (2000, 'x')`)
	if out := want(1, "different", "--repair", sql, "--evidence", page); out["differences"] != 4.0 {
		t.Errorf("%v", out)
	}
	text, err := os.ReadFile(page)
	must(t, err)
	if strings.Contains(string(text), "secret") {
		t.Error("the evidence shows a value that nobody asked for")
	}
	want(1, "different") // it was only written down
	if out, status := verify("--repair", sql, "--apply"); status != 0 || out["repaired"] != 4.0 {
		t.Errorf("status %d, %v", status, out)
	}
	want(0, "equal", "--checkpoint", filepath.Join(dir, "checkpoint"))
	if _, err := os.Stat(filepath.Join(dir, "checkpoint")); err == nil {
		t.Error("the checkpoint outlived the comparison")
	}

	target.Exec(t, `ALTER TABLE t ALTER v DROP NOT NULL`)
	want(1, "different")
	want(0, "equal", "--rows-only")
	target.Exec(t, `ALTER TABLE t ALTER v SET NOT NULL; SELECT setval('t_id_seq', 1)`)
	if out := want(1, "different"); out["sequences_behind"] != 1.0 {
		t.Errorf("%v", out)
	}
	refused(t, dir, 2, "--apply without --repair", "", append(append([]string{"verify"}, pair(source.URL, target.URL)...), "--apply")...)
}
