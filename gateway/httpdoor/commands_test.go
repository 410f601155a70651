package httpdoor

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/buffer"
)

// A command is accepted, its status tells how it goes, who prefers to wait gets the data server's answer,
// and the same key the same answer. It fails when post does not wait and when send leaves the key out.
func TestCommand(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	leave := make(chan struct{})
	a.handle = func(_ http.ResponseWriter, r *http.Request, _ string) bool {
		if strings.HasSuffix(r.URL.Path, "/slow") {
			<-leave
		}
		return false
	}
	_, url := open(t, a, b, withCommands(t, nil))
	c := client(t)
	o := post(t, c, url, `{"key":"k/1","type":"slow","payload":{"n":1},"headers":{"Authorization":"Bearer x","Host":"evil","X-Trace":"t"}}`)
	if o.status != http.StatusAccepted || o.header.Get("Location") != "/v1/commands/k%2F1" || o.header.Get("Retry-After") == "" {
		t.Fatalf("accepted: %+v", o)
	}
	if o := post(t, c, url, `{"key":"k/1","type":"slow","payload":{"n":1}}`, "Prefer", "wait=0"); o.status != http.StatusAccepted || o.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("again: %+v", o)
	}
	if o := post(t, c, url, `{"key":"k/1","type":"slow","payload":{"n":2}}`); o.status != http.StatusUnprocessableEntity || o.code() != "mismatch" {
		t.Errorf("another payload: %+v", o)
	}
	close(leave)
	o = do(t, c, http.MethodGet, url+o.header.Get("Location"), "", "Prefer", "respond-async, wait=20")
	var status commandStatus
	if err := json.Unmarshal([]byte(o.body), &status); err != nil || o.header.Get("Preference-Applied") != "wait=20" {
		t.Fatalf("status: %+v, %v", o, err)
	}
	if status.State != buffer.Answered || status.Answer.Status != http.StatusCreated || string(status.Answer.Body) != `{"by":"source","number":1}` {
		t.Errorf("status: %+v", status)
	}
	o = post(t, c, url, `{"key":"k/1","type":"slow","payload":{"n":1}}`)
	if o.status != http.StatusCreated || o.body != `{"by":"source","number":1}` || o.header.Get("Content-Type") != "application/json" || o.header.Get("Content-Location") != "/v1/commands/k%2F1" {
		t.Errorf("the same key: %+v", o)
	}
	if n := a.requests(); n != 1 {
		t.Errorf("%d requests at the data server", n)
	}
	r, body := a.last()
	if r.URL.Path != "/commands/slow" || body != `{"n":1}` || r.Header.Get("Idempotency-Key") != `"k/1"` || r.Header.Get("Authorization") != "Bearer x" ||
		r.Host == "evil" || r.Header.Get("X-Trace") != "t" || r.Header.Get("Ficus-Attempt") != "1" {
		t.Errorf("sent: %s %s %v %s", r.Host, r.URL, r.Header, body)
	}
	if o := post(t, c, url, `{"type":"fast"}`, "Idempotency-Key", `"with \"quotes\""`, "Prefer", "wait=20"); o.status != http.StatusCreated {
		t.Errorf("key in the header: %+v", o)
	}
	if r, _ := a.last(); r.Header.Get("Idempotency-Key") != `"with \"quotes\""` {
		t.Errorf("key passed on: %s", r.Header.Get("Idempotency-Key"))
	}
}

func TestCommandMistakes(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	_, url := open(t, a, b, withCommands(t, func(c *Config) {
		c.Commands.Log.MaxPayload = 1000
		c.Commands.Types = map[string]CommandType{"pay": {newSide: {Payload: "{sum: (.amount * 100)}"}}}
	}))
	c := client(t)
	for _, m := range []struct {
		body, header, key string
		status            int
		code              Code
	}{
		{`{"key":"k","type":"pay"`, "", "", 400, CodeBadRequest},
		{`{"key":"k","type":"pay","typo":1}`, "", "", 400, CodeBadRequest},
		{`{"key":"k","type":"pay"} {}`, "", "", 400, CodeBadRequest},
		{`{"type":"pay","payload":{"amount":1}}`, "", "", 400, CodeBadRequest},
		{`{"key":"k","type":"pay","payload":{"amount":1}}`, "Idempotency-Key", "other", 400, CodeBadRequest},
		{`{"type":"pay","payload":{"amount":1}}`, "Idempotency-Key", `"open`, 400, CodeBadRequest},
		{`{"key":"k","type":"refund"}`, "", "", 422, CodeUnfit},
		{`{"key":"k","type":"pay","payload":{"amount":{"secret":1}}}`, "", "", 422, CodeUnfit},
		{`{"key":"k","type":"pay","payload":{"amount":1,"x":"` + strings.Repeat("x", 1000) + `"}}`, "", "", 400, CodeBadRequest},
		{`{"key":"k","type":"pay","payload":"` + strings.Repeat("x", 20_000) + `"}`, "", "", 413, CodeTooLarge},
		{`{"key":"k","type":"pay"}`, "Content-Type", "text/plain", 415, CodeMediaType},
	} {
		headers := []string{}
		if m.header != "" {
			headers = []string{m.header, m.key}
		}
		if o := post(t, c, url, m.body, headers...); o.status != m.status || o.code() != string(m.code) || strings.Contains(o.body, "secret") {
			t.Errorf("%.60s: %d %s", m.body, o.status, o.body)
		}
	}
	if o := do(t, c, http.MethodGet, url+"/v1/commands/k", ""); o.status != http.StatusNotFound || o.code() != "not_found" {
		t.Errorf("status of none: %+v", o)
	}
	if o := do(t, c, http.MethodDelete, url+"/v1/commands/k", ""); o.status != http.StatusMethodNotAllowed {
		t.Errorf("a method that is none: %+v", o)
	}
	if a.requests() != 0 {
		t.Error("something came through")
	}
}

