package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	stopTimeout = 30 * time.Second      // from SIGINT to SIGKILL
	sampleEvery = 50 * time.Millisecond // how often a process is asked for its memory
	maxLine     = 4 << 20               // of JSON
)

// A Process is a running program whose output, one JSON object per line or anything else, is kept.
type Process struct {
	cmd    *exec.Cmd
	stderr tailBuffer
	done   chan struct{} // closed when it has ended and all it printed is read
	err    error         // how it ended; valid once done

	mu    sync.Mutex
	lines []map[string]any
	more  chan struct{} // closed when a line comes
	peak  int64
}

// Start runs a program. It gets SIGINT when ctx ends, SIGKILL a while later.
func Start(ctx context.Context, program string, args ...string) (*Process, error) {
	p := &Process{cmd: command(ctx, program, args...), done: make(chan struct{}), more: make(chan struct{})}
	p.cmd.Stderr = &p.stderr
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	sampled := make(chan struct{})
	go func() { // until the process has ended
		defer close(sampled)
		p.sample()
	}()
	go func() { // until the process has closed its output and ended
		p.read(stdout)
		err := p.cmd.Wait()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", program, err, p.stderr.last())
		}
		p.err = err
		close(p.done)
		<-sampled
	}()
	return p, nil
}

// command returns a program as it is run everywhere here: out of reach of the terminal's Ctrl-C, with
// no settings from the environment that would be somebody's own.
func command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "PG") && !strings.HasPrefix(e, "FICUS_") || strings.HasPrefix(e, "FICUS_PG_BIN=") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = stopTimeout
	return cmd
}

func (p *Process) read(r io.Reader) {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, maxLine)
	for scanner.Scan() {
		line := map[string]any{}
		if json.Unmarshal(scanner.Bytes(), &line) != nil {
			line = map[string]any{"text": scanner.Text()}
		}
		p.mu.Lock()
		p.lines = append(p.lines, line)
		close(p.more)
		p.more = make(chan struct{})
		p.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, r) // after a line that is too long
}

// sample asks for the memory again and again: when a process has ended it is too late.
func (p *Process) sample() {
	every := time.NewTicker(sampleEvery)
	defer every.Stop()
	for {
		p.PeakRSS()
		select {
		case <-every.C:
		case <-p.done:
			return
		}
	}
}

// Line waits for the first line that has all the given values, or until the process has ended.
func (p *Process) Line(ctx context.Context, want map[string]any) (map[string]any, error) {
	for seen := 0; ; {
		ended := p.over()
		p.mu.Lock()
		lines, more := p.lines[seen:], p.more
		p.mu.Unlock()
		for _, line := range lines {
			if matches(line, want) {
				return line, nil
			}
		}
		if ended { // and all it printed was looked at
			return nil, fmt.Errorf("ended before it printed %v: %w", want, p.failure())
		}
		seen += len(lines)
		select {
		case <-more:
		case <-p.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (p *Process) over() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func matches(line, want map[string]any) bool {
	for k, v := range want {
		if line[k] != v {
			return false
		}
	}
	return true
}

// failure is never nil.
func (p *Process) failure() error {
	if p.err != nil {
		return p.err
	}
	return errors.New("exit status 0")
}

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.done }

// Wait waits until the process ends by itself; its error says what it printed last.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Stop ends the process as Ctrl-C does, and by force when that takes too long.
func (p *Process) Stop() error {
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.err
	case <-timer.C:
	}
	_ = p.cmd.Process.Kill() // it may have ended just now
	<-p.done
	return fmt.Errorf("%s did not end within %s of an interrupt: %s", p.cmd.Path, stopTimeout, p.stderr.last())
}

// CPU returns the processor time so far; once it has ended, with that of its children.
func (p *Process) CPU() time.Duration {
	select {
	case <-p.done:
		if s := p.cmd.ProcessState; s != nil {
			return s.UserTime() + s.SystemTime()
		}
		return 0
	default:
		return processCPU(p.cmd.Process.Pid)
	}
}

// PeakRSS returns the most memory that the process has had so far, in bytes.
func (p *Process) PeakRSS() int64 {
	now := peakRSS(p.cmd.Process.Pid)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.peak = max(p.peak, now)
	return p.peak
}

// Pipe runs two programs, the first writing into the second, and returns their processor time.
func Pipe(ctx context.Context, from, to []string) (time.Duration, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	var said [2]tailBuffer
	a, b := command(ctx, from[0], from[1:]...), command(ctx, to[0], to[1:]...)
	a.Stdout, a.Stderr, b.Stdin, b.Stderr = w, &said[0], r, &said[1]
	errA, errB := a.Start(), b.Start()
	_, _ = w.Close(), r.Close() // the programs have ends of their own
	if errA == nil {
		errA = a.Wait()
	}
	if errB == nil {
		errB = b.Wait()
	}
	var cpu time.Duration
	for _, cmd := range []*exec.Cmd{a, b} {
		if cmd.ProcessState != nil {
			cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		}
	}
	if err := errors.Join(errA, errB); err != nil {
		return cpu, fmt.Errorf("%s | %s: %w: %s %s", from[0], to[0], err, said[0].last(), said[1].last())
	}
	return cpu, nil
}

// Run runs a program to its end and returns what it printed and its processor time.
func Run(ctx context.Context, program string, args ...string) (string, time.Duration, error) {
	cmd := command(ctx, program, args...)
	var out, said tailBuffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	var cpu time.Duration
	if s := cmd.ProcessState; s != nil {
		cpu = s.UserTime() + s.SystemTime()
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", program, err, said.last())
	}
	return out.text(), cpu, err
}

// A tailBuffer keeps the end of what is written to it. Safe for concurrent use.
type tailBuffer struct {
	mu   sync.Mutex
	data []byte
}

const tailSize = 64 << 10

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p...)
	if extra := len(b.data) - 2*tailSize; extra > 0 {
		b.data = bytes.Clone(b.data[len(b.data)-tailSize:])
	}
	return len(p), nil
}

func (b *tailBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.data)
}

// last returns the last few lines as one.
func (b *tailBuffer) last() string {
	lines := strings.Split(strings.TrimSpace(b.text()), "\n")
	return strings.Join(lines[max(0, len(lines)-6):], "; ")
}
