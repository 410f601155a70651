package gateway

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

func TestOneUserHasNotAllConnections(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) { c.MaxPerUser = 2 })
	first, _ := b.client(t, b.Addr(), ""), b.client(t, b.ReadAddr(), "")
	_, err := pgx.Connect(t.Context(), b.url(b.Addr(), ""))
	wantCode(t, err, "53300")
	_ = first.Close(t.Context())
	pgtest.Eventually(t, "its place is free", func() bool {
		conn, err := pgx.Connect(t.Context(), b.url(b.Addr(), ""))
		if err == nil {
			_ = conn.Close(t.Context())
		}
		return err == nil
	})
}

// Clients beyond MaxServers wait for a server session, not longer than ServerWait. A place that is not
// given back would be seen here: each client comes and goes several times, over a switch as well.
func TestClientsWaitForAServerSession(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) { c.MaxServers, c.ServerWait = 1, 300*time.Millisecond })
	for range 3 {
		holder := b.client(t, b.Addr(), "")
		_, err := pgx.Connect(t.Context(), b.url(b.Addr(), ""))
		wantCode(t, err, "53300")
		b.shift(t, target, b.lastEpoch()+1)
		if got := one[string](t, holder, "SELECT name FROM here"); got != "target" {
			t.Errorf("got %s, want target", got)
		}
		b.shift(t, source, b.lastEpoch()+1)
		_ = one[string](t, holder, "SELECT name FROM here")
		_ = holder.Close(t.Context())
		pgtest.Eventually(t, "the place is free", func() bool {
			conn, err := pgx.Connect(t.Context(), b.url(b.Addr(), ""))
			if err == nil {
				_ = conn.Close(t.Context())
			}
			return err == nil
		})
		pgtest.Eventually(t, "it has left", func() bool { return b.Stats().Clients == 0 })
	}
}

// Many wait: each gets its turn.
func TestEachWaiterGetsItsTurn(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) { c.MaxServers = 2 })
	const n = 12
	done := make(chan error, n)
	for range n {
		go func() {
			conn, err := pgx.Connect(t.Context(), b.url(b.Addr(), ""))
			if err == nil {
				_, err = conn.Exec(t.Context(), "SELECT pg_sleep(0.01)")
				_ = conn.Close(context.WithoutCancel(t.Context()))
			}
			done <- err
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