// Each data server gets the payload as it wants it, at its own path, and clients get one form of answer.
// It fails when callOf does not look at the owner.
func TestTransforms(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	d, url := open(t, a, b, withCommands(t, func(c *Config) {
		c.Commands.Types = map[string]CommandType{"place-order": {
			oldSide: {Path: "/orders.php?v=1", Payload: "{customer: .who, goods: [.lines[] | .sku]}"},
			newSide: {Method: "PUT", Path: "/v2/orders", Payload: "{customer_id: .who, lines}", Answer: "{by, number: (.number + 0)}"},
		}}
	}))
	c := client(t)
	const payload = `"payload":{"who":9007199254740993,"lines":[{"sku":"a","price":1.50},{"sku":"b","price":2}]}`
	o := post(t, c, url, `{"key":"1","type":"place-order",`+payload+`}`, "Prefer", "wait=20")
	if o.status != http.StatusCreated {
		t.Fatalf("old: %+v", o)
	}
	if r, body := a.last(); r.URL.RequestURI() != "/orders.php?v=1" || body != `{"customer":9007199254740993,"goods":["a","b"]}` {
		t.Errorf("old: %s %s", r.URL, body)
	}
	if err := errors.Join(d.Hold(t.Context(), 2), d.Release(t.Context(), newSide, 2)); err != nil {
		t.Fatal(err)
	}
	o = post(t, c, url, `{"key":"2","type":"place-order",`+payload+`}`, "Prefer", "wait=20")
	if o.status != http.StatusCreated || o.body != `{"by":"target","number":2}` {
		t.Fatalf("new: %+v", o)
	}
	if r, body := b.last(); r.Method != http.MethodPut || r.URL.Path != "/v2/orders" || body != `{"customer_id":9007199254740993,"lines":[{"price":1.50,"sku":"a"},{"price":2,"sku":"b"}]}` {
		t.Errorf("new: %s %s %s", r.Method, r.URL, body)
	}
}

// Commands that come while the owner changes wait, none is refused, and go to the new owner in their
// order. It fails when beginHold leaves commands alone.
func TestCommandsWhileTheOwnerChanges(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	d, url := open(t, a, b, withCommands(t, nil))
	c := client(t)
	var sent []string
	send := func(n int) {
		for range n {
			key := fmt.Sprintf("k%03d", len(sent))
			sent = append(sent, key)
			if o := post(t, c, url, fmt.Sprintf(`{"key":%q,"order":"one","type":"count"}`, key)); o.status != http.StatusAccepted && o.status != http.StatusCreated {
				t.Fatalf("%s: %+v", key, o)
			}
		}
	}
	for epoch := int64(2); epoch < 8; epoch++ {
		send(10)
		if err := d.Hold(t.Context(), epoch); err != nil {
			t.Fatal(err)
		}
		before := a.requests() + b.requests()
		send(10)
		if n := a.requests() + b.requests(); n != before {
			t.Errorf("%d commands were sent under the hold", n-before)
		}
		to := newSide
		if epoch%2 == 1 {
			to = oldSide
		}
		if err := d.Release(t.Context(), to, epoch); err != nil {
			t.Fatal(err)
		}
	}
	if e, err := d.Commands().Wait(t.Context(), sent[len(sent)-1]); err != nil || e.State != buffer.Answered {
		t.Fatalf("the last: %+v, %v", e, err)
	}
	if !slices.Equal(*a.order, sent) {
		t.Errorf("done in the order %v", *a.order)
	}
	if a.requests() < 20 || b.requests() < 20 || a.requests()+b.requests() != len(sent) {
		t.Errorf("%d and %d requests for %d commands", a.requests(), b.requests(), len(sent))
	}
	if s := d.Stalls(); s.Clients < 10 {
		t.Errorf("stalls: %+v", s)
	}
}

