package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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

// A follower is mended while a client writes to the owner: the rows that a stranger damaged are right
// afterwards, the link goes on over them, and the journal says who asked; the same databases, given by
// their addresses, are refused. The watch over writes of strangers tells of theirs, and not of the mending.
func TestVerifyMendsAFollower(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, v text, n int DEFAULT 0); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i`)
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "live.yaml")
	name := nameFor(source)
	must(t, os.WriteFile(file, fmt.Appendf(nil, "name: live\nsource: %q\ntarget: %q\nfollow: {verify: live}\n", source.URL, target.URL), 0o600))
	gateway, api := freeAddrs(t)
	p := ficus(t, dir, "run", "-f", file, "--name", name, "--source", source.URL, "--target", target.URL, "--listen", api, "--gateway-listen", gateway, "--until", "following", "--yes")
	p.line("phase", map[string]any{"phase": "following"})
	pgtest.Eventually(t, "a slot that watches the target", func() bool {
		return target.Int(t, "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'ficus_watch_%' AND database = current_database() AND confirmed_flush_lsn IS NOT NULL") == 1
	})
	sql := filepath.Join(dir, "mend.sql")
	verify := func(more ...string) (map[string]any, int) {
		t.Helper()
		return once(t, dir, append([]string{"verify", name, "--api", "http://" + api}, more...)...)
	}

	ctx, stop := context.WithCancel(t.Context())
	conn, written := source.Conn(t), make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if _, err := conn.Exec(context.WithoutCancel(ctx), `UPDATE public.t SET n = n + 1 WHERE id % 100 = 7`); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	target.Exec(t, `SET session_replication_role = replica; UPDATE t SET v = 'stranger' WHERE id IN (7, 8)`)
	if out, status := verify(); status != 1 || out["verdict"] != "different" || number(out["differences"]) == 0 {
		t.Errorf("damaged: status %d, %v", status, out)
	}
	if out, status := verify("--repair", sql); status != 1 || out["mended"] != nil {
		t.Errorf("written down: status %d, %v", status, out)
	}
	if text, err := os.ReadFile(sql); err != nil || !strings.Contains(string(text), "stranger") {
		t.Errorf("%s, %v", text, err)
	}
	refused(t, dir, 3, "nothing is mended", "--apply mends at one instant", append(append([]string{"verify"}, pair(source.URL, target.URL)...), "--repair", sql, "--apply")...)
	target.Exec(t, `SET session_replication_role = replica; UPDATE t SET v = 'stranger' WHERE id IN (7, 8); DELETE FROM t WHERE id = 9; INSERT INTO t VALUES (5000, 'x')`)
	out, status := verify("--repair", sql, "--apply")
	mended, _ := out["mended"].(map[string]any)
	if status != 0 || number(mended["rows"]) < 3 {
		t.Errorf("mended: status %d, %v", status, out)
	}
	stop()
	must(t, <-written)
	if out, status := verify(); status != 0 || out["verdict"] != "equal" {
		t.Errorf("afterwards: status %d, %v", status, out)
	}
	target.Exec(t, `SET session_replication_role = replica; UPDATE t SET v = v WHERE id = 999`) // after which nothing older is untold
	pgtest.Eventually(t, "a warning", func() bool { return strings.Contains(p.text(), "update of public.t id=999") })
	told := map[string]bool{}
	for _, m := range regexp.MustCompile(`somebody else wrote to the target: [a-z]+ of public.t id=\d+[^,]* at [^,]*`).FindAllString(p.text(), -1) {
		told[m] = true
	}
	if len(told) != 3 {
		t.Errorf("strangers wrote three times, told was %v", told)
	}
	if !strings.Contains(p.text(), "rows mended at") {
		t.Errorf("the journal does not tell of it:\n%s", p.text())
	}
	target.Exec(t, `SET session_replication_role = replica; ALTER TABLE t ALTER v SET DEFAULT 'y'`)
	if out, status := verify(); status != 1 || number(out["definitions"]) != 1 || number(out["differences"]) != 0 {
		t.Errorf("another definition: status %d, %v", status, out)
	}
	if out, status := verify("--rows-only"); status != 0 {
		t.Errorf("rows only: status %d, %v", status, out)
	}
	p.stop(os.Interrupt)
}

// A comparison of a migration is paused by one person and resumed by another, in sight.
func TestVerifyPause(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)`)
	dir, name := t.TempDir(), nameFor(source)
	gateway, api := freeAddrs(t)
	p := ficus(t, dir, append([]string{"run", "upgrade", "--name", name, "--yes", "--until", "following", "--gateway-listen", gateway, "--listen", api}, pair(source.URL, target.URL)...)...)
	p.line("phase", map[string]any{"phase": "following"})
	url := []string{"--api", "http://" + api}
	refused(t, dir, 3, "no comparison runs", "", append([]string{"verify", name, "--pause"}, url...)...)

	lock := target.Conn(t)
	for _, sql := range []string{"BEGIN", "LOCK TABLE public.t"} { // it cannot read on before it is paused
		_, err := lock.Exec(t.Context(), sql)
		must(t, err)
	}
	type result struct {
		out    map[string]any
		status int
	}
	done := make(chan result, 1)
	go func() {
		out, status := once(t, dir, append([]string{"verify", name, "--rows-only"}, url...)...)
		done <- result{out, status}
	}()
	pgtest.Eventually(t, "a pause", func() bool {
		_, status := once(t, dir, append([]string{"verify", name, "--pause"}, url...)...)
		return status == 0
	})
	_, err := lock.Exec(t.Context(), "ROLLBACK")
	must(t, err)
	status := func() map[string]any {
		out, _ := once(t, dir, append([]string{"status", name}, url...)...)
		return out
	}
	if held, _ := status()["comparison_paused"].(map[string]any); held["by"] == "" || held["by"] == nil {
		t.Errorf("status: %v", status())
	}
	pgtest.Eventually(t, "snapshots that wait", func() bool {
		return source.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ficus/verify' AND datname = current_database() AND state = 'idle in transaction'`) > 0
	})
	select {
	case r := <-done:
		t.Errorf("it did not wait: %v", r)
	default:
	}
	once(t, dir, append([]string{"verify", name, "--resume"}, url...)...)
	if r := <-done; r.status != 0 || r.out["verdict"] != "equal" {
		t.Errorf("status %d, %v", r.status, r.out)
	}
	if status()["comparison_paused"] != nil {
		t.Errorf("status: %v", status())
	}
	p.stop(os.Interrupt)
}
