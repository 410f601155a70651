package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/gateway"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m, pgtest.CheckLeaks()) }

const (
	source gateway.Backend = "source"
	target gateway.Backend = "target"
)

// A process is a gateway with its control, as ficus gateway runs them.
type process struct {
	*gateway.Gateway
	server *Server
	path   string
	ended  chan error // of the gateway
	stop   func()
}

// start runs a gateway that takes over from the one at path, if there is one.
func start(t *testing.T, path string, dbs map[gateway.Backend]*pgtest.Database, ask func(context.Context) (gateway.Ownership, error)) *process {
	t.Helper()
	cfg := gateway.Config{
		Listen: "127.0.0.1:0", ReadListen: "127.0.0.1:0", Owner: source, Epoch: 1, Backends: map[gateway.Backend]pg.DSN{},
		Ask: ask, AskEvery: 10 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	}
	for name, db := range dbs {
		cfg.Backends[name] = db.DSN
	}
	in, err := TakeOver(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	var before map[string]*Client
	if in != nil {
		was := in.Databases[""]
		cfg.Owner, cfg.Epoch, cfg.Answered, cfg.Percent, cfg.Doors, before = was.Owner, was.Epoch, was.Answered, was.Percent, in.Doors, in.Before
		cfg.Elsewhere = func(ctx context.Context, pid, secret uint32) { _ = in.Cancel(ctx, pid, secret) }
	}
	g, err := gateway.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Hall: g.Hall(), Path: path, Before: before, Log: cfg.Log})
	if err != nil {
		t.Fatal(err)
	}
	p := &process{Gateway: g, server: s, path: path, ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { p.ended <- g.Run(ctx) })
	wg.Go(func() { _ = s.Run(ctx) })
	p.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	t.Cleanup(p.stop)
	<-g.Listening()
	c := NewClient(path, "")
	t.Cleanup(c.Close)
	pgtest.Eventually(t, "control answers", func() bool {
		_, err := c.Status(t.Context())
		return err == nil
	})
	return p
}

func databases(t *testing.T) map[gateway.Backend]*pgtest.Database {
	t.Helper()
	dbs := map[gateway.Backend]*pgtest.Database{source: pgtest.DB(t), target: pgtest.DB(t)}
	for name, db := range dbs {
		db.Exec(t, fmt.Sprintf("CREATE TABLE here AS SELECT '%s'::text AS name", name))
	}
	return dbs
}

func connect(t *testing.T, p *process, dbs map[gateway.Backend]*pgtest.Database) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable", p.Addr(), dbs[source].DSN.Database()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func where(t *testing.T, conn *pgx.Conn) (name string) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "SELECT name FROM here").Scan(&name); err != nil {
		t.Fatal(err)
	}
	return name
}

// An orchestrator in another process moves the owner and the reads, hears of stale epochs, and what it
// is told about the gateway is so.
func TestDrive(t *testing.T) {
	t.Parallel()
	dbs := databases(t)
	p := start(t, filepath.Join(t.TempDir(), "g.sock"), dbs, nil)
	c := NewClient(p.path, "")
	defer c.Close()
	conn := connect(t, p, dbs)
	if err := c.Hold(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() { got <- where(t, conn) }()
	pgtest.Eventually(t, "the client is held", func() bool {
		st, err := c.Status(t.Context())
		return err == nil && st.Stats.Held == 1
	})
	if err := c.Release(t.Context(), target, 2); err != nil {
		t.Fatal(err)
	}
	if g := <-got; g != "target" {
		t.Errorf("got %s, want target", g)
	}
	if err := c.Hold(t.Context(), 2); !errors.Is(err, gateway.ErrStale) {
		t.Errorf("a stale hold: got %v", err)
	}
	if err := c.Release(t.Context(), "nowhere", 3); err == nil {
		t.Error("release to nowhere: no error")
	}
	if err := c.Reads(t.Context(), 30); err != nil {
		t.Fatal(err)
	}
	st, err := c.Status(t.Context())
	if err != nil || st.Owner != target || st.Epoch != 2 || st.Percent != 30 || st.Stalls.Clients != 1 || st.Doors["read-write"] != p.Addr().String() {
		t.Errorf("status: %+v, %v", st, err)
	}
	// A hold that is not over in time says so, and stays until the release.
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Hold(short, 3); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a hold behind a transaction: got %v", err)
	}
	_ = tx.Rollback(t.Context())
	if err := c.Release(t.Context(), target, 3); err != nil {
		t.Fatal(err)
	}
	_ = where(t, conn)
	p.stop()
	if _, err := c.Status(t.Context()); !errors.Is(err, ErrGone) {
		t.Errorf("after the end: got %v, want ErrGone", err)
	}
}

