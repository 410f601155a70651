package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
)

const (
	// silence is after how long without even a heartbeat a connection counts as dead.
	silence = 45 * time.Second
	// patience is for how long a lost server is looked for again.
	patience = 30 * time.Second
)

// errSilent says that the server sent nothing for too long.
var errSilent = errors.New("the API sent nothing, not even a heartbeat")

// Events yields a migration's events after a sequence number, and goes on as they happen until ctx
// ends. It connects again when the connection is lost, and misses and repeats no kept event. The error, if
// any, comes last: what the server answered, or that it was away for half a minute.
func (c *Client) Events(ctx context.Context, name string, after int64) iter.Seq2[migrate.Event, error] {
	return func(yield func(migrate.Event, error) bool) {
		f := &follower{client: c, name: name, after: after, retry: backoff.Timer{Min: 200 * time.Millisecond, Max: 3 * time.Second}}
		for {
			more, err := f.once(ctx, func(e migrate.Event) bool { return yield(e, nil) })
			if !more || ctx.Err() != nil {
				return
			}
			if err = f.again(ctx, err); err != nil {
				if ctx.Err() == nil {
					yield(migrate.Event{}, err)
				}
				return
			}
		}
	}
}

// A follower reads one migration's events over one connection after the other.
type follower struct {
	client *Client
	name   string
	after  int64
	heard  bool      // the server sent something, ever
	lost   time.Time // since when it has not answered; zero while it does
	retry  backoff.Timer
}

// again waits before the next connection, or says why there should be none.
func (f *follower) again(ctx context.Context, err error) error {
	p, answered := errors.AsType[*Problem](err)
	switch {
	case answered && p.Code != CodeStopping, !f.heard:
		return err
	case f.lost.IsZero():
		f.lost = time.Now()
	case time.Since(f.lost) > patience:
		return hint.Wrap(fmt.Errorf("follow %s: %w", f.name, err), "the ficus process that drove it is gone; start it again, it goes on where it was")
	}
	return f.retry.Wait(ctx)
}

// once reads one connection's events until it ends; more is false when the reader had enough.
func (f *follower) once(ctx context.Context, yield func(migrate.Event) bool) (more bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	u := f.client.at(f.name, "events")
	u.RawQuery = "after=" + strconv.FormatInt(f.after, 10)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return true, fmt.Errorf("ask the API: %w", err)
	}
	req.Header.Set("Accept", "text/event-stream")
	watchdog := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer watchdog.Stop()
	resp, err := f.client.send(req)
	if err != nil {
		return true, err
	}
	defer resp.Body.Close()

	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxAnswer)
	var m message
	for lines.Scan() {
		f.heard, f.lost = true, time.Time{}
		watchdog.Reset(silence)
		f.retry.Reset()
		if !m.line(lines.Text()) {
			continue
		}
		if more, err := f.take(m, yield); err != nil || !more {
			return more, err
		}
		m = message{}
	}
	if cause := context.Cause(ctx); cause != nil {
		return true, cause
	}
	return true, fmt.Errorf("read the API's events: %w", orEOF(lines.Err()))
}

// take hands over one message. Statuses are for those who read the stream itself.
func (f *follower) take(m message, yield func(migrate.Event) bool) (more bool, err error) {
	switch m.event {
	case eventStatus, "":
		return true, nil
	case eventProblem:
		var p Problem
		if err := json.Unmarshal([]byte(m.data), &p); err != nil {
			return true, fmt.Errorf("read the API's events: %w", err)
		}
		return true, advised(&p)
	}
	var e migrate.Event
	if err := json.Unmarshal([]byte(m.data), &e); err != nil {
		return true, fmt.Errorf("read the API's events: %w", err)
	}
	f.after = max(f.after, e.Seq)
	return yield(e), nil
}

// A message is a server-sent event.
type message struct{ event, data string }

// line takes one line of the stream and reports whether the message is complete.
func (m *message) line(text string) bool {
	if text == "" {
		return m.event != "" || m.data != ""
	}
	field, value, _ := strings.Cut(text, ":")
	value = strings.TrimPrefix(value, " ")
	switch field {
	case "event":
		m.event = value
	case "data":
		m.data += value
	}
	return false
}

func orEOF(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}
