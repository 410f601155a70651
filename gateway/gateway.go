package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/buffer"
	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// A door is one of the two ways in.
type door string

const (
	readWrite door = "read-write"
	readOnly  door = "read-only"
)

// A Gateway leads clients to the owner. Its methods are safe for concurrent use.
type Gateway struct {
	cfg       Config
	users     atomic.Pointer[users]
	tls       atomic.Pointer[tls.Config] // nil: TLS is declined
	directory *directory                 // nil without AuthQuery
	limits    *limits
	pool      *pool // nil unless transactions are pooled

	queue *buffer.Queue         // of those held on the read-write door
	route atomic.Pointer[route] // where sessions belong; changed under mu
	moves chan struct{}         // one token per move in progress
	sweep chan struct{}         // tells Run to nudge idle sessions onto the present route

	dial      pgconn.DialFunc // how to reach backends; nil, unless a test looks at the bytes, for the DSN's way
	listening chan struct{}   // closed when the doors are open
	stopping  atomic.Bool
	retiring  atomic.Bool   // the doors are another process's
	left      chan struct{} // one token when the last client has gone
	stalls    histogram
	reads     *reads
	shadow    *shadow
	count     counters

	mu struct {
		sync.Mutex
		doors     map[door]net.Addr
		listeners map[door]*net.TCPListener
		sessions  map[client]struct{}
		keys      map[cancelKey]client
		clients   int   // connections, those still starting included
		hold      *hold // the present one, nil for none
		epoch     int64 // of the last Hold or Release
		answered  bool  // by a Release: a Hold of that epoch comes too late
		orphan    bool  // whoever began the hold is gone
	}
	work sync.WaitGroup // one per connection
}

// A client is one that is let in: a session, or a borrower.
type client interface {
	run(life context.Context)
	refused() // instead of run, when it is too late for that
	wake()    // look at the route, and whether the gateway stops
	astray() bool
	joinHold(h *hold)
	leaveHold()
	cancelQuery(ctx context.Context) error
	cancelKey() cancelKey
	user() string
}

// counters are what Stats reads.
type counters struct{ moved, ended, refused, transactions, wouldHold, ahead atomic.Int64 }

// Stats are the gateway's figures. Counters start at 0 with the process.
type Stats struct {
	Clients      int   // connections now, those still starting included
	Sessions     int   // of them, with a server session
	Held         int   // waiting for a Release now
	Moved        int64 // sessions that went to another backend
	Ended        int64 // sessions ended because they could not
	Refused      int64 // transactions refused because the hold was too long or the queue full
	Transactions int64 // units of work that ended outside a transaction block
	WouldHold    int64 // of them, those that a dry run would have made wait
}

// New checks cfg and reads the users file. It opens nothing.
func New(cfg Config) (*Gateway, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	g := &Gateway{
		cfg: cfg, limits: newLimits(&cfg),
		queue:     buffer.New(buffer.Config{MaxHeld: cfg.MaxHeld, MaxWait: cfg.HoldTimeout}),
		moves:     make(chan struct{}, cfg.MaxMoves),
		sweep:     make(chan struct{}, 1),
		listening: make(chan struct{}),
		left:      make(chan struct{}, 1),
	}
	if err := g.Reload(); err != nil {
		return nil, err
	}
	if cfg.AuthQuery != "" {
		g.directory = newDirectory(g, cfg.AuthQuery)
	}
	if cfg.Pooling == TransactionPooling {
		g.pool = newPool(g)
	}
	g.reads, g.shadow = newReads(&g.cfg), newShadow(g)
	g.mu.doors = map[door]net.Addr{}
	g.mu.listeners = map[door]*net.TCPListener{}
	g.mu.sessions = map[client]struct{}{}
	g.mu.keys = map[cancelKey]client{}
	g.mu.epoch, g.mu.answered = cfg.Epoch, cfg.Answered
	g.route.Store(&route{owner: cfg.Owner, percent: cfg.Percent})
	return g, nil
}

// Reload reads the users file and the certificate again. Clients that are connected stay. On an error
// everything is as before.
func (g *Gateway) Reload() error {
	u, err := loadUsers(g.cfg.Users)
	if err != nil {
		return err
	}
	if old := g.users.Load(); old != nil {
		u.mock = old.mock
	}
	t, err := g.cfg.TLS.load()
	if err != nil {
		return err
	}
	g.users.Store(&u)
	g.tls.Store(t)
	return nil
}

