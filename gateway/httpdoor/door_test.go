package httpdoor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Writes go to the owner; reads by percentage, and no further than their route allows. It fails when
// reads ignores a route's kind, and when read ignores its percentage.
func TestWhereRequestsGo(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	d, url := open(t, a, b, func(c *Config) {
		c.Routes = []Route{
			{Match: "GET /never/", Reads: -1},
			{Match: "GET /export", Kind: Write},
			{Match: "POST /search", Kind: Read},
			{Match: "GET /half/{id}", Reads: 50},
		}
	})
	c := client(t)
	by := func(method, path string) string { return do(t, c, method, url+path, "").header.Get("Served-By") }
	if got := by(http.MethodGet, "/x") + by(http.MethodPost, "/x"); got != "sourcesource" {
		t.Errorf("before reads move: %s", got)
	}
	if err := d.Reads(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	for request, want := range map[string]string{
		"GET /x": "target", "HEAD /x": "target", "POST /x": "source", "DELETE /x": "source",
		"GET /never/y": "source", "GET /export": "source", "POST /search": "target",
	} {
		method, path, _ := strings.Cut(request, " ")
		if got := by(method, path); got != want {
			t.Errorf("%s went to the %s, want the %s", request, got, want)
		}
	}
	if o := do(t, c, http.MethodGet, url+"/x", "", "Connection", "Upgrade", "Upgrade", "websocket"); o.header.Get("Served-By") != "source" {
		t.Errorf("an upgrade went to the %s", o.header.Get("Served-By"))
	}
	away := 0
	for range 200 {
		if by(http.MethodGet, "/half/7") == "target" {
			away++
		}
	}
	if away < 60 || away > 140 {
		t.Errorf("%d of 200 reads went away at 50 percent", away)
	}
	if err := d.Release(t.Context(), newSide, 2); err != nil {
		t.Fatal(err)
	}
	if got := by(http.MethodPost, "/x") + by(http.MethodGet, "/never/y"); got != "targettarget" {
		t.Errorf("after the change of owner: %s", got)
	}
	if s := d.Stats(); s.Reads != 207 || s.Writes != 4+1 || s.Refused != 0 {
		t.Errorf("figures: %+v", s)
	}
}

// All reads of one user go the same way. It fails when number does not look at Sticky.
func TestSticky(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	d, url := open(t, a, b, func(c *Config) { c.Sticky = "cookie:session" })
	if err := d.Reads(t.Context(), 50); err != nil {
		t.Fatal(err)
	}
	c := client(t)
	ways := map[string]int{}
	for user := range 30 {
		first := ""
		for range 5 {
			by := do(t, c, http.MethodGet, url+"/x", "", "Cookie", fmt.Sprintf("session=%d", user)).header.Get("Served-By")
			if first == "" {
				first = by
				ways[by]++
			} else if by != first {
				t.Fatalf("user %d went to the %s and to the %s", user, first, by)
			}
		}
	}
	if len(ways) != 2 {
		t.Errorf("all users went one way: %v", ways)
	}
}

// Requests and responses pass as they are. It fails when pass sets the host to the data server's or cleans
// the query.
func TestPassesAsItIs(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	a.handle = func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		w.Header().Set("X-Odd", "é;a=b")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprint(w, "short and stout")
		return true
	}
	_, url := open(t, a, b, func(c *Config) { c.Servers[oldSide] += "/base" })
	o := do(t, client(t), http.MethodPut, url+"/a%2Fb//c;d?x=1;y&z=%zz", "the body", "X-Forwarded-For", "192.0.2.1", "X-Forwarded-Proto", "https", "Host", "ignored")
	if o.status != http.StatusTeapot || o.body != "short and stout" || o.header.Get("X-Odd") != "é;a=b" {
		t.Errorf("response: %+v", o)
	}
	r, body := a.last()
	if r.RequestURI != "/base/a%2Fb//c;d?x=1;y&z=%zz" || body != "the body" || r.Method != http.MethodPut {
		t.Errorf("request: %s %s %q", r.Method, r.RequestURI, body)
	}
	if got := r.Header.Get("X-Forwarded-For"); got != "192.0.2.1, 127.0.0.1" || r.Header.Get("X-Forwarded-Proto") != "https" {
		t.Errorf("forwarded for %q, %q", got, r.Header.Get("X-Forwarded-Proto"))
	}
	if "http://"+r.Host != url {
		t.Errorf("host %s, want that of %s", r.Host, url)
	}
}

