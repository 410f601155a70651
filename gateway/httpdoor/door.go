package httpdoor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/buffer"
	"github.com/ficus-migrate/ficus/internal/hint"
)

const (
	// headerTimeout bounds how slowly a client may send its request's header.
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 64 << 10
)

// errStopping ends what still goes on when the door has stopped.
var errStopping = errors.New("the HTTP door stops")

// A Door leads HTTP clients to the owner's data server. Its methods are safe for concurrent use.
type Door struct {
	cfg       Config
	servers   map[Backend]*url.URL
	mux       *http.ServeMux    // finds the pattern of a request
	routes    map[string]*route // by pattern
	other     route             // of requests that no pattern matches
	api       http.Handler      // of commands; nil without
	types     map[string]map[Backend]*call
	tokens    tokens
	commands  *buffer.Commands // nil without
	queue     *buffer.Queue    // of writes
	transport *http.Transport
	shadows   chan shadow
	tls       *tls.Config
	listening chan struct{}
	opened    func() // closes listening
	seed      maphash.Seed
	count     counters

	mu struct {
		sync.Mutex
		addr     net.Addr
		owner    Backend
		percent  int // of reads, on the data server that does not own
		epoch    int64
		answered bool // by a Release: a Hold of that epoch comes too late
		hold     *hold
		inFlight int // writes at the owner
		stalls   []time.Duration
		differ   []Difference // the newest shadow reads that differed
	}
}

// A route is a Route at work.
type route struct {
	Route

	ignore *program
}

// counters are what Stats reads.
type counters struct {
	reads, readsAway, writes, fellBack, failed, refused      atomic.Int64
	same, different, settled, shadowFailed, skipped, dropped atomic.Int64
	took, tookShadow                                         atomic.Int64 // nanoseconds, of those compared
}

// Stats are the door's figures. Counters start at 0 with the process.
type Stats struct {
	Held     int // writes that wait for a Release now
	InFlight int // writes at the owner now

	Reads     int64 // passed
	ReadsAway int64 // of them, to the data server that does not own
	FellBack  int64 // of those, to the owner, since the other one did not answer
	Writes    int64 // passed
	Failed    int64 // requests that a data server did not answer
	Refused   int64 // writes that waited for too long or found too many waiting

	Shadow   ShadowStats
	Commands *buffer.CommandStats // nil without commands
}

// ShadowStats are the figures of shadow reads.
type ShadowStats struct {
	Same      int64
	Different int64 // also when they were made again
	Settled   int64 // different at first: one of the databases was behind
	Failed    int64 // the other data server did not answer
	Skipped   int64 // too large, or in an encoding that is not known
	Dropped   int64 // too many at a time

	Took, TookShadow time.Duration // sums over those that were compared, until the body's end
}

