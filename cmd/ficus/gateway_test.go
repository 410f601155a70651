package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
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
	shown, err := program(t, "status", name, "--api", "http://"+api).Output()
	must(t, err)
	if clients := regexp.MustCompile(`4 connected, \d+ held, [\d,.kM]+ transactions, [1-9]\d* moved, 0 ended, 0 refused; [1-9]\d* waited p50 `); !clients.Match(shown) {
		t.Errorf("status shows of the gateway's clients:\n%s", shown)
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

// TestGatewayDatabases: of two databases behind one gateway one is moved to another cluster, and pgbench on
// neither notices anything. The gateway shows the figures of each.
func TestGatewayDatabases(t *testing.T) {
	t.Parallel()
	source, target, other := pgtest.DB(t), pgtest.DB(t), pgtest.DB(t)
	pgtest.Load(t, source, "pgbench")
	pgtest.Load(t, other, "pgbench")
	doors, api := freeAddrs(t)
	metrics, _ := freeAddrs(t)
	file := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	socket := filepath.Join(t.TempDir(), "gw.sock")
	databases := file("databases.yaml", fmt.Sprintf("databases:\n  shop: {source: %q, target: %q}\n  billing: {source: %q, max_clients: 20}\n", source.URL, target.URL, other.URL))
	gw := ficus(t, t.TempDir(), "gateway", "--databases", databases, "--gateway-listen", doors, "--control", socket, "--metrics-listen", metrics)
	gw.line("listening", nil)
	stops := []func() string{pgbench(t, doors, "shop", "-c", "2"), pgbench(t, doors, "billing", "-c", "2")}

	book := file("book.yaml", fmt.Sprintf("name: %s\ngates: {approval: false, lag_window: 1s}\npromote: {reads: [50]}\nrouter: {control: [%q], database: shop}\n", nameFor(source), socket))
	run := ficus(t, t.TempDir(), "run", "-f", book, "--source", source.URL, "--target", target.URL, "--listen", api)
	run.line("result", map[string]any{"phase": "promoted"})
	for name, want := range map[string]string{"shop": target.Name, "billing": other.Name} {
		conn, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable", doors, name))
		must(t, err)
		var got string
		must(t, conn.QueryRow(t.Context(), "SELECT current_database()").Scan(&got))
		if got != want {
			t.Errorf("%s leads to %s, want %s", name, got, want)
		}
		must(t, conn.Close(t.Context()))
	}
	if _, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable", doors, source.Name)); pg.Code(err) != "3D000" {
		t.Errorf("a database that is not in the file: %v", err)
	}
	var text string
	for _, want := range []string{
		`ficus_gateway_moved_total{database="billing"} 0`, `ficus_gateway_clients{database="billing"} 2`, `ficus_gateway_clients{database="shop"} 2`,
		`ficus_gateway_stall_seconds{database="shop",quantile="1"} 0.`, `ficus_gateway_stall_seconds{database="billing",quantile="1"} 0` + "\n",
	} {
		pgtest.Eventually(t, "metrics to say "+want, func() bool {
			text = get(t, "http://"+metrics+"/metrics")
			return strings.Contains(text, want)
		})
	}
	if moved := regexp.MustCompile(`ficus_gateway_moved_total\{database="shop"\} [1-9]`); !moved.MatchString(text) {
		t.Errorf("metrics do not count the shop's clients that moved:\n%s", text)
	}
	if got := get(t, "http://"+metrics+"/readyz"); !strings.Contains(got, `"status":"ok"`) {
		t.Errorf("readyz: %s", got)
	}
	for _, stop := range stops {
		text := stop()
		for _, bad := range []string{"aborted", "ERROR", "FATAL", "connection to server was lost"} {
			if strings.Contains(text, bad) {
				t.Errorf("pgbench saw %q:\n%s", bad, tail(text, 3000))
			}
		}
	}
}

// TestGatewayUsage: what is missing is said before anything is opened.
func TestGatewayUsage(t *testing.T) {
	t.Parallel()
	odd := filepath.Join(t.TempDir(), "odd.yaml")
	must(t, os.WriteFile(odd, []byte("databases: {shop: {source: postgresql://x@127.0.0.1/x, poling: x}}\n"), 0o600))
	empty := filepath.Join(t.TempDir(), "empty.yaml")
	must(t, os.WriteFile(empty, []byte("databases: {}\n"), 0o600))
	for what, args := range map[string][]string{
		"no such key":    {"gateway", "--databases", odd},
		"no database":    {"gateway", "--databases", empty},
		"no file":        {"gateway", "--databases", odd + ".none"},
		"both":           {"gateway", "--databases", odd, "--source", "postgresql://x@127.0.0.1/x"},
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
