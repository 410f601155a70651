package api

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// commanding is a fake with a log of commands.
type commanding struct {
	*fake

	asked []string
}

func (c *commanding) ListCommands(name string, r ListCommandsRequest) ([]CommandEntry, error) {
	if _, err := c.Get(name); err != nil {
		return nil, err
	}
	if r.State == "odd" {
		return nil, errors.New("no state odd")
	}
	e := entry()
	e.Order, e.Attempts = r.Order+r.Type+r.State, int(r.After)+r.Limit
	return []CommandEntry{e}, nil
}

func entry() CommandEntry {
	return CommandEntry{Seq: 7, Key: "a/b c", Type: "pay", State: "dead", Error: "answered 500", Accepted: time.Date(2026, 11, 21, 3, 4, 5, 0, time.UTC)}
}

func (c *commanding) ShowCommand(_ context.Context, name, key string, payload bool) (CommandEntry, error) {
	e := entry()
	if name != "shop" || key != e.Key {
		return e, ErrNoCommand
	}
	if payload {
		e.Payload = `{"sum":1}`
	}
	return e, nil
}

func (c *commanding) RequeueCommand(_ context.Context, _, key string) error {
	c.asked = append(c.asked, "requeue "+key)
	return nil
}

func (c *commanding) DropCommand(context.Context, string, string) error { return ErrCommandState }

// What the client asks for arrives at the log, and what the log says at the client. It fails when the key
// is not escaped, and when problemOf does not know the errors.
func TestCommands(t *testing.T) {
	t.Parallel()
	service := &commanding{fake: newFake()}
	s, err := New(Config{Service: service})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.handler)
	t.Cleanup(srv.Close)
	c, err := NewClient(srv.URL, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	list, err := c.ListCommands(t.Context(), "shop", ListCommandsRequest{State: "dead", Order: "o ", Type: "t&", After: 3, Limit: 40})
	want := entry()
	want.Order, want.Attempts = "o t&dead", 43
	if diff := cmp.Diff(Commands{Taken: true, Commands: []CommandEntry{want}}, list); err != nil || diff != "" {
		t.Errorf("list: %v\n%s", err, diff)
	}
	for payload, text := range map[bool]string{false: "", true: `{"sum":1}`} {
		if e, err := c.ShowCommand(t.Context(), "shop", "a/b c", payload); err != nil || e.Payload != text {
			t.Errorf("show: %+v, %v", e, err)
		}
	}
	if err := c.RequeueCommand(t.Context(), "shop", "a/b c"); err != nil || !cmp.Equal(service.asked, []string{"requeue a/b c"}) {
		t.Errorf("requeue: %v, asked %q", err, service.asked)
	}
	for what, err := range map[string]error{
		"drop":         c.DropCommand(t.Context(), "shop", "a/b c"),
		"show another": second(c.ShowCommand(t.Context(), "shop", "other", false)),
		"odd state":    second(c.ListCommands(t.Context(), "shop", ListCommandsRequest{State: "odd"})),
		"large limit":  second(c.ListCommands(t.Context(), "shop", ListCommandsRequest{Limit: 1001})),
		"no migration": second(c.ListCommands(t.Context(), "x", ListCommandsRequest{})),
	} {
		code := map[string]Code{
			"drop": CodeNotNow, "show another": CodeNotFound, "odd state": CodeBadRequest, "large limit": CodeBadRequest, "no migration": CodeNotFound,
		}[what]
		var p *Problem
		if !errors.As(err, &p) || p.Code != code {
			t.Errorf("%s: %v, want %s", what, err, code)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// A service without commands answers that there are none.
func TestNoCommands(t *testing.T) {
	t.Parallel()
	s, err := New(Config{Service: newFake()})
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/migrations/shop/commands", http.NoBody)
	req.Host = "127.0.0.1"
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, req)
	if got := w.Body.String(); w.Code != http.StatusOK || got != `{"taken":false,"commands":[]}` {
		t.Errorf("list: %d %s", w.Code, got)
	}
	req = httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/migrations/shop/commands/k", http.NoBody)
	req.Host = "127.0.0.1"
	w = httptest.NewRecorder()
	s.handler.ServeHTTP(w, req)
	checkProblem(t, w.Result(), http.StatusNotFound, CodeNotFound, "")
}