// New checks cfg, compiles its programs and opens the command log. It opens no port.
func New(cfg Config) (*Door, error) {
	cfg.setDefaults()
	servers, err := cfg.servers()
	if err != nil {
		return nil, err
	}
	if err := cfg.checkListen(); err != nil {
		return nil, err
	}
	d := &Door{
		cfg: cfg, servers: servers, seed: maphash.MakeSeed(),
		queue:     buffer.New(buffer.Config{MaxHeld: cfg.MaxHeld, MaxWait: cfg.HoldTimeout}),
		listening: make(chan struct{}),
		shadows:   make(chan shadow, maxShadows),
		transport: &http.Transport{
			MaxIdleConnsPerHost: 256, IdleConnTimeout: idleTimeout, ResponseHeaderTimeout: cfg.Timeout,
			DialContext: (&net.Dialer{Timeout: headerTimeout}).DialContext, TLSHandshakeTimeout: headerTimeout, ForceAttemptHTTP2: true,
		},
	}
	d.other.Reads = 100
	d.opened = sync.OnceFunc(func() { close(d.listening) })
	d.mu.owner, d.mu.epoch = cfg.Owner, cfg.Epoch
	if d.mux, d.routes, err = cfg.routes(); err != nil {
		return nil, err
	}
	if cfg.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("HTTP door: read the certificate: %w", err)
		}
		d.tls = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	}
	if cfg.takesCommands() {
		if err := d.openCommands(); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// Listening is closed once the port was open.
func (d *Door) Listening() <-chan struct{} { return d.listening }

// Addr returns the door's address, nil before it is open.
func (d *Door) Addr() net.Addr {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.addr
}

// Commands returns the log of commands, nil without one.
func (d *Door) Commands() *buffer.Commands { return d.commands }

// Stats returns the present figures.
func (d *Door) Stats() Stats {
	c := &d.count
	s := Stats{
		Held: d.queue.Len(), Reads: c.reads.Load(), ReadsAway: c.readsAway.Load(), FellBack: c.fellBack.Load(),
		Writes: c.writes.Load(), Failed: c.failed.Load(), Refused: c.refused.Load(),
		Shadow: ShadowStats{
			Same: c.same.Load(), Different: c.different.Load(), Settled: c.settled.Load(), Failed: c.shadowFailed.Load(),
			Skipped: c.skipped.Load(), Dropped: c.dropped.Load(),
			Took: time.Duration(c.took.Load()), TookShadow: time.Duration(c.tookShadow.Load()),
		},
	}
	d.mu.Lock()
	s.InFlight = d.mu.inFlight
	d.mu.Unlock()
	if d.commands != nil {
		stats := d.commands.Stats()
		s.Commands = &stats
	}
	return s
}

// Used reports whether somebody has sent something to the door, or commands wait in its log.
func (d *Door) Used() bool {
	s := d.Stats()
	return s.Reads+s.Writes+s.Refused > 0 || s.Commands != nil && (s.Commands.Accepted+s.Commands.Repeated > 0 || s.Commands.Waiting+s.Commands.Sending > 0)
}

// Run serves clients and sends commands until ctx ends. Requests may then go on for StopTimeout. It returns
// ctx's cause once all have ended. It may then be called again.
func (d *Door) Run(ctx context.Context) error {
	d.queue.Open()
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", d.cfg.Listen)
	if err != nil {
		return hint.Wrap(fmt.Errorf("open the HTTP door: %w", err), "choose another address, or stop what listens there")
	}
	d.mu.Lock()
	d.mu.addr = ln.Addr()
	d.mu.Unlock()
	requests, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	srv := &http.Server{
		Handler: d, TLSConfig: d.tls, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		BaseContext: func(net.Listener) context.Context { return requests },
		ErrorLog:    slog.NewLogLogger(d.cfg.Log.Handler(), slog.LevelDebug), // what strangers do
	}
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.serve(srv, ln) })
	group.Go(func() error { return d.shadowing(gctx) })
	if d.commands != nil {
		group.Go(func() error { return d.commands.Run(gctx) })
	}
	group.Go(func() error {
		<-gctx.Done()
		d.queue.Close()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.StopTimeout)
		defer cancel()
		if err := srv.Shutdown(last); err != nil {
			end(errStopping)
			_ = srv.Close()
		}
		return context.Cause(gctx)
	})
	d.opened()
	err = group.Wait()
	d.transport.CloseIdleConnections()
	return err
}

func (d *Door) serve(srv *http.Server, ln net.Listener) error {
	var err error
	if d.tls != nil {
		err = srv.ServeTLS(ln, "", "")
	} else {
		err = srv.Serve(ln)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve the HTTP door: %w", err)
}

// ServeHTTP implements [http.Handler].
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if d.api != nil && (r.URL.Path == d.cfg.Commands.Path || strings.HasPrefix(r.URL.Path, d.cfg.Commands.Path+"/")) {
		d.api.ServeHTTP(w, r)
		return
	}
	rt := d.routeOf(r)
	if rt.reads(r.Method) {
		d.read(w, r, rt)
		return
	}
	d.write(w, r)
}

// routeOf returns the rule for a request.
func (d *Door) routeOf(r *http.Request) *route {
	_, pattern := d.mux.Handler(r)
	if rt := d.routes[pattern]; rt != nil {
		return rt
	}
	return &d.other
}

// reads reports whether a request changes nothing.
func (rt *route) reads(method string) bool {
	switch rt.Kind {
	case Read:
		return true
	case Write:
		return false
	case ByMethod:
	}
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// number returns a number from [0, 100) for a request, the same for all of one user.
func (d *Door) number(r *http.Request) float64 {
	kind, name, _ := strings.Cut(d.cfg.Sticky, ":")
	var who string
	switch kind {
	case "header":
		who = r.Header.Get(name)
	case "cookie":
		if c, err := r.Cookie(name); err == nil {
			who = c.Value
		}
	}
	if who == "" {
		return rand.Float64() * 100
	}
	return float64(maphash.String(d.seed, who)%10_000) / 100
}
