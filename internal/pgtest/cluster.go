package pgtest

import (
	"context"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/pg"
)

// A Cluster is one test's own PostgreSQL server, to be stopped, killed and restarted at will.
type Cluster struct {
	DSN pg.DSN // of its database postgres

	srv      server
	major    int // as asked for
	settings map[string]string
}

// NewCluster starts a cluster that ends with the test.
func NewCluster(t testing.TB, opts ...Option) *Cluster {
	t.Helper()
	o := newOptions(opts)
	srv, err := startServer(o)
	if err != nil {
		t.Fatalf("PostgreSQL cluster: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("PostgreSQL's log:\n%s", srv.LogTail(logLines))
		}
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := srv.Stop(ctx); err != nil {
			t.Errorf("stop PostgreSQL: %v", err)
		}
	})
	return &Cluster{DSN: srv.DSN("postgres"), srv: srv, major: o.major, settings: o.settings}
}

// DB returns a fresh database of the cluster.
func (c *Cluster) DB(t testing.TB) *Database {
	t.Helper()
	return newDatabase(t, c.srv, options{})
}

// Stop shuts the server down in order ("fast"); Start brings it back on the same port.
func (c *Cluster) Stop(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), stopTimeout)
	defer cancel()
	if err := c.srv.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
}

// Kill stops the server at once, as a crash would; Start then goes through crash recovery.
func (c *Cluster) Kill(t testing.TB) {
	t.Helper()
	if err := c.srv.Kill(); err != nil {
		t.Fatal(err)
	}
}

// Start starts a stopped or killed server, and restarts a running one.
func (c *Cluster) Start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), startTimeout)
	defer cancel()
	if err := c.srv.Restart(ctx); err != nil {
		t.Fatal(err)
	}
}

// Log returns the last lines of the server's log.
func (c *Cluster) Log(lines int) string { return c.srv.LogTail(lines) }

// Patience is how long a test waits for what has to come: long enough for a machine that has ten times
// more to do than it can. What ends a wait early is that the thing comes, not the clock.
const Patience = 2 * time.Minute

// Eventually waits until cond is true, looking every 20 ms, and fails the test after [Patience]. Long
// waits are told, so that a log shows what a slow test is at.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	const every, told = 20 * time.Millisecond, 20 * time.Second
	began := time.Now()
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	tell := time.NewTicker(told)
	defer tell.Stop()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-tell.C:
			t.Logf("for %s now: wait for %s", time.Since(began).Round(time.Second), what)
		case <-deadline.C:
			t.Fatalf("not within %s: %s", Patience, what)
		}
	}
}
