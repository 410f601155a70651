package main

import (
	"fmt"
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

// A follower that is compared while it lives: what a stranger does to it becomes a warning, and what
// the link does not. Catches: taking the link's transactions for a stranger's.
func TestFollowLive(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i`)
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "live.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, "name: live\nsource: %q\ntarget: %q\nfollow: {verify: live}\n", source.URL, target.URL), 0o600))
	p := ficus(t, dir, "follow", "-f", file, "--name", nameFor(source), "--source", source.URL, "--target", target.URL, "--log-level", "info")
	p.line("phase", map[string]any{"phase": "following"})
	source.Exec(t, `INSERT INTO t SELECT i, 'w' FROM generate_series(1001, 1100) i; UPDATE t SET v = 'x' WHERE id < 50; DELETE FROM t WHERE id = 60`)
	pgtest.Eventually(t, "a slot that watches the target", func() bool {
		return target.Int(t, "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'ficus_watch_%' AND database = current_database() AND confirmed_flush_lsn IS NOT NULL") == 1
	})
	pgtest.Eventually(t, "a pass", func() bool { return strings.Contains(p.stderr.String(), "every row looked at") })
	if text := p.text(); strings.Contains(text, "somebody else") || strings.Contains(text, "rows differ") {
		t.Errorf("a false alarm:\n%s", text)
	}
	target.Exec(t, `SET session_replication_role = replica; UPDATE t SET v = 'stranger' WHERE id = 7`)
	pgtest.Eventually(t, "a warning", func() bool {
		return strings.Contains(p.text(), "somebody else wrote to the target: update of public.t id=7")
	})
	if strings.Contains(p.text(), "stranger") {
		t.Error("the warning shows a value")
	}
	p.stop(os.Interrupt)
	pgtest.Eventually(t, "the slot to go with its session", func() bool {
		return target.Int(t, "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'ficus_watch_%' AND database = current_database()") == 0
	})
}

// The evidence of a running migration is the report that its process made, and each report of the
// chain names the one before it.
func TestVerifyMigrationKeepsEvidence(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i`)
	dir := t.TempDir()
	gateway, api := freeAddrs(t)
	p := ficus(t, dir, append([]string{"run", "upgrade", "--name", nameFor(source), "--yes", "--until", "following", "--gateway-listen", gateway, "--listen", api}, pair(source.URL, target.URL)...)...)
	p.line("phase", map[string]any{"phase": "following"})
	var before any = ""
	for range 2 {
		page := filepath.Join(dir, "proof.html")
		out, status := once(t, dir, "verify", nameFor(source), "--api", "http://"+api, "--evidence", page)
		if status != 0 || out["digest"] == "" {
			t.Fatalf("status %d, %v", status, out)
		}
		check, status := once(t, dir, "verify", "--check", page)
		if status != 0 || check["digest"] != out["digest"] || check["previous"] != before {
			t.Errorf("status %d, %v, want digest %v after %v", status, check, out["digest"], before)
		}
		before = check["digest"]
	}
	p.stop(os.Interrupt)
}
