package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
)

// read returns the stream's next message, with its id; heartbeats come as "beat".
func read(t *testing.T, lines *bufio.Scanner) (id string, m message) {
	t.Helper()
	for lines.Scan() {
		text := lines.Text()
		switch {
		case text == ":":
			return "", message{event: "beat"}
		case strings.HasPrefix(text, "id: "):
			id = text[4:]
		case m.line(text):
			return id, m
		}
	}
	t.Fatalf("stream ended: %v", lines.Err())
	return "", message{}
}

func open(t *testing.T, h *httptest.Server, query, lastID string) *bufio.Scanner {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.URL+"/v1/migrations/shop/events"+query, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := h.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if got := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || got != "text/event-stream" {
		t.Fatalf("stream: %s, %s", resp.Status, got)
	}
	return bufio.NewScanner(resp.Body)
}

func TestStreamReplaysAndFollows(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		query, lastID string
		first         int
	}{
		"from the beginning":     {"", "", 1},
		"after":                  {"?after=2", "", 3},
		"Last-Event-ID":          {"", "1", 2},
		"Last-Event-ID is newer": {"?after=0", "2", 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake()
			for i := range 3 {
				f.happen(migrate.Event{Type: "step", Message: fmt.Sprint("step ", i+1)})
			}
			_, h := serve(t, Config{Service: f})
			lines := open(t, h, c.query, c.lastID)
			if _, m := read(t, lines); m.event != eventStatus || !strings.Contains(m.data, `"name":"shop"`) {
				t.Errorf("first comes %+v, want the status", m)
			}
			expect := func(n int) {
				t.Helper()
				id, m := read(t, lines)
				var e migrate.Event
				if err := json.Unmarshal([]byte(m.data), &e); err != nil {
					t.Fatal(err)
				}
				if id != fmt.Sprint(n) || m.event != "step" || e.Seq != int64(n) || e.Message != fmt.Sprint("step ", n) {
					t.Errorf("id %q, %+v, want event %d", id, m, n)
				}
			}
			for n := c.first; n <= 3; n++ {
				expect(n)
			}
			f.happen(migrate.Event{Type: "step", Message: "step 4"})
			expect(4)
		})
	}
}

func TestStreamBeatsAndShowsChanges(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, h := serve(t, Config{Service: f, Heartbeat: 10 * time.Millisecond, StatusEvery: 10 * time.Millisecond})
	lines := open(t, h, "", "")
	read(t, lines)
	for range 5 { // nothing changes, so no status comes
		if _, m := read(t, lines); m.event != "beat" {
			t.Fatalf("%+v on an idle stream", m)
		}
	}
	f.set(func(s *migrate.Status) { s.Phase = migrate.Verifying })
	for {
		_, m := read(t, lines)
		if m.event == "beat" {
			continue
		}
		if m.event != eventStatus || !strings.Contains(m.data, `"phase":"verifying"`) {
			t.Errorf("%+v, want the new status", m)
		}
		return
	}
}

