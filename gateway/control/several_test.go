package control

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ficus-migrate/ficus/gateway"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// several runs a hall of databases whose backends nobody connects to, with its control.
func several(t *testing.T, path string, names ...string) (h *gateway.Hall, ended chan error) {
	t.Helper()
	dsn, err := pg.Parse("postgres://nobody@127.0.0.1:1/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	cfg := gateway.HallConfig{Listen: "127.0.0.1:0", ReadListen: "127.0.0.1:0", Databases: map[string]gateway.Config{}, Log: log}
	in, err := TakeOver(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	cc := Config{Path: path, Log: log}
	if in != nil {
		cfg.Doors, cc.Before = in.Doors, in.Before
	}
	for _, name := range names {
		c := gateway.Config{Owner: source, Backends: map[gateway.Backend]pg.DSN{source: dsn, target: dsn}}
		if in != nil {
			was := in.Databases[name]
			c.Owner, c.Epoch, c.Answered, c.Percent = was.Owner, was.Epoch, was.Answered, was.Percent
		}
		cfg.Databases[name] = c
	}
	if h, err = gateway.NewHall(cfg); err != nil {
		t.Fatal(err)
	}
	cc.Hall = h
	s, err := New(cc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended = make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { ended <- h.Run(ctx) })
	wg.Go(func() { _ = s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	<-h.Listening()
	c := NewClient(path, names[0])
	defer c.Close()
	pgtest.Eventually(t, "control answers", func() bool {
		st, err := c.Status(t.Context())
		return err == nil && st.Doors["read-write"] == h.Addr().String() && !st.Retiring
	})
	return h, ended
}

// Each of several databases is driven by its name and no other way, has leases of its own, and comes with
// the doors when the next process takes them over. There are enough of them that the message which hands
// them over does not fit into one piece.
func TestSeveral(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "g.sock")
	names := []string{"shop", "billing"}
	for i := range 60 {
		names = append(names, strings.Repeat("x", 40+i))
	}
	old, ended := several(t, path, names...)
	shop, billing, nameless := NewClient(path, "shop"), NewClient(path, "billing"), NewClient(path, "")
	for _, c := range []*Client{shop, billing, nameless} {
		defer c.Close()
	}
	for what, c := range map[string]*Client{"no name": nameless, "an unknown name": NewClient(path, "nobody")} {
		if err := c.Hold(t.Context(), 2); err == nil || !strings.Contains(hint.Of(err), "router.database") {
			t.Errorf("%s: got %v, %s", what, err, hint.Of(err))
		}
	}
	if err := errors.Join(shop.Hold(t.Context(), 7), billing.Hold(t.Context(), 2), billing.Release(t.Context(), source, 2)); err != nil {
		t.Fatal(err)
	}
	st, err := shop.Status(t.Context())
	if err != nil || st.Database != "shop" || st.Epoch != 7 {
		t.Errorf("status of the shop: %+v, %v", st, err)
	}
	if _, _, err := old.HandOver(t.Context()); !errors.Is(err, gateway.ErrHeld) {
		t.Errorf("hand over while the shop is held: %v", err)
	}
	if err := errors.Join(shop.Release(t.Context(), target, 7), billing.Reads(t.Context(), 20)); err != nil {
		t.Fatal(err)
	}
	h, _ := several(t, path, names...)
	if err := <-ended; !errors.Is(err, gateway.ErrRetired) {
		t.Errorf("the old process ended with %v", err)
	}
	if p := h.Database("shop").Position(); p.Owner != target || p.Epoch != 7 || !p.Answered {
		t.Errorf("the shop is taken over at %+v", p)
	}
	if p := h.Database("billing").Position(); p.Owner != source || p.Epoch != 2 || p.Percent != 20 {
		t.Errorf("billing is taken over at %+v", p)
	}
	if err := shop.Hold(t.Context(), 7); !errors.Is(err, gateway.ErrStale) {
		t.Errorf("a stale hold: %v", err)
	}
}