// An orchestrator that dies while clients are held leaves the decision to the databases; one that lives
// does not, however often they are asked.
// Break that it catches: a lease that nobody watches.
func TestOrchestratorDies(t *testing.T) {
	t.Parallel()
	dbs := databases(t)
	asked := make(chan struct{}, 100)
	p := start(t, filepath.Join(t.TempDir(), "g.sock"), dbs, func(context.Context) (gateway.Ownership, error) {
		select {
		case asked <- struct{}{}:
		default:
		}
		return gateway.Ownership{Owner: source, Epoch: 1, Open: true}, nil
	})
	conn := connect(t, p, dbs)
	dies := NewClient(p.path, "")
	if err := dies.Hold(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() { got <- where(t, conn) }()
	pgtest.Eventually(t, "the client is held", func() bool { return p.Stats().Held == 1 })
	for len(asked) > 0 {
		<-asked
	}
	for range 3 {
		<-asked
	}
	if len(got) > 0 {
		t.Fatal("the client went on while the orchestrator was alive")
	}
	dies.Close()
	if g := <-got; g != "source" {
		t.Errorf("got %s, want source", g)
	}
}

// A new process takes over in the middle of a storm of new clients: none is refused, those who were
// there stay, are held and cancelled through the new one, and the old one ends with the last of them.
// Breaks that it catches: the listener closed before it was handed over, a hold that the old process
// does not hear of, cancel requests that are dropped.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	dbs := databases(t)
	path := filepath.Join(t.TempDir(), "g.sock")
	old := start(t, path, dbs, nil)
	stays := connect(t, old, dbs)
	tx, err := stays.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var calm atomic.Bool
	var came atomic.Int64
	for range 4 {
		wg.Go(func() {
			for !calm.Load() {
				conn, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable", old.Addr(), dbs[source].DSN.Database()))
				if err != nil {
					t.Errorf("a client was turned away: %v", err)
					return
				}
				came.Add(1)
				_ = conn.Close(t.Context())
			}
		})
	}
	pgtest.Eventually(t, "clients come", func() bool { return came.Load() > 10 })
	p := start(t, path, dbs, nil)
	if p.Addr().String() != old.Addr().String() {
		t.Errorf("the new door is %s, want %s", p.Addr(), old.Addr())
	}
	before := came.Load()
	pgtest.Eventually(t, "clients come to the new process", func() bool { return t.Failed() || came.Load() > before+10 })
	calm.Store(true)
	wg.Wait()

	c := NewClient(path, "")
	defer c.Close()
	held := make(chan error, 1)
	go func() { held <- c.Hold(t.Context(), 2) }()
	pgtest.Eventually(t, "the old process holds, too", func() bool {
		return old.Position().Epoch == 2
	})
	select {
	case err := <-held:
		t.Fatalf("hold returned %v with a transaction open in the old process", err)
	default:
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-held; err != nil {
		t.Fatal(err)
	}
	if err := c.Release(t.Context(), target, 2); err != nil {
		t.Fatal(err)
	}
	if got := where(t, stays); got != "target" {
		t.Errorf("who stays is on the %s", got)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := stays.Exec(t.Context(), "SELECT pg_sleep(60)")
		failed <- err
	}()
	pgtest.Eventually(t, "the query runs", func() bool {
		return dbs[target].Int(t, "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active' AND datname = current_database()") == 1
	})
	if err := stays.PgConn().CancelRequest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code := pg.Code(<-failed); code != "57014" {
		t.Errorf("cancel through the new process: SQLSTATE %s", code)
	}
	if st, err := c.Status(t.Context()); err != nil || st.Before == nil || !st.Before.Retiring || st.Before.Stats.Clients != 1 {
		t.Errorf("status: %+v, %v", st, err)
	}
	_ = stays.Close(t.Context())
	if err := <-old.ended; !errors.Is(err, gateway.ErrRetired) {
		t.Errorf("the old process ended with %v", err)
	}
	old.stop()
	if err := c.Reads(t.Context(), 10); err != nil { // the old one is gone, and nobody misses it
		t.Error(err)
	}
	if got := where(t, connect(t, p, dbs)); got != "target" {
		t.Errorf("a new client is on the %s", got)
	}
}

// While clients are held nothing is handed over: the queue cannot move.
func TestNoTakeOverWhileHeld(t *testing.T) {
	t.Parallel()
	dbs := databases(t)
	path := filepath.Join(t.TempDir(), "g.sock")
	p := start(t, path, dbs, nil)
	if err := p.Hold(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := TakeOver(short, path); !errors.Is(err, gateway.ErrHeld) {
		t.Errorf("got %v, want ErrHeld", err)
	}
	if err := p.Release(t.Context(), source, 2); err != nil {
		t.Fatal(err)
	}
	_ = where(t, connect(t, p, dbs))
}
