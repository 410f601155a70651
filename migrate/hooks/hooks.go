// Package hooks runs what a playbook wants to happen around phases: commands and webhooks before a
// phase, which may refuse it, and after one; and notices to people.
//
// What comes after a phase is told while the process lives, in order, each at most a few times until it
// is taken. A notice that is lost with the process is not made up for: the journal is the record.
package hooks

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
)

// A Hook runs before or after a phase. Exactly one of Before and After, and one of Command and URL, is given.
type Hook struct {
	Name          string
	Before, After migrate.Phase
	// Command is a program and its arguments. It gets FICUS_* variables, and the call as JSON on its
	// standard input. A status other than 0 refuses the phase.
	Command []string
	// URL gets the call as JSON in a POST. An answer other than 2xx refuses the phase.
	URL string
	// Timeout is how long it may take. Default 30 s.
	Timeout time.Duration
}

// A Notice tells people.
type Notice struct {
	URL string
	// Slack sends {"text": …}, which Slack and what is compatible with it shows; otherwise a [Call].
	Slack bool
	// On are phases, "approval" for a promotion that waits for one, and "warning". Default: all of them.
	On []string
}

// A Call is what hooks and notices are told.
type Call struct {
	Hook      string        `json:"hook,omitempty"`
	Event     string        `json:"event"` // before, after, phase, approval, warning
	Migration string        `json:"migration"`
	Phase     migrate.Phase `json:"phase"`          // that begins, or for after has ended
	From      migrate.Phase `json:"from,omitempty"` // before: the present one
	Owner     migrate.Side  `json:"owner"`
	Epoch     int64         `json:"epoch"`
	// Rehearsal says that the promotion which is about to begin turns back before the point of no return.
	Rehearsal bool   `json:"rehearsal,omitempty"`
	Message   string `json:"message,omitempty"`
}

// Config holds what a Runner does.
type Config struct {
	Hooks   []Hook
	Notices []Notice
	// Log receives what could not be told. Default: nothing.
	Log *slog.Logger
}

// A Runner runs hooks and sends notices.
type Runner struct {
	cfg Config

	mu struct {
		sync.Mutex
		told int64         // the last event that Watch is done with
		more chan struct{} // closed and replaced when told changes
	}
}

const (
	defaultTimeout = 30 * time.Second
	noticeTimeout  = 10 * time.Second
	noticeTries    = 3
)

// New checks a Config.
func New(cfg Config) (*Runner, error) {
	for _, h := range cfg.Hooks {
		switch {
		case h.Name == "":
			return nil, errors.New("a hook has no name")
		case (h.Before == "") == (h.After == ""):
			return nil, fmt.Errorf("hook %s: it needs one of before and after", h.Name)
		case (len(h.Command) == 0) == (h.URL == ""):
			return nil, fmt.Errorf("hook %s: it needs one of command and http", h.Name)
		}
	}
	for _, n := range cfg.Notices {
		if n.URL == "" {
			return nil, errors.New("a notice has no address")
		}
	}
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	r := &Runner{cfg: cfg}
	r.mu.more = make(chan struct{})
	return r, nil
}

// Before runs the hooks of a phase that is about to begin, one after the other. An error refuses it.
func (r *Runner) Before(ctx context.Context, s migrate.Status, next migrate.Phase) error {
	for _, h := range r.cfg.Hooks {
		if h.Before != next {
			continue
		}
		call := Call{Hook: h.Name, Event: "before", Migration: s.Name, Phase: next, From: s.Phase, Owner: s.Owner, Epoch: s.Epoch, Rehearsal: s.Rehearses && next == migrate.Promoting}
		if err := h.run(ctx, call); err != nil {
			return hint.Wrap(fmt.Errorf("hook %s refuses phase %s: %w", h.Name, next, err), "mend what it complains of, then: ficus resume %s", s.Name)
		}
	}
	return nil
}

// A Source is a migration whose events are told.
type Source interface {
	Status() migrate.Status
	Subscribe(ctx context.Context, after int64) iter.Seq2[migrate.Event, error]
}

