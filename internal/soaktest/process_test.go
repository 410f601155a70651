package soaktest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// build makes the program, once.
func build(t *testing.T) string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "ficus")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./cmd/ficus")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build ficus: %v\n%s", err, out)
	}
	return program
}

// A process is one "ficus follow".
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended

	mu    sync.Mutex
	at    string   // its phase
	lines []string // the last it printed
	more  chan struct{}
}

// start follows with the round's directory, over the bad network.
func (s *soak) start(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), s.program, "follow", "--name", s.name, "--json", "--data-dir", s.dir, "--log-level", "info",
		"--apply-workers", strconv.Itoa(1+2*s.r.IntN(2)), "--source", url(s.source.DSN(s.db.Name)), "--target", url(s.target.DSN(s.copyOf.Name)))
	p := &process{cmd: cmd, done: make(chan struct{}), more: make(chan struct{})}
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process
		_ = cmd.Wait()
		_ = in.Close()
	}()
	go p.collect(out)
	t.Cleanup(p.kill)
	s.ficus = p
}

func (p *process) collect(out io.Reader) {
	defer close(p.done)
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var event struct{ Type, Phase string }
		isJSON := json.Unmarshal(lines.Bytes(), &event) == nil
		p.mu.Lock()
		if isJSON && event.Type == "phase" {
			p.at = event.Phase
			close(p.more)
			p.more = make(chan struct{})
		}
		if !isJSON || event.Type != "progress" {
			p.lines = append(p.lines[max(0, len(p.lines)-60):], lines.Text())
		}
		p.mu.Unlock()
	}
}

func (p *process) phase() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at
}

// reaches waits until ficus has printed a phase, or one that comes later.
func (p *process) reaches(t *testing.T, phase string) {
	t.Helper()
	deadline := time.After(catchUp)
	for {
		p.mu.Lock()
		at, more := p.at, p.more
		p.mu.Unlock()
		if at == phase || at == "following" {
			return
		}
		select {
		case <-more:
		case <-p.done:
			t.Fatalf("ficus ended before it was %s:\n%s", phase, p.tail())
		case <-deadline:
			t.Fatalf("ficus is %s and not %s after %s:\n%s", at, phase, catchUp, p.tail())
		}
	}
}

func (p *process) tail() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

// kill ends the process at once, and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL) // which a stopped one gets, too
	<-p.done
}

// interrupt ends it in order and returns its status.
func (p *process) interrupt() int {
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		p.kill()
		return -1
	}
	return p.cmd.ProcessState.ExitCode()
}

// run runs another command of the program.
func (s *soak) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), catchUp)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.program, append(args, "--json", "--data-dir", t.TempDir())...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// observe notes the most memory that ficus has used, where the system tells.
func (s *soak) observe() {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.ficus.cmd.Process.Pid))
	if err != nil {
		return // it has ended, or this is not Linux
	}
	for line := range bytes.Lines(status) {
		rest, ok := bytes.CutPrefix(line, []byte("VmHWM:"))
		if !ok {
			continue
		}
		fields := strings.Fields(string(rest))
		if kb, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
			s.rss = max(s.rss, kb<<10)
		}
	}
}
