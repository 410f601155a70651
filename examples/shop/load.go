package shop

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// A Load is customers and staff at work. Write and Ledger are required.
type Load struct {
	Write string // connection string of the database, or what stands before it
	Read  string // the same for sessions that only read; default: no readers

	Writers int // sessions that write; default 8
	Readers int // sessions that read; default 4
	Rate    int // transactions per second that all writers together try to make; default 300

	// Grace is how long transactions that are under way may go on after Run's context ended;
	// default 5 s.
	Grace time.Duration

	Ledger *Ledger // what the clients learn goes there
}

const (
	// patience is how long a client waits for one transaction; far longer than a promotion holds it.
	patience = time.Minute
	// again is the pause before a client that lost its session connects again.
	again = 100 * time.Millisecond
	// readEvery is a reader's pace.
	readEvery = 40 * time.Millisecond
)

// errGone says that a transaction was given up because the load is over.
var errGone = errors.New("the load is over")

// Run works until ctx is done and then returns nil, once every transaction has its answer. What fails
// on the way is in the ledger; the error is for what cannot begin: a shop that is not there.
func (l Load) Run(ctx context.Context) error {
	l.Writers, l.Readers = cmp.Or(l.Writers, 8), cmp.Or(l.Readers, 4)
	l.Rate, l.Grace = cmp.Or(l.Rate, 300), cmp.Or(l.Grace, 5*time.Second)
	if l.Read == "" {
		l.Readers = 0
	}
	size, err := measure(ctx, l.Write)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("start the load: %w", err)
	}

	// Transactions outlive ctx: a client waits for its answer.
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(l.Grace)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel(errGone)
		case <-work.Done():
		}
	})
	defer stop()

	var g errgroup.Group
	first := l.Ledger.enroll(l.Writers)
	for i := range l.Writers {
		w := &writer{
			session: session{connString: l.Write, style: styles()[i%len(styles())]}, ledger: l.Ledger, client: first + i, shop: size,
			rng: rand.New(rand.NewPCG(uint64(first+i), 7)),
		}
		every := time.Duration(l.Writers) * time.Second / time.Duration(l.Rate)
		g.Go(func() error { return pace(ctx, every, w.close, func() { w.work(work) }) })
	}
	for i := range l.Readers {
		r := &reader{
			session: session{connString: l.Read, style: styles()[i%len(styles())]}, ledger: l.Ledger, shop: size,
			rng: rand.New(rand.NewPCG(uint64(i), 11)),
		}
		g.Go(func() error { return pace(ctx, readEvery, r.close, func() { r.work(work) }) })
	}
	return g.Wait()
}

// size is how much of what there is to choose from.
type size struct{ customers, products int64 }

func measure(ctx context.Context, connString string) (s size, err error) {
	conn, err := pgx.Connect(ctx, connString)
	if err != nil {
		return s, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, `SELECT (SELECT max(id) FROM shop.customers), (SELECT max(id) FROM shop.products)`).Scan(&s.customers, &s.products)
	return s, err
}

// pace calls one every so often until ctx is done, then end. Somebody who was kept waiting goes on at
// the same pace and does not catch up: people do not either.
func pace(ctx context.Context, every time.Duration, end, one func()) error {
	defer end()
	next := time.Now().Add(rand.N(every))
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		one()
		if next = next.Add(every); next.Before(time.Now()) {
			next = time.Now()
		}
		timer.Reset(time.Until(next))
	}
}

// A style is how a session talks to the database.
type style string

const (
	prepared  style = "prepared"  // statements prepared once and kept
	simple    style = "simple"    // the simple protocol, values in the text
	unnamed   style = "unnamed"   // the unnamed statement, again and again
	pipelined style = "pipelined" // several prepared statements sent before the first answer
)

func styles() []style { return []style{prepared, simple, pipelined, unnamed} }

// A session is a connection that is opened again when it was lost.
type session struct {
	connString string
	style      style
	conn       *pgx.Conn // nil, or lost, before the first use
}

// open returns the connection.
func (s *session) open(ctx context.Context) (*pgx.Conn, error) {
	if s.conn != nil && !s.conn.IsClosed() {
		return s.conn, nil
	}
	cfg, err := pgx.ParseConfig(s.connString)
	if err != nil {
		return nil, err
	}
	switch s.style {
	case prepared, pipelined:
		cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	case simple:
		cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	case unnamed:
		cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
	cfg.RuntimeParams["application_name"] = "shop"
	s.conn, err = pgx.ConnectConfig(ctx, cfg)
	return s.conn, err
}

func (s *session) close() {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.conn.Close(ctx) // nothing depends on a clean goodbye
}

// rest keeps a client whose session was lost from trying again at once.
func rest(ctx context.Context) {
	timer := time.NewTimer(again)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