func TestClient(t *testing.T) {
	t.Parallel()
	f := newFake()
	_, h := serve(t, Config{Service: f})
	c := client(t, h, "")

	list, err := c.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Lag.Bytes != 8192 || list[0].Lag.Time != 1500*time.Millisecond {
		t.Errorf("List = %+v, %v", list, err)
	}
	if s, err := c.Get(t.Context(), "shop"); err != nil || s.Phase != migrate.Following {
		t.Errorf("Get = %+v, %v", s, err)
	}
	_, err = c.Get(t.Context(), "sh/op ?")
	if !errors.Is(err, ErrNotFound) || hint.Of(err) != `did you mean "shop"?` {
		t.Errorf("Get of nothing: %v, hint %q", err, hint.Of(err))
	}
	for _, ask := range []migrate.Command{
		{Verb: migrate.Approve, Gate: "approval", Actor: "jo", Wait: true},
		{Verb: migrate.Resync, Tables: []string{"public.a", "b"}, Actor: "jo"},
	} {
		if err := c.Do(t.Context(), "shop", ask); err != nil || !cmp.Equal(f.lastAsked(t), ask) {
			t.Errorf("Do: %v, arrived: %+v", err, f.lastAsked(t))
		}
	}
	for _, ask := range []migrate.Command{{Verb: migrate.Resync}, {Verb: migrate.Pause, Tables: []string{"public.a"}}} {
		if err := c.Do(t.Context(), "shop", ask); err == nil || !strings.Contains(hint.Of(err), "tables go with resync") {
			t.Errorf("%+v: %v, hint %q", ask, err, hint.Of(err))
		}
	}
	f.mu.Lock()
	f.mu.do = hint.Wrap(fmt.Errorf("promote: %w: it failed", migrate.ErrNotNow), "resume it")
	f.mu.Unlock()
	if err := c.Do(t.Context(), "shop", migrate.Command{Verb: migrate.Promote}); !errors.Is(err, migrate.ErrNotNow) || hint.Of(err) != "resume it" || err.Error() != "promote: not possible now: it failed" {
		t.Errorf("refused command: %v, hint %q", err, hint.Of(err))
	}
	if p, err := c.Verify(t.Context(), "shop", VerifyRequest{}); !errors.Is(err, migrate.ErrNotNow) {
		t.Errorf("refused Verify = %+v, %v", p, err)
	}
	if _, err := c.Start(t.Context(), StartRequest{YAML: "name: x", Params: map[string]string{"a": "b"}}); err != nil {
		t.Errorf("Start: %v", err)
	}
}

func TestClientFollowsOverALostConnection(t *testing.T) {
	t.Parallel()
	f := newFake()
	s, h := serve(t, Config{Service: f})
	connections := make(chan func(), 10)
	flaky := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		connections <- cancel
		s.handler.ServeHTTP(w, r.WithContext(ctx))
	}))
	defer flaky.Close()
	h.Close()
	c := client(t, flaky, "")
	f.happen(migrate.Event{Type: "step"})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var seen []int64
	for e, err := range c.Events(ctx, "shop", 0) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, e.Seq)
		if len(seen) == 3 {
			break
		}
		(<-connections)() // the connection is lost, and meanwhile something happens
		f.happen(migrate.Event{Type: "error"})
	}
	if fmt.Sprint(seen) != "[1 2 3]" {
		t.Errorf("events %v, want each once", seen)
	}
}

func TestClientEventsErrors(t *testing.T) {
	t.Parallel()
	_, h := serve(t, Config{Service: newFake()})
	c := client(t, h, "")
	for _, err := range c.Events(t.Context(), "nobody", 0) {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("events of nothing: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for e, err := range c.Events(ctx, "shop", 0) {
		t.Errorf("event %+v, %v after the end", e, err)
	}
	h.Close()
	n := 0
	for _, err := range c.Events(t.Context(), "shop", 0) {
		n++
		if !strings.Contains(hint.Of(err), "is ficus run or ficus serve running?") {
			t.Errorf("events of nobody: %v, hint %q", err, hint.Of(err))
		}
	}
	if n != 1 {
		t.Errorf("%d errors, want 1", n)
	}
}

func TestNewClientRefuses(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"localhost:7070":         "no URL",
		"ftp://x":                "no URL",
		"":                       "no URL",
		"http://db.example:7070": "could read it",
		"https://db.example":     "",
		"http://127.0.0.1:7070/": "",
		"http://[::1]:7070":      "",
	} {
		_, err := NewClient(address, "secret-secret-secret")
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || hint.Of(err) == "" || strings.Contains(err.Error(), "secret")) {
			t.Errorf("NewClient(%q): %v, want %q", address, err, want)
		}
	}
}

func TestClientOfSomethingElse(t *testing.T) {
	t.Parallel()
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusTeapot)
		}
		fmt.Fprint(w, "<html>")
	}))
	defer h.Close()
	c := client(t, h, "")
	if _, err := c.List(t.Context()); err == nil || !strings.Contains(hint.Of(err), "API of ficus") {
		t.Errorf("List: %v, hint %q", err, hint.Of(err))
	}
	if _, err := c.Start(t.Context(), StartRequest{}); err == nil || !strings.Contains(err.Error(), "418") {
		t.Errorf("Start: %v", err)
	}
}
