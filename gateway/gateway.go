package gateway

import (
	"cmp"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/buffer"
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
	name      string // of its database, "" for those that the DSNs name
	hall      *Hall
	users     atomic.Pointer[users]
	directory *directory // nil without AuthQuery
	limits    *limits
	pool      *pool // nil unless transactions are pooled

	queue *buffer.Queue         // of those held on the read-write door
	route atomic.Pointer[route] // where sessions belong; changed under mu
	moves chan struct{}         // one token per move in progress
	sweep chan struct{}         // tells Run to nudge idle sessions onto the present route

	dial     pgconn.DialFunc // how to reach backends; nil, unless a test looks at the bytes, for the DSN's way
	stopping atomic.Bool
	stalls   histogram
	reads    *reads
	shadow   *shadow
	count    counters

	mu struct {
		sync.Mutex
		sessions map[client]struct{}
		keys     map[cancelKey]client
		clients  int         // connections, those still starting included
		hold     *hold       // the present one, nil for none
		epoch    int64       // of the last Hold or Release
		answered bool        // by a Release: a Hold of that epoch comes too late
		orphan   bool        // whoever began the hold is gone
		forget   *time.Timer // ends what is expected, nil when nothing is
	}
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
type counters struct{ moved, ended, refused, transactions, wouldHold, ahead, asks atomic.Int64 }

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
	Asks         int64 // times that the databases were asked who owns
}

// New checks cfg and reads the users file. It opens nothing. The gateway has doors of its own.
func New(cfg Config) (*Gateway, error) {
	h, err := NewHall(HallConfig{
		Listen: cfg.Listen, ReadListen: cfg.ReadListen, Databases: map[string]Config{"": cfg}, MaxClients: cfg.MaxClients,
		TLS: cfg.TLS, Doors: cfg.Doors, Elsewhere: cfg.Elsewhere,
		StartupTimeout: cfg.StartupTimeout, StopTimeout: cfg.StopTimeout, RetireTimeout: cfg.RetireTimeout, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	return h.gateways[""], nil
}

func newGateway(h *Hall, name string, cfg Config) (*Gateway, error) {
	cfg.TLS, cfg.Log = h.cfg.TLS, cmp.Or(cfg.Log, h.cfg.Log)
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	g := &Gateway{
		cfg: cfg, name: name, hall: h, limits: newLimits(&cfg),
		queue: buffer.New(buffer.Config{MaxHeld: cfg.MaxHeld, MaxWait: cfg.HoldTimeout}),
		moves: make(chan struct{}, cfg.MaxMoves),
		sweep: make(chan struct{}, 1),
	}
	if cfg.AuthQuery != "" {
		g.directory = newDirectory(g, cfg.AuthQuery)
	}
	if cfg.Pooling == TransactionPooling {
		g.pool = newPool(g)
	}
	g.reads, g.shadow = newReads(&g.cfg), newShadow(g)
	g.mu.sessions = map[client]struct{}{}
	g.mu.keys = map[cancelKey]client{}
	g.mu.epoch, g.mu.answered = cfg.Epoch, cfg.Answered
	g.route.Store(&route{owner: cfg.Owner, percent: cfg.Percent})
	return g, nil
}

// Hall returns the doors of this gateway, which it may share with others.
func (g *Gateway) Hall() *Hall { return g.hall }

// Reload is [Hall.Reload].
func (g *Gateway) Reload() error { return g.hall.Reload() }

// Listening is closed once both doors are open.
func (g *Gateway) Listening() <-chan struct{} { return g.hall.Listening() }

// Addr returns the read-write door's address, nil before it is open.
func (g *Gateway) Addr() net.Addr { return g.hall.Addr() }

// ReadAddr returns the read-only door's address, nil before it is open or without one.
func (g *Gateway) ReadAddr() net.Addr { return g.hall.ReadAddr() }

// Run is [Hall.Run].
func (g *Gateway) Run(ctx context.Context) error { return g.hall.Run(ctx) }

// Stats returns the present figures.
func (g *Gateway) Stats() Stats {
	g.mu.Lock()
	clients, sessions := g.mu.clients, len(g.mu.sessions)
	g.mu.Unlock()
	return Stats{
		Clients: clients, Sessions: sessions, Held: g.queue.Len(),
		Moved: g.count.moved.Load(), Ended: g.count.ended.Load(), Refused: g.count.refused.Load(),
		Transactions: g.count.transactions.Load(), WouldHold: g.count.wouldHold.Load(), Asks: g.count.asks.Load(),
	}
}

// tend starts what a gateway does besides its sessions.
func (g *Gateway) tend(ctx context.Context, group *errgroup.Group) {
	group.Go(func() error { return g.sweeper(ctx) })
	group.Go(func() error { return g.serveReads(ctx) })
	if g.pool != nil {
		group.Go(func() error { return g.pool.keep(ctx) })
	}
	if g.cfg.Ask != nil {
		group.Go(func() error { return g.watchOwner(ctx) })
	}
}

// stop ends sessions at their border.
func (g *Gateway) stop() {
	g.stopping.Store(true)
	g.mu.Lock()
	g.expectLocked("") // its timer ends, too
	g.mu.Unlock()
	g.queue.Close()
	g.nudge(func(client) bool { return true })
}

// close ends the gateway's own sessions. Nobody logs in any more.
func (g *Gateway) close(ctx context.Context) {
	if g.pool != nil {
		g.pool.close()
	}
	if g.directory != nil {
		g.directory.close(ctx)
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
	g.mu.clients--
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