// What the data server says decides: an answer to keep, try again, or failed. A dead command tells its
// waiter, and goes on when it is requeued.
func TestAnswersOfTheDataServer(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	var mended atomic.Bool
	var tries atomic.Int64
	a.handle = func(w http.ResponseWriter, r *http.Request, _ string) bool {
		switch r.Header.Get("Ficus-Command-Type") {
		case "refused":
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, `{"error":"out of stock"}`)
			return true
		case "busy":
			if tries.Add(1) < 4 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			}
		case "broken":
			if !mended.Load() {
				w.WriteHeader(http.StatusInternalServerError)
				fmt.Fprint(w, `"secret"`)
				return true
			}
		case "large":
			fmt.Fprintf(w, `%q`, strings.Repeat("x", 5000))
			return true
		}
		return false
	}
	d, url := open(t, a, b, withCommands(t, func(c *Config) {
		c.Commands.Log.Attempts, c.Commands.MaxAnswer = 3, 4096
	}))
	c := client(t)
	if o := post(t, c, url, `{"key":"1","type":"refused"}`, "Prefer", "wait=20"); o.status != http.StatusConflict || o.body != `{"error":"out of stock"}` {
		t.Errorf("refused: %+v", o)
	}
	if o := post(t, c, url, `{"key":"2","type":"busy"}`, "Prefer", "wait=20"); o.status != http.StatusCreated {
		t.Errorf("busy: %+v", o)
	}
	if o := post(t, c, url, `{"key":"3","type":"large"}`, "Prefer", "wait=20"); o.status != http.StatusOK || o.body != "" || o.header.Get("Ficus-Answer-Cut") != "true" {
		t.Errorf("large: %+v", o)
	}
	o := post(t, c, url, `{"key":"4","type":"broken"}`, "Prefer", "wait=20")
	if o.status != http.StatusBadGateway || o.code() != "dead" || strings.Contains(o.body, "secret") {
		t.Errorf("broken: %+v", o)
	}
	mended.Store(true)
	if err := d.Commands().Requeue(t.Context(), "4"); err != nil {
		t.Fatal(err)
	}
	if o := post(t, c, url, `{"key":"4","type":"broken"}`, "Prefer", "wait=20"); o.status != http.StatusCreated {
		t.Errorf("mended: %+v", o)
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]string{
		200: "", 201: "", 204: "", 303: "", 400: "", 404: "", 409: "", 422: "",
		408: "again", 425: "again", 429: "again", 502: "again", 503: "again", 504: "again",
		500: "spent", 501: "spent", 301: "spent", 302: "spent", 308: "spent",
	} {
		got := ""
		if why, ok := errors.AsType[*buffer.AttemptError](judge(&http.Response{StatusCode: status, Header: http.Header{}})); ok {
			got = map[bool]string{true: "spent", false: "again"}[why.Spent]
		}
		if got != want {
			t.Errorf("%d: %q, want %q", status, got, want)
		}
	}
	var why *buffer.AttemptError
	if err := judge(&http.Response{StatusCode: http.StatusConflict, Header: http.Header{"Retry-After": {"7"}}}); !errors.As(err, &why) || why.After != 7*time.Second || why.Spent {
		t.Errorf("409 with Retry-After: %+v", err)
	}
}

// A full log says when to come again, and tokens are asked for.
func TestFullAndTokens(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	file := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(file, []byte("# shop\n0123456789abcdef  # front end\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, url := open(t, a, b, withCommands(t, func(c *Config) {
		c.Commands.Log.MaxCommands, c.Commands.Tokens = 1, file
	}))
	if err := d.Hold(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	c := client(t)
	for _, token := range []string{"", "Bearer 0123456789abcdeF", "0123456789abcdef"} {
		if o := post(t, c, url, `{"key":"1","type":"x"}`, "Authorization", token); o.status != http.StatusUnauthorized || o.code() != "unauthorized" {
			t.Errorf("token %q: %+v", token, o)
		}
	}
	const good = "Bearer 0123456789abcdef"
	if o := post(t, c, url, `{"key":"1","type":"x"}`, "Authorization", good); o.status != http.StatusAccepted {
		t.Errorf("first: %+v", o)
	}
	if o := post(t, c, url, `{"key":"2","type":"x"}`, "Authorization", good); o.status != http.StatusTooManyRequests || o.code() != "full" || o.header.Get("Retry-After") != "1" {
		t.Errorf("second: %+v", o)
	}
	if o := do(t, c, http.MethodGet, url+"/else", ""); o.status != http.StatusOK {
		t.Errorf("what is no command needs no token of ours: %+v", o)
	}
	cfg := d.cfg
	cfg.Listen, cfg.Commands.Tokens = "0.0.0.0:0", ""
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "without tokens") {
		t.Errorf("an open address without tokens: %v", err)
	}
}

func FuzzHeaderKey(f *testing.F) {
	for _, s := range []string{`"a"`, `a`, `"a\"b\\c"`, `"`, `"a" x`, `"\`, ``} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, v string) {
		key, err := headerKey(http.Header{"Idempotency-Key": {v}})
		if err != nil || key == "" {
			return
		}
		again, err := headerKey(http.Header{"Idempotency-Key": {quoted(key)}})
		if err != nil || again != key {
			t.Errorf("%q is key %q, which comes back as %q, %v", v, key, again, err)
		}
	})
}
