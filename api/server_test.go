package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
)

func TestAnswers(t *testing.T) {
	t.Parallel()
	const js = "application/json"
	for name, c := range map[string]struct {
		method, path, body, media string
		header                    map[string]string
		host                      string
		fails                     error // what Do and Start return
		status                    int
		code                      Code
		hint                      string
	}{
		"list":                    {method: "GET", path: "/v1/migrations", status: 200},
		"show":                    {method: "GET", path: "/v1/migrations/shop", status: 200},
		"steps":                   {method: "GET", path: "/v1/migrations/shop/steps", status: 200},
		"steps of nothing":        {method: "GET", path: "/v1/migrations/stop/steps", status: 404, code: CodeNotFound, hint: `did you mean "shop"?`},
		"show nothing":            {method: "GET", path: "/v1/migrations/shpo", status: 404, code: CodeNotFound, hint: "did you mean"},
		"no route":                {method: "GET", path: "/v1/nothing", status: 404, code: CodeNotFound},
		"wrong method":            {method: "DELETE", path: "/v1/migrations/shop", status: 405, code: CodeMethodNotAllowed},
		"command":                 {method: "POST", path: "/v1/migrations/shop/promote", media: js, body: `{}`, status: 202},
		"command, empty body":     {method: "POST", path: "/v1/migrations/shop/promote", media: js, status: 202},
		"command, charset":        {method: "POST", path: "/v1/migrations/shop/promote", media: js + "; charset=utf-8", status: 202},
		"command, waited for":     {method: "POST", path: "/v1/migrations/shop/promote", media: js, body: `{"wait":true}`, status: 200},
		"command to nobody":       {method: "POST", path: "/v1/migrations/x/promote", media: js, body: `{}`, status: 404, code: CodeNotFound},
		"no such command":         {method: "POST", path: "/v1/migrations/shop/promot", media: js, body: `{}`, status: 404, code: CodeNotFound, hint: `did you mean "promote"`},
		"not now":                 {method: "POST", path: "/v1/migrations/shop/rollback", media: js, fails: hint.Wrap(migrate.ErrNotNow, "possible: pause"), status: 409, code: CodeNotNow, hint: "possible: pause"},
		"work failed":             {method: "POST", path: "/v1/migrations/shop/promote", media: js, body: `{"wait":true}`, fails: errors.New("drain"), status: 500, code: CodeFailed},
		"journal failed":          {method: "POST", path: "/v1/migrations/shop/promote", media: js, body: `{}`, fails: errors.New("disk full"), status: 500, code: CodeInternal},
		"verify":                  {method: "POST", path: "/v1/migrations/shop/verify", media: js, status: 200},
		"verify now":              {method: "POST", path: "/v1/migrations/shop/verify", media: js, fails: migrate.ErrNotNow, status: 409, code: CodeNotNow},
		"verify, broken off":      {method: "POST", path: "/v1/migrations/shop/verify", media: js, fails: errors.New("lost connection"), status: 500, code: CodeFailed},
		"unknown field":           {method: "POST", path: "/v1/migrations/shop/promote", media: js, body: `{"wiat":true}`, status: 400, code: CodeBadRequest, hint: "gate, tables, force, wait, actor"},
		"wrong type":              {method: "POST", path: "/v1/migrations/shop/promote", media: js, body: `{"wait":"yes"}`, status: 400, code: CodeBadRequest},
		"two objects":             {method: "POST", path: "/v1/migrations/shop/promote", media: js, body: `{}{}`, status: 400, code: CodeBadRequest},
		"cut short":               {method: "POST", path: "/v1/migrations/shop/promote", media: js, body: `{"wait"`, status: 400, code: CodeBadRequest},
		"gate with promote":       {method: "POST", path: "/v1/migrations/shop/promote", media: js, body: `{"gate":"x"}`, status: 400, code: CodeBadRequest},
		"actor of two lines":      {method: "POST", path: "/v1/migrations/shop/promote", media: js, body: `{"actor":"a\nb"}`, status: 400, code: CodeBadRequest},
		"no media type":           {method: "POST", path: "/v1/migrations/shop/promote", body: `{}`, status: 415, code: CodeMediaType},
		"a form":                  {method: "POST", path: "/v1/migrations/shop/promote", media: "text/plain", body: `{}`, status: 415, code: CodeMediaType},
		"too large":               {method: "POST", path: "/v1/migrations", media: js, body: `{"yaml":"` + strings.Repeat("x", maxBody) + `"}`, status: 413, code: CodeTooLarge},
		"start":                   {method: "POST", path: "/v1/migrations", media: js, body: `{"playbook":"upgrade"}`, status: 201},
		"start from nothing":      {method: "POST", path: "/v1/migrations", media: js, body: `{}`, status: 400, code: CodeBadRequest},
		"start from both":         {method: "POST", path: "/v1/migrations", media: js, body: `{"playbook":"a","yaml":"b"}`, status: 400, code: CodeBadRequest},
		"start twice":             {method: "POST", path: "/v1/migrations", media: js, body: `{"playbook":"a"}`, fails: ErrExists, status: 409, code: CodeExists},
		"start where none may":    {method: "POST", path: "/v1/migrations", media: js, body: `{"playbook":"a"}`, fails: ErrFixed, status: 409, code: CodeFixed},
		"start a wrong playbook":  {method: "POST", path: "/v1/migrations", media: js, body: `{"yaml":"a"}`, fails: errors.New("line 3: no such key"), status: 400, code: CodeBadRequest},
		"events after nonsense":   {method: "GET", path: "/v1/migrations/shop/events?after=x", status: 400, code: CodeBadRequest},
		"events of nothing":       {method: "GET", path: "/v1/migrations/x/events", status: 404, code: CodeNotFound},
		"health":                  {method: "GET", path: "/healthz", status: 200},
		"ready":                   {method: "GET", path: "/readyz", status: 200},
		"openapi":                 {method: "GET", path: "/openapi.yaml", status: 200},
		"dashboard":               {method: "GET", path: "/", status: 200},
		"dashboard's script":      {method: "GET", path: "/app.js", status: 200},
		"rebound host":            {method: "GET", path: "/v1/migrations", host: "evil.example:7070", status: 403, code: CodeForbidden},
		"localhost, tunnelled":    {method: "GET", path: "/v1/migrations", host: "localhost:8080", status: 200},
		"IPv6 loopback":           {method: "GET", path: "/v1/migrations", host: "[::1]:7070", status: 200},
		"command of another page": {method: "POST", path: "/v1/migrations/shop/cancel", media: js, header: map[string]string{"Origin": "https://evil.example"}, status: 403, code: CodeForbidden},
		"command of a frame":      {method: "POST", path: "/v1/migrations/shop/cancel", media: js, header: map[string]string{"Sec-Fetch-Site": "same-site"}, status: 403, code: CodeForbidden},
		"command of the page":     {method: "POST", path: "/v1/migrations/shop/cancel", media: js, header: map[string]string{"Sec-Fetch-Site": "same-origin"}, status: 202},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake()
			f.mu.do, f.mu.start = c.fails, c.fails
			s, err := New(Config{Service: f, Web: fstest.MapFS{"index.html": {Data: []byte("<p>")}, "app.js": {Data: []byte("1")}}})
			if err != nil {
				t.Fatal(err)
			}
			req := httptest.NewRequestWithContext(t.Context(), c.method, c.path, strings.NewReader(c.body))
			req.Host = "127.0.0.1:7070"
			if c.host != "" {
				req.Host = c.host
			}
			for k, v := range c.header {
				req.Header.Set(k, v)
			}
			if c.media != "" {
				req.Header.Set("Content-Type", c.media)
			}
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, req)
			if w.Code != c.status {
				t.Fatalf("status %d, want %d: %s", w.Code, c.status, w.Body)
			}
			if w.Header().Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(w.Header().Get("Content-Security-Policy"), "default-src 'none'") {
				t.Errorf("security headers are missing: %v", w.Header())
			}
			if c.code != "" {
				checkProblem(t, w.Result(), c.status, c.code, c.hint)
			}
		})
	}
}