// Watch runs the hooks after phases, and sends notices, of what comes after s, until ctx is done.
func (r *Runner) Watch(ctx context.Context, m Source, s migrate.Status) {
	last := s.Phase
	r.mu.Lock()
	r.mu.told = s.Seq
	r.mu.Unlock()
	for e, err := range m.Subscribe(ctx, s.Seq) {
		if err != nil {
			r.cfg.Log.LogAttrs(ctx, slog.LevelError, "hooks do not see the journal any more", slog.Any("err", err))
			return
		}
		if call, ok := callFor(e); ok {
			s := m.Status()
			call.Migration, call.Owner, call.Epoch = s.Name, s.Owner, s.Epoch
			r.notify(ctx, call)
			if call.Event == "phase" {
				r.after(ctx, call, last)
				last = e.Phase
			}
		}
		if e.Seq > 0 {
			r.mu.Lock()
			r.mu.told = e.Seq
			close(r.mu.more)
			r.mu.more = make(chan struct{})
			r.mu.Unlock()
		}
	}
}

// Told waits until Watch is done with an event, or ctx is done.
func (r *Runner) Told(ctx context.Context, seq int64) {
	for {
		r.mu.Lock()
		told, more := r.mu.told, r.mu.more
		r.mu.Unlock()
		if told >= seq {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-more:
		}
	}
}

// callFor says what an event means to people; most mean nothing.
func callFor(e migrate.Event) (Call, bool) {
	c := Call{Phase: e.Phase, Message: e.Message}
	switch {
	case e.Type == "phase":
		c.Event = "phase"
	case e.Type == "gate" && e.Data["gate"] == migrate.GateApproval && e.Data["open"] != true:
		c.Event = "approval"
	case e.Type == "link" && strings.HasPrefix(e.Message, "warning: "):
		c.Event = "warning"
	default:
		return Call{}, false
	}
	return c, true
}

func (r *Runner) after(ctx context.Context, c Call, ended migrate.Phase) {
	for _, h := range r.cfg.Hooks {
		if h.After != ended {
			continue
		}
		c.Hook, c.Event, c.Phase = h.Name, "after", ended
		if err := h.run(ctx, c); err != nil && ctx.Err() == nil {
			r.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "hook failed", slog.String("hook", h.Name), slog.String("phase", string(ended)), slog.Any("err", err))
		}
	}
}

func (h Hook) run(ctx context.Context, c Call) error {
	body, err := json.Marshal(c)
	if err != nil {
		return err
	}
	env := []string{
		"FICUS_HOOK=" + c.Hook, "FICUS_EVENT=" + c.Event, "FICUS_MIGRATION=" + c.Migration, "FICUS_PHASE=" + string(c.Phase),
		"FICUS_FROM=" + string(c.From), "FICUS_OWNER=" + string(c.Owner), "FICUS_EPOCH=" + strconv.FormatInt(c.Epoch, 10),
	}
	if c.Rehearsal {
		env = append(env, "FICUS_REHEARSAL=1")
	}
	return Action{Command: h.Command, URL: h.URL, Timeout: h.Timeout}.Send(ctx, env, body)
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	line := []rune(lines[len(lines)-1])
	return string(line[:min(len(line), 200)])
}

func (r *Runner) notify(ctx context.Context, c Call) {
	for _, n := range r.cfg.Notices {
		word := c.Event
		if word == "phase" {
			word = string(c.Phase)
		}
		if len(n.On) > 0 && !slices.Contains(n.On, word) {
			continue
		}
		if err := n.send(ctx, c); err != nil && ctx.Err() == nil {
			r.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "notice not sent", slog.String("event", word), slog.Any("err", err))
		}
	}
}

func (n Notice) send(ctx context.Context, c Call) error {
	var what any = c
	if n.Slack {
		what = map[string]string{"text": fmt.Sprintf("ficus %s: %s", c.Migration, c.Message)}
	}
	body, err := json.Marshal(what)
	if err != nil {
		return err
	}
	retry := backoff.Timer{Min: 200 * time.Millisecond, Max: 5 * time.Second}
	for try := 1; ; try++ {
		once, cancel := context.WithTimeout(ctx, noticeTimeout)
		err := post(once, n.URL, body)
		cancel()
		if err == nil || try == noticeTries {
			return err
		}
		if err := retry.Wait(ctx); err != nil {
			return err
		}
	}
}

// post sends JSON. Its errors do not hold the address, which may be a secret.
func post(ctx context.Context, address string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return errors.New("its address is not one")
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return err
	}
	defer func() { _ = res.Body.Close() }() // read as far as wanted
	said, err := io.ReadAll(io.LimitReader(res.Body, 4<<10))
	switch {
	case err != nil:
		return err
	case res.StatusCode < 200 || res.StatusCode > 299:
		return errors.New(strings.TrimSuffix(res.Status+": "+lastLine(string(said)), ": "))
	}
	return nil
}
