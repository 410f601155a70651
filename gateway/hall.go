package gateway

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// HallConfig holds what a Hall needs. A field without a stated default is required.
type HallConfig struct {
	// Listen and ReadListen are the addresses of the doors, as in Config.
	Listen, ReadListen string
	// Databases are what is behind the doors, by the name that clients ask for, which need not be the one
	// that the DSNs have; a single one may be "", and goes by the names of its DSNs. Of fields that are here
	// as well theirs do not count, MaxClients excepted.
	Databases map[string]Config
	// MaxClients is how many clients may be connected at once, to whichever database (default 10,000).
	MaxClients int

	// TLS, Doors, Elsewhere and the timeouts are as in Config.
	TLS            TLS
	Doors          map[string]*os.File
	Elsewhere      func(ctx context.Context, pid, secret uint32)
	StartupTimeout time.Duration
	StopTimeout    time.Duration
	RetireTimeout  time.Duration

	// Log gets what an operator should know (default: discarded).
	Log *slog.Logger
}

// A Hall is one pair of doors in front of one or several gateways, each of which leads to a database of
// its own: with an owner, a hold, limits and users of its own. Its methods are safe for concurrent use.
type Hall struct {
	cfg       HallConfig
	gateways  map[string]*Gateway        // "": the only one, whose clients ask for what its DSNs name
	tls       atomic.Pointer[tls.Config] // nil: TLS is declined
	listening chan struct{}              // closed when the doors are open
	retired   chan struct{}              // closed when the doors are another process's
	left      chan struct{}              // one token when the last client has gone

	mu struct {
		sync.Mutex
		doors     map[door]net.Addr
		listeners map[door]*net.TCPListener
		clients   int  // that said what they want
		handed    bool // the doors, once
	}
	work sync.WaitGroup // one per connection
}

// NewHall checks cfg and reads the files that it names. It opens nothing.
func NewHall(cfg HallConfig) (*Hall, error) {
	if len(cfg.Databases) == 0 {
		return nil, errors.New("gateway: no database")
	}
	if _, nameless := cfg.Databases[""]; nameless && len(cfg.Databases) > 1 {
		return nil, errors.New("gateway: one of several databases has no name")
	}
	cfg.MaxClients = cmp.Or(cfg.MaxClients, 10_000)
	cfg.StartupTimeout = cmp.Or(cfg.StartupTimeout, 15*time.Second)
	cfg.StopTimeout = cmp.Or(cfg.StopTimeout, 5*time.Second)
	cfg.RetireTimeout = cmp.Or(cfg.RetireTimeout, time.Hour)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	h := &Hall{cfg: cfg, gateways: map[string]*Gateway{}, listening: make(chan struct{}), left: make(chan struct{}, 1), retired: make(chan struct{})}
	h.mu.doors = map[door]net.Addr{}
	h.mu.listeners = map[door]*net.TCPListener{}
	for _, name := range slices.Sorted(maps.Keys(cfg.Databases)) {
		g, err := newGateway(h, name, cfg.Databases[name])
		if err != nil && name != "" {
			return nil, fmt.Errorf("database %s: %w", name, err)
		} else if err != nil {
			return nil, err
		}
		h.gateways[name] = g
	}
	if err := h.checkDoors(); err != nil {
		return nil, err
	}
	return h, h.Reload()
}

// checkDoors refuses doors through which strangers could come.
func (h *Hall) checkDoors() error {
	if h.cfg.Listen == "" {
		return errors.New("gateway: no address to listen on")
	}
	for _, addr := range []string{h.cfg.Listen, h.cfg.ReadListen} {
		if addr == "" {
			continue
		}
		local, err := loopback(addr)
		if err != nil {
			return err
		}
		for _, g := range h.gateways {
			if !local && g.cfg.Users == "" && g.cfg.AuthQuery == "" {
				return hint.Wrap(fmt.Errorf("gateway: refuse to listen on %s without a users file", addr),
					"give a users file or a query for users, so that clients must authenticate, or listen on 127.0.0.1")
			}
		}
	}
	return nil
}

// Reload reads the users files and the certificate again. Clients that are connected stay. On an error
// everything is as before.
func (h *Hall) Reload() error {
	t, err := h.cfg.TLS.load()
	if err != nil {
		return err
	}
	all := map[*Gateway]*users{}
	for _, g := range h.gateways {
		u, err := loadUsers(g.cfg.Users)
		if err != nil {
			return err
		}
		if old := g.users.Load(); old != nil {
			u.mock = old.mock
		}
		all[g] = &u
	}
	for g, u := range all {
		g.users.Store(u)
	}
	h.tls.Store(t)
	return nil
}

