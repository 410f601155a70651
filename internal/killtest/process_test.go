package killtest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/ficus-migrate/ficus/migrate"
)

// build makes the program, once.
func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "ficus")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./cmd/ficus")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build ficus: %v\n%s", err, out)
	}
	return program
}

// A process is one "ficus run".
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended

	mu    sync.Mutex
	lines []line // that tell of phases and steps
	said  []string
	more  chan struct{}
}

// A line is what ficus prints of an event.
type line struct {
	Type    string        `json:"type"`
	Phase   migrate.Phase `json:"phase"`
	Message string        `json:"message"`
}

func start(ctx context.Context, program string, args ...string) (*process, error) {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p := &process{cmd: cmd, done: make(chan struct{}), more: make(chan struct{})}
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { // ends with the process
		_ = cmd.Wait()
		_ = in.Close()
	}()
	go p.collect(out)
	return p, nil
}

func (p *process) collect(out io.Reader) {
	defer close(p.done)
	const kept = 400
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l line
		isJSON := json.Unmarshal(lines.Bytes(), &l) == nil
		p.mu.Lock()
		if l.Type != "progress" {
			p.said = append(p.said[max(0, len(p.said)-kept):], lines.Text())
		}
		if isJSON && l.Type != "progress" {
			p.lines = append(p.lines, l)
			close(p.more)
			p.more = make(chan struct{})
		}
		p.mu.Unlock()
	}
}

// at returns how many lines there are, as a mark for next.
func (p *process) at() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.lines)
}

// next waits for a line from number mark on. It returns false when the process ended or ctx did.
func (p *process) next(ctx context.Context, mark int, wanted func(line) bool) bool {
	for {
		p.mu.Lock()
		for ; mark < len(p.lines); mark++ {
			if wanted(p.lines[mark]) {
				p.mu.Unlock()
				return true
			}
		}
		more := p.more
		p.mu.Unlock()
		select {
		case <-more:
		case <-p.done:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL)
	<-p.done
}

func (p *process) status() int { return p.cmd.ProcessState.ExitCode() }

func (p *process) tail(lines int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.said[max(0, len(p.said)-lines):], "\n")
}

// run runs another command of the program to its end and returns what it printed last.
func run(ctx context.Context, program string, args ...string) (last map[string]any, status int, err error) {
	cmd := exec.CommandContext(ctx, program, args...)
	out, err := cmd.CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if json.Unmarshal([]byte(lines[len(lines)-1]), &last) != nil {
		return nil, cmd.ProcessState.ExitCode(), fmt.Errorf("%w: %s", err, out)
	}
	return last, cmd.ProcessState.ExitCode(), nil
}
