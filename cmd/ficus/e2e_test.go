package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// binary builds the program once for all tests that use it as its users do.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "ficus-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "ficus")
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// A process is a running ficus whose JSON lines are collected.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stderr bytes.Buffer
	done   chan struct{}
	err    error

	mu    sync.Mutex
	lines []map[string]any
	more  chan struct{}
}

// ficus starts the program with --json and its own data directory.
func ficus(t *testing.T, dir string, args ...string) *process {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.Command(path, append(args, "--json", "--data-dir", dir, "--log-level", "info")...), done: make(chan struct{}), more: make(chan struct{})}
	p.cmd.Stderr = &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, err := p.cmd.StdoutPipe()
	must(t, err)
	must(t, p.cmd.Start())
	go p.collect(stdout)
	t.Cleanup(func() {
		p.stop(os.Interrupt)
		if t.Failed() {
			t.Logf("ficus %s:\n%s\nstderr:\n%s", strings.Join(args, " "), p.text(), tail(p.stderr.String(), 6000))
		}
	})
	return p
}

func (p *process) collect(r io.Reader) {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line := map[string]any{}
		if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
			line = map[string]any{"type": "not-json", "text": scanner.Text()}
		}
		p.mu.Lock()
		p.lines = append(p.lines, line)
		close(p.more)
		p.more = make(chan struct{})
		p.mu.Unlock()
	}
	p.err = p.cmd.Wait()
	close(p.done)
}

// line waits for the first line from number `from` on that has the type and all the given values.
func (p *process) line(typ string, want map[string]any) map[string]any {
	p.t.Helper()
	deadline := time.After(2 * time.Minute)
	seen := 0
	for {
		p.mu.Lock()
		for ; seen < len(p.lines); seen++ {
			l := p.lines[seen]
			match := l["type"] == typ
			for k, v := range want {
				match = match && fmt.Sprint(l[k]) == fmt.Sprint(v)
			}
			if match {
				p.mu.Unlock()
				return l
			}
		}
		more := p.more
		p.mu.Unlock()
		select {
		case <-more:
		case <-p.done:
			p.mu.Lock()
			drained := seen == len(p.lines)
			p.mu.Unlock()
			if drained {
				p.t.Fatalf("ended (%v) before a line %s %v", p.err, typ, want)
			}
		case <-deadline:
			p.t.Fatalf("no line %s %v", typ, want)
		}
	}
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	for _, l := range p.lines {
		if l["type"] != "progress" {
			data, _ := json.Marshal(l)
			b.Write(data)
			b.WriteByte('\n')
		}
	}
	return tail(b.String(), 12000)
}

// stop signals the process and returns its exit status.
func (p *process) stop(sig os.Signal) int {
	select {
	case <-p.done:
	default:
		_ = p.cmd.Process.Signal(sig)
		select {
		case <-p.done:
		case <-time.After(30 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.done
		}
	}
	return p.cmd.ProcessState.ExitCode()
}

// wait waits for the process to end by itself and returns its exit status.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(2 * time.Minute):
		p.t.Fatal("does not end")
	}
	return p.cmd.ProcessState.ExitCode()
}

// once runs ficus to its end and returns its last line and exit status.
func once(t *testing.T, dir string, args ...string) (map[string]any, int) {
	t.Helper()
	p := ficus(t, dir, args...)
	status := p.wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) == 0 {
		return map[string]any{"stderr": p.stderr.String()}, status
	}
	return p.lines[len(p.lines)-1], status
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// freeAddrs returns loopback addresses of two neighbouring free ports and one more.
func freeAddrs(t *testing.T) (gateway, api string) {
	t.Helper()
	for range 50 {
		a, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		port := a.Addr().(*net.TCPAddr).Port
		b, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		if err != nil {
			must(t, a.Close())
			continue
		}
		c, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		defer func() { must(t, a.Close()); must(t, b.Close()); must(t, c.Close()) }()
		return a.Addr().String(), c.Addr().String()
	}
	t.Fatal("no two neighbouring free ports")
	return "", ""
}

// pgbench runs pgbench through the gateway until stopped; the result is its output.
func pgbench(t *testing.T, addr, database string, args ...string) (stop func() string) {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	must(t, err)
	cmd := exec.Command("pgbench", append([]string{"-n", "-h", host, "-p", port, "-U", "postgres", "-T", "600", "-P", "1"}, append(args, database)...)...)
	cmd.Env = append(os.Environ(), "PGOPTIONS=", "PGSSLMODE=prefer")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	stopped := false
	stop = func() string {
		if !stopped {
			stopped = true
			select {
			case err := <-done:
				t.Errorf("pgbench ended by itself: %v\n%s", err, tail(out.String(), 3000))
			default:
				_ = cmd.Process.Signal(os.Interrupt)
				<-done
			}
		}
		return out.String()
	}
	t.Cleanup(func() { stop() })
	return stop
}

// TestUpgrade is the main job: pgbench runs through the gateway while its database moves to another
// major version, back, and forth again.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t, pgtest.Version(17))
	pgtest.Load(t, source, "pgbench")
	gateway, api := freeAddrs(t)
	dir := t.TempDir()
	run := ficus(t, dir, "run", "upgrade", "--source", source.URL, "--target", target.URL, "--yes", "--gateway-listen", gateway, "--listen", api)
	run.line("listening", nil)
	stop := pgbench(t, gateway, source.Name, "-c", "4")

	r := run.line("result", map[string]any{"phase": "promoted"})
	if r["rollback_safe"] != true {
		t.Errorf("result %v", r)
	}
	if v, ok := r["verify"].(map[string]any); !ok || v["differences"] != 0.0 || v["rows"].(float64) < 100_000 {
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
	if v := drive("verify", "upgrade"); v["differences"] != 0.0 || v["rows"].(float64) < 100_000 {
		t.Errorf("over the reverse link: %v", v)
	}
	if s := drive("rollback", "upgrade", "--wait"); s["phase"] != "rolled-back" || s["owner"] != "source" {
		t.Errorf("after rollback: %v", s)
	}
	grows(source)
	if v := drive("verify", "upgrade"); v["differences"] != 0.0 {
		t.Errorf("over the forward link: %v", v)
	}
	if s := drive("promote", "upgrade", "--wait"); s["phase"] != "promoted" || s["owner"] != "target" {
		t.Errorf("after the second promotion: %v", s)
	}
	grows(target)

	out := stop()
	for _, bad := range []string{"aborted", "ERROR", "FATAL", "connection to server was lost"} {
		if strings.Contains(out, bad) {
			t.Errorf("pgbench saw %q:\n%s", bad, tail(out, 3000))
		}
	}
	drive("verify", "upgrade")
	drive("complete", "upgrade", "--wait")
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
	run := ficus(t, t.TempDir(), "run", "cluster-move", "--source", source.URL, "--target", target.URL, "--yes", "--gateway-listen", gateway, "--listen", api, "-p", "reads=100")
	r := run.line("result", map[string]any{"phase": "promoted"})
	if r["rollback_safe"] != true || r["rows_copied"].(float64) == 0 {
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
	args := []string{"run", "cluster-move", "--source", source.URL, "--target", target.URL, "--yes", "--gateway-listen", gateway, "--listen", api, "-p", "reads=100"}
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