// Listening is closed once both doors are open.
func (g *Gateway) Listening() <-chan struct{} { return g.listening }

// Addr returns the read-write door's address, nil before it is open.
func (g *Gateway) Addr() net.Addr { return g.addr(readWrite) }

// ReadAddr returns the read-only door's address, nil before it is open or without one.
func (g *Gateway) ReadAddr() net.Addr { return g.addr(readOnly) }

func (g *Gateway) addr(d door) net.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.doors[d]
}

// Stats returns the present figures.
func (g *Gateway) Stats() Stats {
	g.mu.Lock()
	clients, sessions := g.mu.clients, len(g.mu.sessions)
	g.mu.Unlock()
	return Stats{
		Clients: clients, Sessions: sessions, Held: g.queue.Len(),
		Moved: g.count.moved.Load(), Ended: g.count.ended.Load(), Refused: g.count.refused.Load(),
		Transactions: g.count.transactions.Load(), WouldHold: g.count.wouldHold.Load(),
	}
}

// Run opens the doors and serves clients until ctx ends; then it ends sessions at their border,
// the others after StopTimeout, and returns ctx's cause once every session is closed. Run it once.
func (g *Gateway) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	life, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abort(nil)
	for _, d := range []door{readWrite, readOnly} {
		if err := g.open(ctx, life, d, group); err != nil {
			abort(err)
			group.Go(func() error { return err }) // closes the door that is open
			return group.Wait()
		}
	}
	close(g.listening)
	group.Go(func() error { return g.sweeper(ctx) })
	group.Go(func() error { return g.serveReads(ctx) })
	if g.pool != nil {
		group.Go(func() error { return g.pool.keep(ctx) })
	}
	if g.cfg.Ask != nil {
		group.Go(func() error { return g.watchOwner(ctx) })
	}
	err := group.Wait()

	g.stopping.Store(true)
	g.queue.Close()
	g.nudge(func(client) bool { return true })
	closed := make(chan struct{})
	go func() { // ends with the last session; waited for below
		defer close(closed)
		g.work.Wait()
	}()
	timer := time.NewTimer(g.cfg.StopTimeout)
	defer timer.Stop()
	select {
	case <-closed:
	case <-timer.C:
		abort(errors.New("gateway stopped"))
		<-closed
	}
	if g.pool != nil {
		g.pool.close()
	}
	if g.directory != nil {
		g.directory.close(context.WithoutCancel(ctx)) // nobody logs in any more
	}
	return err
}

// open starts listening at one door.
func (g *Gateway) open(ctx, life context.Context, d door, group *errgroup.Group) error {
	addr := g.cfg.Listen
	if d == readOnly {
		addr = g.cfg.ReadListen
	}
	if addr == "" {
		return nil
	}
	ln, err := g.listen(ctx, d, addr)
	if err != nil {
		return hint.Wrap(fmt.Errorf("gateway: open the %s door: %w", d, err),
			"choose another address, or stop what listens there")
	}
	g.mu.Lock()
	g.mu.doors[d], g.mu.listeners[d] = ln.Addr(), ln
	g.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	group.Go(func() error {
		defer stop()
		return g.accept(ctx, life, ln, d)
	})
	return nil
}

// accept serves whoever comes. ctx ends the accepting and what has not begun to work, life the sessions.
func (g *Gateway) accept(ctx, life context.Context, ln net.Listener, d door) error {
	defer ln.Close()
	retry := backoff.Timer{Min: 5 * time.Millisecond, Max: time.Second}
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if g.retiring.Load() {
				return g.retire(ctx)
			}
			g.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "accepting a client failed, will go on", slog.Any("err", err))
			if err := retry.Wait(ctx); err != nil { // out of file descriptors, most likely
				return err
			}
			continue
		}
		retry.Reset()
		// One goroutine per client; Run waits for it.
		g.work.Go(func() {
			defer conn.Close()
			g.serve(ctx, life, conn, d)
		})
	}
}

// admitClient counts a connection in, unless there are too many.
func (g *Gateway) admitClient() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.clients >= g.cfg.MaxClients {
		return false
	}
	g.mu.clients++
	return true
}

func (g *Gateway) clientGone() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.clients--; g.mu.clients == 0 {
		select {
		case g.left <- struct{}{}:
		default:
		}
	}
}

// nudge wakes the sessions that which selects, so that they look at the route.
func (g *Gateway) nudge(which func(client) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for s := range g.mu.sessions {
		if which(s) {
			s.wake()
		}
	}
}
