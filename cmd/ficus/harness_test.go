package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// asProgram makes the test binary be the program, so that tests run what users run.
const asProgram = "FICUS_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) { // nobody has chosen
		_ = flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))) // they wait for states more than for a core
	}
	pgtest.Main(m)
}

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

// program returns a command that runs ficus.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), self, args...) // it is stopped in order
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// ficus starts the program with --json and its own data directory.
func ficus(t *testing.T, dir string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: program(t, append(args, "--json", "--data-dir", dir, "--log-level", "info")...), done: make(chan struct{}), more: make(chan struct{})}
	p.cmd.Stderr = &p.stderr
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
	deadline := time.After(pgtest.Patience)
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
	case <-time.After(pgtest.Patience):
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

// number is a value of a JSON line as a number; 0 when it is none.
func number(v any) float64 {
	n, _ := v.(float64)
	return n
}

// listen takes a loopback port, 0 for any that is free.
func listen(t *testing.T, port int) net.Listener {
	t.Helper()
	l, err := tryListen(t, port)
	must(t, err)
	return l
}

func tryListen(t *testing.T, port int) (net.Listener, error) {
	t.Helper()
	var config net.ListenConfig
	return config.Listen(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ports counts the ports that the tests of this binary were given; where it starts is by chance, so
// that other test binaries take others.
var ports atomic.Int64

// freeAddrs returns loopback addresses: two neighbouring free ports for the gateway, of which it gives
// the first, and one more. They lie below the range from which the system takes the ports of outgoing
// connections, so none is taken before the program listens there.
func freeAddrs(t *testing.T) (gateway, api string) {
	t.Helper()
	const low, high = 10_000, 32_000
	ports.CompareAndSwap(0, 1+rand.Int64N(high-low))
	for range 100 {
		port := low + int(ports.Add(3))%(high-low)
		free := true
		for i := range 3 {
			l, err := tryListen(t, port+i)
			if free = free && err == nil; err == nil {
				must(t, l.Close())
			}
		}
		if free {
			return fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("127.0.0.1:%d", port+2)
		}
	}
	t.Fatal("no three neighbouring free ports")
	return "", ""
}

// pgbench runs pgbench through the gateway until stopped; the result is its output.
func pgbench(t *testing.T, addr, database string, args ...string) (stop func() string) {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	must(t, err)
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "pgbench", append([]string{"-n", "-h", host, "-p", port, "-U", "postgres", "-T", "600", "-P", "1"}, append(args, database)...)...)
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
				t.Logf("pgbench, interrupted: %v", <-done)
			}
		}
		return out.String()
	}
	t.Cleanup(func() { stop() })
	return stop
}

// lines collects what a program prints, while it is being read.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
