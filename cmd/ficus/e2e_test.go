package main

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestUpgrade is the main job: pgbench runs through the gateway while its database moves to another
// major version, back, and forth again.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t, pgtest.Version(17))
	pgtest.Load(t, source, "pgbench")
	gateway, api := freeAddrs(t)
	dir, name := t.TempDir(), nameFor(source)
	run := ficus(t, dir, "run", "upgrade", "--name", name, "--source", source.URL, "--target", target.URL, "--yes", "-p", "reads=50,100", "--gateway-listen", gateway, "--listen", api)
	run.line("listening", nil)
	stop := pgbench(t, gateway, source.Name, "-c", "4")

	r := run.line("result", map[string]any{"phase": "promoted"})
	if r["rollback_safe"] != true {
		t.Errorf("result %v", r)
	}
	if v, ok := r["verify"].(map[string]any); !ok || v["differences"] != 0.0 || number(v["rows"]) < 10_000 {
		t.Errorf("verify %v", r["verify"])
	}
	grows := func(db *pgtest.Database) {
		t.Helper()
		count := `SELECT count(*) FROM public.pgbench_history`
		before := db.Int(t, count)
		pgtest.Eventually(t, "pgbench to write", func() bool { return db.Int(t, count) > before+20 })
	}
	drive := func(args ...string) map[string]any {
		t.Helper()
		out, status := once(t, dir, append(args, "--api", "http://"+api)...)
		if status != 0 {
			t.Fatalf("%s: status %d, %v", strings.Join(args, " "), status, out)
		}
		return out
	}
	grows(target)
	if v := drive("verify", name); v["differences"] != 0.0 || number(v["rows"]) < 10_000 {
		t.Errorf("over the reverse link: %v", v)
	}
	if s := drive("rollback", name, "--wait"); s["phase"] != "rolled-back" || s["owner"] != "source" {
		t.Errorf("after rollback: %v", s)
	}
	grows(source)
	if v := drive("verify", name); v["differences"] != 0.0 {
		t.Errorf("over the forward link: %v", v)
	}
	if s := drive("promote", name, "--wait"); s["phase"] != "promoted" || s["owner"] != "target" {
		t.Errorf("after the second promotion: %v", s)
	}
	grows(target)

	out := stop()
	for _, bad := range []string{"aborted", "ERROR", "FATAL", "connection to server was lost"} {
		if strings.Contains(out, bad) {
			t.Errorf("pgbench saw %q:\n%s", bad, tail(out, 3000))
		}
	}
	drive("verify", name)
	drive("complete", name, "--wait")
	if status := run.wait(); status != 0 {
		t.Errorf("run ended with status %d", status)
	}
	for _, db := range []*pgtest.Database{source, target} {
		if left := db.Strings(t, `SELECT slot_name FROM pg_replication_slots WHERE database = current_database() UNION ALL SELECT pubname FROM pg_publication`); len(left) > 0 {
			t.Errorf("%s: left behind %q", db.Name, left)
		}
	}
	if left := target.Strings(t, `SELECT nspname FROM pg_namespace WHERE nspname = 'ficus'`); len(left) > 0 {
		t.Errorf("schema ficus is left on the new owner")
	}
	if out, status := once(t, dir, "verify", "--source", source.URL, "--target", target.URL); status != 0 || out["differences"] != 0.0 {
		t.Errorf("at rest: status %d, %v", status, out)
	}
}

// TestChinook moves a real schema as it is.
func TestChinook(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	pgtest.Load(t, source, "chinook")
	gateway, api := freeAddrs(t)
	run := ficus(t, t.TempDir(), "run", "cluster-move", "--name", nameFor(source), "--source", source.URL, "--target", target.URL, "--yes", "--gateway-listen", gateway, "--listen", api, "-p", "reads=100")
	r := run.line("result", map[string]any{"phase": "promoted"})
	if r["rollback_safe"] != true || number(r["rows_copied"]) == 0 {
		t.Errorf("result %v", r)
	}
	if status := run.stop(os.Interrupt); status != 0 {
		t.Errorf("interrupted after the promotion: status %d", status)
	}
}

// TestKilledRunGoesOn: kill -9, then the same command again.
func TestKilledRunGoesOn(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	pgtest.Load(t, source, "pgbench")
	gateway, api := freeAddrs(t)
	dir := t.TempDir()
	args := []string{"run", "cluster-move", "--name", nameFor(source), "--source", source.URL, "--target", target.URL, "--yes", "--gateway-listen", gateway, "--listen", api, "-p", "reads=100"}
	for _, phase := range []string{"preparing", "copying", "catching-up", "verifying", "reads-switched", "promoting"} {
		p := ficus(t, dir, args...)
		p.line("phase", map[string]any{"phase": phase})
		p.stop(syscall.SIGKILL)
		source.Exec(t, `UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= 10`)
	}
	p := ficus(t, dir, args...)
	p.line("result", map[string]any{"phase": "promoted"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := source.Conn(t).Exec(ctx, `UPDATE public.pgbench_accounts SET abalance = 0 WHERE aid = 1`)
	if err == nil {
		t.Error("the old owner takes writes")
	}
}