// A read whose data server does not answer goes to the owner; a write is refused, with a code. It fails
// when toFirst gives up.
func TestServerAway(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	d, url := open(t, a, b, nil)
	if err := d.Reads(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	b.http.Close()
	c := client(t)
	if o := do(t, c, http.MethodGet, url+"/x", ""); o.header.Get("Served-By") != "source" {
		t.Errorf("read: %+v", o)
	}
	a.http.Close()
	if o := do(t, c, http.MethodPost, url+"/x", "{}"); o.status != http.StatusBadGateway || o.code() != "unreachable" {
		t.Errorf("write: %+v", o)
	}
	if s := d.Stats(); s.FellBack != 1 || s.Failed != 1 {
		t.Errorf("figures: %+v", s)
	}
}

// Clients write while the owner changes again and again. None fails, none reaches a data server that
// does not own, and when Hold returns nothing is at work. It fails when Hold does not wait for writes in
// flight, and when Release leaves the owner as it was.
func TestWritesWhileTheOwnerChanges(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	var owner atomic.Value
	owner.Store("source")
	for _, s := range []*dataServer{a, b} {
		s.handle = func(w http.ResponseWriter, r *http.Request, _ string) bool {
			if before := owner.Load(); before != s.name {
				t.Errorf("a write came to the %s while the owner was %v", s.name, before)
			}
			return false
		}
	}
	d, url := open(t, a, b, nil)
	c := client(t)
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	var written atomic.Int64
	for range 16 {
		work.Go(func() {
			for ctx.Err() == nil {
				o, err := try(context.WithoutCancel(ctx), c, http.MethodPost, url+"/orders", `{"n":1}`)
				if err != nil || o.status != http.StatusOK {
					t.Errorf("write: %+v, %v", o, err)
					return
				}
				written.Add(1)
			}
		})
	}
	for epoch := int64(2); epoch < 22; epoch++ {
		if err := d.Hold(t.Context(), epoch); err != nil {
			t.Fatal(err)
		}
		a.mu.Lock()
		n := a.writes + b.writes
		a.mu.Unlock()
		// The response is written before the handler's count falls: what is left then is past its answer.
		if inFlight := d.Stats().InFlight; inFlight > 0 {
			t.Errorf("epoch %d: %d in flight, %d at work under the hold", epoch, inFlight, n)
		}
		to := newSide
		if epoch%2 == 1 {
			to = oldSide
		}
		owner.Store(string(to))
		if err := d.Release(t.Context(), to, epoch); err != nil {
			t.Fatal(err)
		}
		seen := written.Load()
		eventually(t, "clients go on", func() bool { return written.Load() > seen+20 })
	}
	stop()
	work.Wait()
	if s := d.Stalls(); s.Clients == 0 || s.P50 > s.P99 || s.P99 > s.Max {
		t.Errorf("stalls: %+v", s)
	}
	eventually(t, "nothing is in flight", func() bool { return d.Stats().InFlight == 0 }) // clients have answers a moment before
	if s := d.Stats(); s.Writes != written.Load() || s.Held != 0 || s.Refused != 0 {
		t.Errorf("figures: %+v after %d writes", s, written.Load())
	}
}

// Who waits for too long, or finds too many waiting, is told that nothing was done; reads are not held. It
// fails when begin does not look for a hold: one may come between the queue and it.
func TestHeldForTooLong(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	d, url := open(t, a, b, func(c *Config) { c.HoldTimeout, c.MaxHeld = 300*time.Millisecond, 1 })
	if err := d.Hold(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if _, ok := d.begin(); ok {
		t.Error("a write begins under the hold")
	}
	c := client(t)
	waiting := make(chan outcome, 1)
	go func() {
		o, _ := try(t.Context(), c, http.MethodPost, url+"/x", "{}")
		waiting <- o
	}()
	eventually(t, "one waits", func() bool { return d.Stats().Held == 1 })
	if o := do(t, c, http.MethodPost, url+"/x", "{}"); o.status != http.StatusServiceUnavailable || o.code() != "crowded" || o.header.Get("Retry-After") != "1" {
		t.Errorf("the second: %+v", o)
	}
	if o := do(t, c, http.MethodGet, url+"/x", ""); o.status != http.StatusOK {
		t.Errorf("a read: %+v", o)
	}
	if o := <-waiting; o.status != http.StatusServiceUnavailable || o.code() != "held" || o.header.Get("Retry-After") != "1" {
		t.Errorf("the first: %+v", o)
	}
	if n := a.requests() + b.requests(); n != 1 {
		t.Errorf("%d requests came through, want the read alone", n)
	}
	if d.Stats().Refused != 2 {
		t.Errorf("refused: %d", d.Stats().Refused)
	}
}

// A call that was long under way changes nothing for clients of a later time, and a Hold that is overtaken
// by its Release leaves nobody waiting. It fails when beginHold or Release does not look at the epoch.
func TestEpochs(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	leave := make(chan struct{})
	a.handle = func(http.ResponseWriter, *http.Request, string) bool {
		<-leave
		return false
	}
	d, url := open(t, a, b, withCommands(t, nil))
	c := client(t)
	first := make(chan outcome, 1)
	go func() {
		o, _ := try(t.Context(), c, http.MethodPost, url+"/x", "{}")
		first <- o
	}()
	eventually(t, "a write is in flight", func() bool { return d.Stats().InFlight == 1 })
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := d.Hold(short, 5); err == nil || !strings.Contains(err.Error(), "1 writes and 0 commands are still") {
		t.Errorf("hold: %v", err)
	}
	held := make(chan error, 1)
	go func() { held <- d.Hold(t.Context(), 5) }()
	for what, err := range map[string]error{
		"hold":    d.Hold(t.Context(), 4),
		"release": d.Release(t.Context(), newSide, 4),
	} {
		if !errors.Is(err, ErrStale) {
			t.Errorf("%s of an older epoch: %v", what, err)
		}
	}
	if err := d.Release(t.Context(), newSide, 5); err != nil {
		t.Fatal(err)
	}
	close(leave)
	if err := <-held; err != nil && !errors.Is(err, errReleased) && !errors.Is(err, ErrStale) { // drained, or overtaken sooner or later
		t.Errorf("hold: %v", err)
	}
	if err := d.Hold(t.Context(), 5); !errors.Is(err, ErrStale) {
		t.Errorf("hold of a released epoch: %v", err)
	}
	if s := d.Commands().Stats(); s.Held {
		t.Error("commands are held after the release")
	}
	if o := <-first; o.header.Get("Served-By") != "source" {
		t.Errorf("the write in flight: %+v", o)
	}
	if o := do(t, c, http.MethodPost, url+"/x", "{}"); o.header.Get("Served-By") != "target" {
		t.Errorf("the next write: %+v", o)
	}
}

// A door that was stopped is opened again, as after a migration that failed was resumed. It fails when Run
// leaves the queue closed.
func TestRunAgain(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	cfg := Config{Listen: "127.0.0.1:0", Owner: oldSide, Servers: map[Backend]string{oldSide: a.http.URL, newSide: b.http.URL}}
	withCommands(t, nil)(&cfg)
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := client(t)
	for round := range 2 {
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- d.Run(ctx) }()
		<-d.Listening()
		var url string
		eventually(t, "the door to answer", func() bool {
			url = "http://" + d.Addr().String()
			_, err := try(t.Context(), c, http.MethodGet, url+"/x", "")
			return err == nil
		})
		if o := do(t, c, http.MethodPost, url+"/x", "{}"); o.status != http.StatusOK {
			t.Errorf("round %d: write: %+v", round, o)
		}
		if o := post(t, c, url, fmt.Sprintf(`{"key":"%d","type":"x"}`, round), "Prefer", "wait=20"); o.status != http.StatusCreated {
			t.Errorf("round %d: command: %+v", round, o)
		}
		c.CloseIdleConnections()
		cancel(errEnough)
		if err := <-ended; !errors.Is(err, errEnough) {
			t.Errorf("round %d ended with %v", round, err)
		}
	}
}

func TestConfigMistakes(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*Config){
		"want one or two":            func(c *Config) { c.Servers = nil },
		"data server for the owner":  func(c *Config) { c.Owner = "nobody" },
		"a user, a query":            func(c *Config) { c.Servers[oldSide] = "http://u:secret@x" },
		"is no address":              func(c *Config) { c.Servers[oldSide] = "postgresql://u:secret@x" },
		"write it as host:port|addr": func(c *Config) { c.Listen = "here" },
		"not a percentage":           func(c *Config) { c.Routes = []Route{{Match: "/", Shadow: 101}} },
		"want read or write":         func(c *Config) { c.Routes = []Route{{Match: "/", Kind: "both"}} },
		"ignore:":                    func(c *Config) { c.Routes = []Route{{Match: "/", Ignore: []string{".a["}}} },
		"has no path":                func(c *Config) { c.Routes = []Route{{Match: "GET"}} },
		"conflicts":                  func(c *Config) { c.Routes = []Route{{Match: "/a/{x}"}, {Match: "/a/{y}"}} },
		"key alone":                  func(c *Config) { c.TLSKey = "k" },
	} {
		cfg := Config{Listen: "127.0.0.1:0", Owner: oldSide, Servers: map[Backend]string{oldSide: "http://a", newSide: "http://b"}}
		change(&cfg)
		_, err := New(cfg)
		want, _, _ = strings.Cut(want, "|")
		if err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), want) && want != "write it as host:port" {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

// A sample of reads is compared, when the client has its answer: differences that stay are told without
// values, those that go are a lag, what a rule ignores is none. It fails when compare does not ask again,
// when differ does not apply the rule, and when unlike compares numbers as text.
func TestShadowReads(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	var behind atomic.Int64
	answers := map[string][2]string{
		"/same":    {`{"a":[1.50,{"b":null}],"at":"mon"}`, `{"at":"tue","a":[1.5,{"b":null}]}`},
		"/differ":  {`{"a":[{"price":"top secret"}],"at":1}`, `{"a":[{"price":"other","more":1}],"at":2}`},
		"/lagging": {`{"n":2}`, `{"n":2}`},
		"/large":   {strings.Repeat(" ", maxShadowBody) + `{}`, `{}`},
		"/gone":    {`{}`, ""},
	}
	for i, s := range []*dataServer{a, b} {
		s.handle = func(w http.ResponseWriter, r *http.Request, _ string) bool {
			body := answers[r.URL.Path][i]
			if r.URL.Path == "/lagging" && i == 1 && behind.Add(1) == 1 {
				body = `{"n":1}`
			}
			if body == "" {
				w.WriteHeader(http.StatusNotFound)
			}
			fmt.Fprint(w, body)
			return true
		}
	}
	d, url := open(t, a, b, func(c *Config) {
		c.Routes = []Route{{Match: "/", Shadow: 100, Ignore: []string{".at"}}}
	})
	c := client(t)
	for _, path := range []string{"/same", "/differ?card=1234", "/lagging", "/large", "/gone"} {
		if o := do(t, c, http.MethodGet, url+path, ""); o.status != http.StatusOK || o.header.Get("Served-By") != "source" {
			t.Errorf("%s: %+v", path, o)
		}
	}
	eventually(t, "all are compared", func() bool {
		s := d.Stats().Shadow
		return s.Same == 1 && s.Different == 2 && s.Settled == 1 && s.Skipped == 1
	})
	found := d.Differences()
	slices.SortFunc(found, func(x, y Difference) int { return strings.Compare(x.Path, y.Path) })
	if len(found) != 2 || found[0].Path != "/differ?card=…" || !slices.Equal(found[0].Fields, []string{".a[0].more", ".a[0].price"}) ||
		found[1].Path != "/gone" || found[1].Owner != 200 || found[1].Other != 404 {
		t.Errorf("differences: %+v", found)
	}
}

// The client's reads go on at their pace when the other data server stands still: what is too much is
// dropped, and counted.
func TestShadowNeverSlows(t *testing.T) {
	t.Parallel()
	a, b := twoServers(t)
	leave := make(chan struct{})
	b.handle = func(http.ResponseWriter, *http.Request, string) bool {
		<-leave
		return false
	}
	d, url := open(t, a, b, func(c *Config) { c.Routes = []Route{{Match: "/", Shadow: 100}} })
	c := client(t)
	for range maxShadows + shadowWorkers + 20 {
		do(t, c, http.MethodGet, url+"/x", "")
	}
	if n := d.Stats().Shadow.Dropped; n < 20 {
		t.Errorf("dropped %d", n)
	}
	close(leave)
}
