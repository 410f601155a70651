package api

import (
	"context"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		http.DefaultClient.CloseIdleConnections()
		os.Exit(code)
	}))
}

// fake is a Service with one migration, "shop".
type fake struct {
	mu struct {
		sync.Mutex
		status   migrate.Status
		events   []migrate.Event
		changed  chan struct{}
		asked    []migrate.Command
		started  []StartRequest
		do       error
		start    error
		waitsFor chan struct{} // a waited-for command returns when it is closed
	}
}

func newFake() *fake {
	f := &fake{}
	f.mu.changed = make(chan struct{})
	f.mu.status = migrate.Status{
		Name: "shop", Playbook: "upgrade", Phase: migrate.Following, Owner: migrate.Source, Epoch: 1, Running: true,
		Lag:      &migrate.Lag{Bytes: 8192, Time: 1500 * time.Millisecond, Retained: 99, Rows: 7},
		Rollback: migrate.RollbackVerdict{Because: []string{"nothing to roll back: the source owns the data"}},
	}
	return f
}

// happen adds a kept event.
func (f *fake) happen(e migrate.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e.Seq = int64(len(f.mu.events) + 1)
	f.mu.events = append(f.mu.events, e)
	close(f.mu.changed)
	f.mu.changed = make(chan struct{})
}

func (f *fake) set(change func(*migrate.Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.mu.status)
}

func (f *fake) List() []migrate.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return []migrate.Status{f.mu.status}
}

func (f *fake) Get(name string) (migrate.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if name != f.mu.status.Name {
		return migrate.Status{}, hint.Wrap(ErrNotFound, "did you mean %q?", f.mu.status.Name)
	}
	return f.mu.status, nil
}

func (f *fake) Events(ctx context.Context, name string, after int64) (iter.Seq2[migrate.Event, error], error) {
	if _, err := f.Get(name); err != nil {
		return nil, err
	}
	return func(yield func(migrate.Event, error) bool) {
		for {
			f.mu.Lock()
			news, changed := f.mu.events[min(int(after), len(f.mu.events)):], f.mu.changed
			f.mu.Unlock()
			for _, e := range news {
				if !yield(e, nil) {
					return
				}
				after = e.Seq
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}, nil
}

func (f *fake) Do(ctx context.Context, name string, c migrate.Command) error {
	if _, err := f.Get(name); err != nil {
		return err
	}
	f.mu.Lock()
	f.mu.asked = append(f.mu.asked, c)
	err, waitsFor := f.mu.do, f.mu.waitsFor
	f.mu.Unlock()
	if c.Wait && waitsFor != nil {
		select {
		case <-waitsFor:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return err
}

func (f *fake) Verify(_ context.Context, name string, _ VerifyRequest) (Comparison, error) {
	if _, err := f.Get(name); err != nil {
		return Comparison{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return Comparison{Proof: migrate.Proof{Kind: "exact", Rows: 12, Differences: 3}, Verdict: "different"}, f.mu.do
}

func (f *fake) Steps(name string) ([]migrate.Step, error) {
	if _, err := f.Get(name); err != nil {
		return nil, err
	}
	return migrate.Steps(migrate.Settings{}), nil
}

func (f *fake) Evidence(_ context.Context, name string) ([]byte, error) {
	if _, err := f.Get(name); err != nil {
		return nil, err
	}
	return []byte(`{"kind":"exact","lsn":"0/1","tables":[],"digest":"d"}`), nil
}

func (f *fake) Amend(_ context.Context, name string, _ AmendRequest) error {
	if _, err := f.Get(name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.do
}

func (f *fake) Start(_ context.Context, r StartRequest) (migrate.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.started = append(f.mu.started, r)
	return f.mu.status, f.mu.start
}

func (f *fake) lastAsked(t *testing.T) migrate.Command {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.mu.asked) == 0 {
		t.Fatal("no command arrived")
	}
	return f.mu.asked[len(f.mu.asked)-1]
}

// serve returns a server for tests, on a port of its own.
func serve(t *testing.T, cfg Config) (*Server, *httptest.Server) {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(s.handler)
	t.Cleanup(h.Close)
	return s, h
}

// client returns a Client of a test server.
func client(t *testing.T, h *httptest.Server, token string) *Client {
	t.Helper()
	c, err := NewClient(h.URL, token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// get asks for one path; the caller closes the body.
func get(t *testing.T, url string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}
