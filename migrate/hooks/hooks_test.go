package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(status int) {
		http.DefaultClient.CloseIdleConnections()
		os.Exit(status)
	}))
}

// told is a server that keeps what it is told.
type told struct {
	*httptest.Server

	mu     sync.Mutex
	bodies []string
	fail   int // answers 500 that many times
}

func newTold(t *testing.T) *told {
	t.Helper()
	s := &told{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // a broken request is told by what it holds
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.fail > 0 {
			s.fail--
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		s.bodies = append(s.bodies, string(body))
		if strings.Contains(r.URL.Path, "refuse") {
			http.Error(w, "the shop is open", http.StatusConflict)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func runner(t *testing.T, c Config) *Runner {
	t.Helper()
	r, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestBefore: hooks get variables and JSON, in order, and the first that refuses ends it.
// It fails when a status is not looked at, or hooks of other phases run.
func TestBefore(t *testing.T) {
	t.Parallel()
	server := newTold(t)
	file := filepath.Join(t.TempDir(), "said")
	s := migrate.Status{Name: "m", Phase: migrate.ReadsSwitched, Owner: migrate.Source, Epoch: 3, Rehearses: true}
	script := []string{"sh", "-c", `(echo "$FICUS_HOOK $FICUS_EVENT $FICUS_MIGRATION $FICUS_FROM $FICUS_PHASE $FICUS_OWNER $FICUS_EPOCH $FICUS_REHEARSAL"; cat) > ` + file}
	r := runner(t, Config{Hooks: []Hook{
		{Name: "other", Before: migrate.Copying, Command: []string{"false"}},
		{Name: "write", Before: migrate.Promoting, Command: script},
		{Name: "web", Before: migrate.Promoting, URL: server.URL},
	}})
	if err := r.Before(t.Context(), s, migrate.Promoting); err != nil {
		t.Fatal(err)
	}
	said, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	line, body, _ := strings.Cut(string(said), "\n")
	if line != "write before m reads-switched promoting source 3 1" {
		t.Errorf("variables: %q", line)
	}
	var call Call
	if err := json.Unmarshal([]byte(body), &call); err != nil || call.Hook != "write" || call.From != migrate.ReadsSwitched || !call.Rehearsal {
		t.Errorf("standard input: %q, %v", body, err)
	}
	if len(server.bodies) != 1 || !strings.Contains(server.bodies[0], `"hook":"web"`) {
		t.Errorf("webhook: %q", server.bodies)
	}

	for want, h := range map[string]Hook{
		"exit status 7: no":        {Command: []string{"sh", "-c", "echo no; exit 7"}},
		"no answer within 100ms":   {Command: []string{"sleep", "60"}, Timeout: 100 * time.Millisecond},
		"409 Conflict: the shop":   {URL: server.URL + "/refuse"},
		"connection refused":       {URL: "http://127.0.0.1:1/secret"},
		"no such file":             {Command: []string{"/no/such/program"}},
		"its address is not one":   {URL: "http://a b/secret"},
		"unsupported protocol sch": {URL: "ftp://host/secret"},
	} {
		h.Name, h.Before = "h", migrate.Promoting
		err := runner(t, Config{Hooks: []Hook{h}}).Before(t.Context(), s, migrate.Promoting)
		if err == nil || !strings.Contains(err.Error(), want) || hint.Of(err) == "" {
			t.Errorf("want %q: %v", want, err)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows the address: %v", err)
		}
	}
}

// story is a migration that has these events.
type story []migrate.Event

func (story) Status() migrate.Status {
	return migrate.Status{Name: "m", Phase: migrate.ReadsSwitched, Owner: migrate.Source, Epoch: 2}
}

func (s story) Subscribe(context.Context, int64) iter.Seq2[migrate.Event, error] {
	return func(yield func(migrate.Event, error) bool) {
		for _, e := range s {
			if !yield(e, nil) {
				return
			}
		}
		yield(migrate.Event{}, errors.New("end of the story"))
	}
}

// TestWatch: what is told of a story, to whom, once it is taken.
// It fails when a refused notice is not sent again, filters do not filter, or after means before.
func TestWatch(t *testing.T) {
	t.Parallel()
	all, slack, hook := newTold(t), newTold(t), newTold(t)
	all.fail = 2
	r := runner(t, Config{
		Hooks: []Hook{
			{Name: "done", After: migrate.Promoting, URL: hook.URL},
			{Name: "never", After: migrate.Copying, URL: hook.URL},
		},
		Notices: []Notice{{URL: all.URL}, {URL: slack.URL, Slack: true, On: []string{"promoted", "approval"}}},
	})
	events := story{
		{Type: "step", Phase: migrate.ReadsSwitched, Message: "gates: started"},
		{Type: "gate", Phase: migrate.ReadsSwitched, Message: "gate approval is closed", Data: map[string]any{"gate": "approval"}},
		{Type: "phase", Phase: migrate.Promoting, Message: "promoting"},
		{Type: "phase", Phase: migrate.Promoted, Message: "promoted: the target owns the data"},
		{Type: "link", Phase: migrate.Promoted, Message: "warning: much WAL"},
	}
	r.Watch(t.Context(), events, events.Status())
	if len(all.bodies) != 4 {
		t.Errorf("told of %d events: %q", len(all.bodies), all.bodies)
	}
	want := []string{`{"text":"ficus m: gate approval is closed"}`, `{"text":"ficus m: promoted: the target owns the data"}`}
	if strings.Join(slack.bodies, "\n") != strings.Join(want, "\n") {
		t.Errorf("Slack: %q", slack.bodies)
	}
	if len(hook.bodies) != 1 || !strings.Contains(hook.bodies[0], `"event":"after"`) || !strings.Contains(hook.bodies[0], `"phase":"promoting"`) {
		t.Errorf("hook: %q", hook.bodies)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	for _, h := range []Hook{
		{},
		{Name: "h", Command: []string{"x"}},
		{Name: "h", Before: "a", After: "b", Command: []string{"x"}},
		{Name: "h", Before: "a"},
		{Name: "h", Before: "a", Command: []string{"x"}, URL: "y"},
	} {
		if _, err := New(Config{Hooks: []Hook{h}}); err == nil {
			t.Errorf("hook %+v was taken", h)
		}
	}
	if _, err := New(Config{Notices: []Notice{{}}}); err == nil {
		t.Error("a notice without an address was taken")
	}
}