func checkProblem(t *testing.T, resp *http.Response, status int, code Code, advice string) {
	t.Helper()
	defer resp.Body.Close()
	var p Problem
	dec := json.NewDecoder(resp.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		t.Fatalf("decode problem: %v", err)
	}
	if got := resp.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("Content-Type %q", got)
	}
	if p.Code != code || p.Status != status || p.Title != http.StatusText(status) || p.Message == "" || !strings.Contains(p.Hint, advice) {
		t.Errorf("problem %+v, want code %s, hint with %q", p, code, advice)
	}
}

func TestPanicIsAnswered(t *testing.T) {
	t.Parallel()
	s, err := New(Config{Service: struct{ Service }{}}) // every method is nil
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/migrations", http.NoBody)
	req.Host = "localhost"
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, req)
	checkProblem(t, w.Result(), http.StatusInternalServerError, CodeInternal, "log")
}

func TestListenRefusals(t *testing.T) {
	t.Parallel()
	tokens := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(tokens, []byte("0123456789abcdef viewer jo\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cfg  Config
		want string // in the hint; "" when it is allowed
	}{
		"loopback":          {Config{Listen: "127.0.0.1:0"}, ""},
		"IPv6 loopback":     {Config{Listen: "[::1]:0"}, ""},
		"localhost":         {Config{Listen: "localhost:0"}, ""},
		"loopback, tokens":  {Config{Listen: "127.0.0.1:0", Tokens: tokens}, ""},
		"everywhere":        {Config{Listen: ":7070"}, "--tokens"},
		"everywhere, IPv4":  {Config{Listen: "0.0.0.0:7070"}, "--tokens"},
		"a name":            {Config{Listen: "db.example:7070"}, "--tokens"},
		"tokens alone":      {Config{Listen: ":7070", Tokens: tokens}, "--tls-cert"},
		"key alone":         {Config{Listen: "127.0.0.1:0", TLSKey: "k"}, "both"},
		"no port":           {Config{Listen: "127.0.0.1"}, "host:port"},
		"certificate alone": {Config{Listen: ":7070", Tokens: tokens, TLSCert: "c"}, "both"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.cfg.Service = newFake()
			_, err := New(c.cfg)
			if (err == nil) != (c.want == "") || !strings.Contains(hint.Of(err), c.want) {
				t.Errorf("New: %v, hint %q, want a hint with %q", err, hint.Of(err), c.want)
			}
		})
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	f := newFake()
	s, err := New(Config{Service: f, Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	ended := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	<-s.Listening()

	busy, err := New(Config{Service: f, Listen: strings.TrimPrefix(s.URL(), "http://")})
	if err != nil {
		t.Fatal(err)
	}
	if err := busy.Run(t.Context()); err == nil || !strings.Contains(hint.Of(err), "--listen") {
		t.Errorf("second server on the port: %v, hint %q", err, hint.Of(err))
	}

	c, err := NewClient(s.URL(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	resp := get(t, s.URL()+"/v1/migrations/shop/events")
	defer resp.Body.Close()
	f.mu.Lock()
	f.mu.waitsFor = make(chan struct{})
	f.mu.Unlock()
	waited := make(chan error, 1)
	go func() { waited <- c.Do(t.Context(), "shop", migrate.Command{Verb: migrate.Promote, Wait: true}) }()
	for f.mu.Lock(); len(f.mu.asked) == 0; f.mu.Lock() {
		f.mu.Unlock()
		select {
		case <-t.Context().Done():
			t.Fatal("the command did not arrive")
		case <-time.After(time.Millisecond):
		}
	}
	f.mu.Unlock()

	cancel(ended)
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Errorf("event stream did not end cleanly: %v", err)
	}
	if p, ok := errors.AsType[*Problem](<-waited); !ok || p.Code != CodeStopping {
		t.Errorf("waiting command: %v", p)
	}
	if err := <-done; !errors.Is(err, ended) {
		t.Errorf("Run = %v, want the cause", err)
	}
	if _, err := c.List(t.Context()); !strings.Contains(hint.Of(err), "is ficus run or ficus serve running?") {
		t.Errorf("List of nobody: %v, hint %q", err, hint.Of(err))
	}
}