// Databases returns the names of the databases in order. One that has none is "".
func (h *Hall) Databases() []string { return slices.Sorted(maps.Keys(h.gateways)) }

// Database returns the gateway of the database that clients ask for by that name, nil for none. Where
// there is only one, it needs no name.
func (h *Hall) Database(name string) *Gateway {
	if g := h.gateways[name]; g != nil {
		return g
	}
	if len(h.gateways) == 1 {
		for only, g := range h.gateways {
			if name == "" || only == "" && g.knows(name) {
				return g
			}
		}
	}
	return nil
}

// lead returns the gateway for whoever asks for that database. One that nobody knows is for the first of
// them to refuse, once it has found out that the client may ask at all.
func (h *Hall) lead(hello *startup) *Gateway {
	if g := h.gateways[hello.wants()]; g != nil {
		return g
	}
	return h.gateways[h.Databases()[0]]
}

// Listening is closed once both doors are open.
func (h *Hall) Listening() <-chan struct{} { return h.listening }

// Addr returns the read-write door's address, nil before it is open.
func (h *Hall) Addr() net.Addr { return h.addr(readWrite) }

// ReadAddr returns the read-only door's address, nil before it is open or without one.
func (h *Hall) ReadAddr() net.Addr { return h.addr(readOnly) }

func (h *Hall) addr(d door) net.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.doors[d]
}

// Retired is closed once another process has the doors.
func (h *Hall) Retired() <-chan struct{} { return h.retired }

// Retiring reports whether another process has the doors.
func (h *Hall) Retiring() bool {
	select {
	case <-h.retired:
		return true
	default:
		return false
	}
}

// Run opens the doors and serves clients until ctx ends; then it ends sessions at their border,
// the others after StopTimeout, and returns ctx's cause once every session is closed. Run it once.
func (h *Hall) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	life, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abort(nil)
	for _, d := range []door{readWrite, readOnly} {
		if err := h.open(ctx, life, d, group); err != nil {
			abort(err)
			group.Go(func() error { return err }) // closes the door that is open
			return group.Wait()
		}
	}
	close(h.listening)
	for _, g := range h.gateways {
		g.tend(ctx, group)
	}
	err := group.Wait()

	for _, g := range h.gateways {
		g.stop()
	}
	closed := make(chan struct{})
	go func() { // ends with the last session; waited for below
		defer close(closed)
		h.work.Wait()
	}()
	timer := time.NewTimer(h.cfg.StopTimeout)
	defer timer.Stop()
	select {
	case <-closed:
	case <-timer.C:
		abort(errors.New("gateway stopped"))
		<-closed
	}
	for _, g := range h.gateways {
		g.close(context.WithoutCancel(ctx))
	}
	return err
}

// open starts listening at one door.
func (h *Hall) open(ctx, life context.Context, d door, group *errgroup.Group) error {
	addr := h.cfg.Listen
	if d == readOnly {
		addr = h.cfg.ReadListen
	}
	if addr == "" {
		return nil
	}
	ln, err := h.listen(ctx, d, addr)
	if err != nil {
		return hint.Wrap(fmt.Errorf("gateway: open the %s door: %w", d, err),
			"choose another address, or stop what listens there")
	}
	h.mu.Lock()
	h.mu.doors[d], h.mu.listeners[d] = ln.Addr(), ln
	h.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	group.Go(func() error {
		defer stop()
		return h.accept(ctx, life, ln, d)
	})
	return nil
}

// accept serves whoever comes. ctx ends the accepting and what has not begun to work, life the sessions.
func (h *Hall) accept(ctx, life context.Context, ln net.Listener, d door) error {
	defer ln.Close()
	retry := backoff.Timer{Min: 5 * time.Millisecond, Max: time.Second}
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if h.Retiring() {
				return h.retire(ctx)
			}
			h.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "accepting a client failed, will go on", slog.Any("err", err))
			if err := retry.Wait(ctx); err != nil { // out of file descriptors, most likely
				return err
			}
			continue
		}
		retry.Reset()
		// One goroutine per client; Run waits for it.
		h.work.Go(func() {
			defer conn.Close()
			h.serve(ctx, life, conn, d)
		})
	}
}

// enter counts a connection in, unless there are too many.
func (h *Hall) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.clients >= h.cfg.MaxClients {
		return false
	}
	h.mu.clients++
	return true
}

func (h *Hall) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.clients--; h.mu.clients == 0 {
		select {
		case h.left <- struct{}{}:
		default:
		}
	}
}

// clients returns how many are connected and said what they want.
func (h *Hall) clients() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.clients
}

// names tells a client what it could have asked for.
func (h *Hall) names() string {
	var names []string
	for _, name := range h.Databases() {
		names = append(names, fmt.Sprintf("%q", name))
	}
	return strings.Join(names, ", ")
}
