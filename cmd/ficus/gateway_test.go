package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestGatewayProcess takes a database through a migration behind a gateway that was there before and is
// there afterwards, with a change of the gateway's process in between. pgbench notices nothing.
func TestGatewayProcess(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	pgtest.Load(t, source, "pgbench")
	doors, api := freeAddrs(t)
	dir, name := t.TempDir(), nameFor(source)
	socket := filepath.Join(t.TempDir(), "gw.sock")
	args := []string{"gateway", "--source", source.URL, "--target", target.URL, "--gateway-listen", doors, "--control", socket}
	first := ficus(t, filepath.Join(dir, "1"), args...)
	first.line("listening", nil)
	stop := pgbench(t, doors, source.Name, "-c", "4")

	file := filepath.Join(t.TempDir(), "book.yaml")
	text := fmt.Sprintf("name: %s\ngates: {approval: false, lag_window: 1s}\npromote: {reads: [50]}\nrouter: {type: gateway, control: [%q]}\n", name, socket)
	must(t, os.WriteFile(file, []byte(text), 0o600))
	run := ficus(t, filepath.Join(dir, "m"), "run", "-f", file, "--source", source.URL, "--target", target.URL, "--listen", api)
	r := run.line("result", map[string]any{"phase": "promoted"})
	if stall, ok := r["stall_ms"].(map[string]any); !ok || number(stall["clients"]) == 0 {
		t.Errorf("no client was held: %v", r)
	}

	second := ficus(t, filepath.Join(dir, "2"), args...)
	second.line("listening", nil)
	must(t, second.cmd.Process.Signal(syscall.SIGHUP))
	conn, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable", doors, source.Name))
	must(t, err)
	var database string
	must(t, conn.QueryRow(t.Context(), "SELECT current_database()").Scan(&database))
	if database != target.Name {
		t.Errorf("the new process leads to %s, want %s", database, target.Name)
	}
	must(t, conn.Close(t.Context()))
	out, status := once(t, dir, "rollback", name, "--wait", "--api", "http://"+api)
	if status != 0 || out["owner"] != "source" {
		t.Errorf("rollback: status %d, %v", status, out)
	}
	text = stop()
	for _, bad := range []string{"aborted", "ERROR", "FATAL", "connection to server was lost"} {
		if strings.Contains(text, bad) {
			t.Errorf("pgbench saw %q:\n%s", bad, tail(text, 3000))
		}
	}
	if status := first.wait(); status != 0 {
		t.Errorf("the first process ended with status %d", status)
	}
}

// TestGatewayUsage: what is missing is said before anything is opened.
func TestGatewayUsage(t *testing.T) {
	t.Parallel()
	for what, args := range map[string][]string{
		"no source":      {"gateway"},
		"no owner":       {"gateway", "--source", "postgresql://x@127.0.0.1/x", "--owner", "target"},
		"not a DSN":      {"gateway", "--source", "postgresql://%zz"},
		"no such button": {"gateway", "--source", "postgresql://x@127.0.0.1/x", "--poling", "x"},
	} {
		if out, status := once(t, t.TempDir(), args...); status != exitUsage {
			t.Errorf("%s: status %d, %v", what, status, out)
		}
	}
}
