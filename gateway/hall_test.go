package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// hall runs one pair of doors in front of "shop", which has two backends, and "billing", which has one.
func hall(t *testing.T, change func(*HallConfig)) *Hall {
	t.Helper()
	backend := func(says string) pg.DSN {
		db := pgtest.DB(t)
		db.Exec(t, fmt.Sprintf("CREATE TABLE here AS SELECT '%s'::text AS name", says))
		return db.DSN
	}
	cfg := HallConfig{
		Listen: "127.0.0.1:0", ReadListen: "127.0.0.1:0", Log: slog.New(slog.NewTextHandler(&lines{t: t}, nil)),
		Databases: map[string]Config{
			"shop":    {Owner: source, Epoch: 1, Backends: map[Backend]pg.DSN{source: backend("old shop"), target: backend("new shop")}},
			"billing": {Owner: source, Epoch: 1, Backends: map[Backend]pg.DSN{source: backend("billing")}},
		},
	}
	if change != nil {
		change(&cfg)
	}
	h, err := NewHall(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.Run(ctx); !errors.Is(err, errStopped) {
			t.Errorf("Run returned %v, want its context's cause", err)
		}
	})
	t.Cleanup(func() {
		cancel(errStopped)
		wg.Wait()
	})
	<-h.Listening()
	return h
}

// visit connects to a database of the hall.
func visit(t *testing.T, h *Hall, database string) (*pgx.Conn, error) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://postgres:right@%s/%s?sslmode=disable", h.Addr(), database))
	if err == nil {
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	}
	return conn, err
}

func visitor(t *testing.T, h *Hall, database string) *pgx.Conn {
	t.Helper()
	conn, err := visit(t, h, database)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// One database changes its owner while its clients are held; those of the other notice nothing, and each
// has its own figures.
func TestHallSwitchesOne(t *testing.T) {
	t.Parallel()
	h := hall(t, nil)
	shop, billing := visitor(t, h, "shop"), visitor(t, h, "billing")
	const ask = "SELECT name FROM here"
	if s, b := one[string](t, shop, ask), one[string](t, billing, ask); s != "old shop" || b != "billing" {
		t.Fatalf("clients are at %q and %q", s, b)
	}
	g := h.Database("shop")
	if err := g.Hold(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() { got <- one[string](t, shop, ask) }()
	pgtest.Eventually(t, "the shop's client is held", func() bool { return g.Stats().Held == 1 })
	_ = one[string](t, billing, ask)
	_ = one[string](t, visitor(t, h, "billing"), ask)
	if err := g.Release(t.Context(), target, 2); err != nil {
		t.Fatal(err)
	}
	if s, b := <-got, one[string](t, billing, ask); s != "new shop" || b != "billing" {
		t.Errorf("after the switch clients are at %q and %q", s, b)
	}
	s, b := g.Stats(), h.Database("billing").Stats()
	if s.Clients != 1 || s.Moved != 1 || b.Clients != 2 || b.Moved != 0 || s.Transactions == 0 || b.Transactions == 0 {
		t.Errorf("figures of the shop %+v, of billing %+v", s, b)
	}
}

// A database that nobody knows gets PostgreSQL's own error, but only who may come in hears that there is
// none; and a client that names no database asks for that of its user's name.
func TestHallUnknown(t *testing.T) {
	t.Parallel()
	h := hall(t, func(c *HallConfig) {
		users := usersFile(t, `"postgres" "right"`)
		for name, d := range c.Databases {
			d.Users = users
			c.Databases[name] = d
		}
		c.Databases["postgres"] = c.Databases["billing"]
	})
	_, err := visit(t, h, "nowhere")
	pe, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || pe.Code != "3D000" || pe.Severity != "FATAL" || pe.Message != `database "nowhere" does not exist` {
		t.Errorf("an unknown database: %v", err)
	}
	_, err = pgx.Connect(t.Context(), fmt.Sprintf("postgres://postgres:wrong@%s/nowhere?sslmode=disable", h.Addr()))
	wantCode(t, err, "28P01")
	if got := one[string](t, visitor(t, h, ""), "SELECT name FROM here"); got != "billing" {
		t.Errorf("a client that names no database is at %q", got)
	}
}

// Limits are each database's own, and a cancel request finds its session wherever that is.
func TestHallLimits(t *testing.T) {
	t.Parallel()
	h := hall(t, func(c *HallConfig) {
		d := c.Databases["billing"]
		d.MaxClients = 1
		c.Databases["billing"] = d
		c.MaxClients = 3
	})
	billing := visitor(t, h, "billing")
	_, err := visit(t, h, "billing")
	wantCode(t, err, "53300")
	shop := visitor(t, h, "shop")
	for conn, name := range map[*pgx.Conn]string{shop: "shop", billing: "billing"} {
		failed := make(chan error, 1)
		go func() {
			_, err := conn.Exec(t.Context(), "SELECT pg_sleep(60)")
			failed <- err
		}()
		pgtest.Eventually(t, name+"'s query is cancelled", func() bool {
			_ = conn.PgConn().CancelRequest(t.Context())
			return len(failed) > 0
		})
		wantCode(t, <-failed, "57014")
	}
	_ = visitor(t, h, "shop")
	_, err = visit(t, h, "shop")
	wantCode(t, err, "53300") // of all together
}
