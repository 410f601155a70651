package httpdoor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ficus-migrate/ficus/buffer"
	"github.com/ficus-migrate/ficus/eventstore"
)

func TestMain(m *testing.M) {
	if os.Getenv(asDoor) != "" {
		beDoor()
	}
	goleak.VerifyTestMain(m)
}

const (
	oldSide Backend = "source"
	newSide Backend = "target"
)

// A dataServer answers everything, and makes each command once: both of a pair share what was done, as
// their databases do once the fence has closed.
type dataServer struct {
	name string
	http *httptest.Server

	mu     *sync.Mutex
	done   map[string]string // answers by key
	order  *[]string         // keys as they were done
	writes int               // at work now
	most   int               // the most at a time since it was reset
	seen   []*http.Request
	bodies []string
	handle func(w http.ResponseWriter, r *http.Request, body string) bool // true: it has answered
}

// twoServers starts the old data server and the new one.
func twoServers(t testing.TB) (a, b *dataServer) {
	t.Helper()
	mu, done, order := new(sync.Mutex), map[string]string{}, new([]string)
	for side, at := range map[Backend]**dataServer{oldSide: &a, newSide: &b} {
		s := &dataServer{name: string(side), mu: mu, done: done, order: order}
		s.http = httptest.NewServer(s)
		t.Cleanup(s.http.Close)
		*at = s
	}
	return a, b
}

// ServeHTTP implements [http.Handler].
func (s *dataServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.seen, s.bodies = append(s.seen, r), append(s.bodies, string(body))
	handle := s.handle
	if r.Method != http.MethodGet {
		s.writes++
		s.most = max(s.most, s.writes)
		defer func() {
			s.mu.Lock()
			s.writes--
			s.mu.Unlock()
		}()
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Served-By", s.name)
	if handle != nil && handle(w, r, string(body)) {
		return
	}
	key := r.Header.Get("Idempotency-Key")
	if key == "" {
		fmt.Fprintf(w, `{"by":%q,"path":%q}`, s.name, r.URL.RequestURI())
		return
	}
	s.mu.Lock()
	answer, known := s.done[key]
	if !known {
		answer = fmt.Sprintf(`{"by":%q,"number":%d}`, s.name, len(s.done)+1)
		s.done[key] = answer
		*s.order = append(*s.order, strings.Trim(key, `"`))
	}
	s.mu.Unlock()
	w.WriteHeader(http.StatusCreated)
	fmt.Fprint(w, answer)
}

func (s *dataServer) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

func (s *dataServer) last() (*http.Request, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[len(s.seen)-1], s.bodies[len(s.bodies)-1]
}

func bucket(t testing.TB, dir string) *eventstore.Bucket {
	t.Helper()
	s, err := eventstore.Open(eventstore.Config{Dir: dir, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.Bucket("commands")
}

// open runs a door in front of both; its URL comes with it.
func open(t testing.TB, a, b *dataServer, change func(*Config)) (*Door, string) {
	t.Helper()
	cfg := Config{
		Listen: "127.0.0.1:0", Owner: oldSide, Epoch: 1, Settle: time.Millisecond,
		Servers: map[Backend]string{oldSide: a.http.URL, newSide: b.http.URL},
	}
	if change != nil {
		change(&cfg)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel(errEnough)
		if err := <-ended; !errors.Is(err, errEnough) {
			t.Errorf("the door ended with %v", err)
		}
	})
	<-d.Listening()
	return d, "http://" + d.Addr().String()
}

var errEnough = errors.New("the test has seen enough")

// withCommands lets the door take commands.
func withCommands(t testing.TB, change func(*Config)) func(*Config) {
	t.Helper()
	store := bucket(t, t.TempDir())
	return func(c *Config) {
		c.Commands.Log = buffer.CommandsConfig{Bucket: store, BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond}
		if change != nil {
			change(c)
		}
	}
}

// An outcome is a response, read.
type outcome struct {
	status int
	header http.Header
	body   string
}

func (o outcome) code() string {
	var p problem
	_ = json.Unmarshal([]byte(o.body), &p)
	return string(p.Code)
}

// client makes connections of its own, which end with the test.
func client(t testing.TB) *http.Client {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func do(t testing.TB, c *http.Client, method, url, body string, headers ...string) outcome {
	t.Helper()
	o, err := try(t.Context(), c, method, url, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func try(ctx context.Context, c *http.Client, method, url, body string, headers ...string) (outcome, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return outcome{}, err
	}
	if body == "" {
		req.Body = http.NoBody
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return outcome{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return outcome{resp.StatusCode, resp.Header, string(data)}, err
}

// post sends a command.
func post(t testing.TB, c *http.Client, url, command string, headers ...string) outcome {
	t.Helper()
	return do(t, c, http.MethodPost, url+"/v1/commands", command, append([]string{"Content-Type", "application/json"}, headers...)...)
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !holds() {
		select {
		case <-time.After(2 * time.Millisecond):
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}
