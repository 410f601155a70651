package source_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/sync/source"
)

// refused runs a reader that must stop by itself.
func (g *rig) refused(t *testing.T, want error) {
	t.Helper()
	r, err := source.New(g.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	err = r.Run(ctx)
	if !errors.Is(err, want) || hint.Of(err) == "" {
		t.Errorf("got %v with hint %q, want %q with one", err, hint.Of(err), want)
	}
}

func TestSlotDroppedWhileStreaming(t *testing.T) {
	t.Parallel()
	g := newRig(t, pgtest.DB(t), "CREATE TABLE public.t (id int PRIMARY KEY)")
	r, err := source.New(g.cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.Run(t.Context()) }() // ends with the slot
	g.walsender(t)
	if err := source.DropSlot(t.Context(), g.db.Conn(t), g.cfg.Slot); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, source.ErrSlotGone) || hint.Of(err) == "" {
		t.Errorf("got %v with hint %q, want ErrSlotGone with one", err, hint.Of(err))
	}
}

// A publication that vanishes while changes are read, which PostgreSQL 18 does not call an error.
func TestPublicationDroppedWhileStreaming(t *testing.T) {
	t.Parallel()
	for _, major := range []int{15, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			g := newRig(t, pgtest.DB(t, pgtest.Version(major)), "CREATE TABLE public.t (id int PRIMARY KEY)")
			r, err := source.New(g.cfg)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- r.Run(t.Context()) }() // ends without the publication
			g.walsender(t)
			g.db.Exec(t, "INSERT INTO t VALUES (1)")
			g.received(t, r)
			if err := source.DropPublication(t.Context(), g.db.Conn(t), "ficus_test"); err != nil {
				t.Fatal(err)
			}
			g.db.Exec(t, "INSERT INTO t VALUES (2)")
			if err := <-done; hint.Of(err) == "" {
				t.Errorf("got %v without a hint", err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	g := newRig(t, pgtest.DB(t), "CREATE TABLE public.t (id int PRIMARY KEY)")
	g.db.Exec(t, "INSERT INTO t VALUES (1)")
	r, stop := g.start(t)
	g.received(t, r)
	pgtest.Eventually(t, "a confirmation", func() bool { return g.confirmed(t) > g.cfg.Start })
	if err := stop(); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}

	good := g.cfg
	g.cfg.Publications = append(g.cfg.Publications, "nowhere")
	g.refused(t, source.ErrPublicationGone)
	g.cfg = good

	g.cfg.Slot = "nowhere"
	g.refused(t, source.ErrSlotGone)
	g.cfg = good

	// The store is another one, and the slot has been read.
	empty, err := g.store.Stream("empty")
	if err != nil {
		t.Fatal(err)
	}
	g.cfg.Stream = empty
	g.refused(t, source.ErrSlotAhead)
	g.cfg = good

	// Somebody reads the slot behind our back.
	g.db.Exec(t, "INSERT INTO t VALUES (2)")
	g.db.Exec(t, "SELECT pg_replication_slot_advance($1, pg_current_wal_insert_lsn())", g.cfg.Slot)
	g.refused(t, source.ErrSlotAhead)

	// The server is not the one that the store knows.
	batch := empty.NewBatch()
	batch.Append(g.now(t)+1<<32, nil)
	if err := batch.Commit(); err != nil {
		t.Fatal(err)
	}
	g.cfg.Stream = empty
	g.refused(t, source.ErrServerBehind)
}

func TestSlotInvalidated(t *testing.T) {
	t.Parallel()
	c := pgtest.NewCluster(t, pgtest.Setting("max_slot_wal_keep_size", "1MB"), pgtest.Setting("min_wal_size", "32MB"),
		pgtest.Setting("max_wal_size", "32MB"))
	g := newRig(t, c.DB(t), "CREATE TABLE public.t (id int PRIMARY KEY, v text)")
	conn := g.db.Conn(t)
	pgtest.Eventually(t, "the slot to be lost", func() bool {
		g.db.Exec(t, "INSERT INTO t VALUES ((SELECT count(*) FROM t), 'x')")
		g.db.Exec(t, "SELECT pg_switch_wal()")
		g.db.Exec(t, "CHECKPOINT")
		s, err := source.SlotState(t.Context(), conn, g.cfg.Slot)
		return err == nil && s.WALStatus == "lost"
	})
	g.refused(t, source.ErrSlotLost)
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	g := newRig(t, pgtest.DB(t), "CREATE TABLE public.t (id int PRIMARY KEY)")
	for what, spoil := range map[string]func(*source.Config){
		"no slot":        func(c *source.Config) { c.Slot = "" },
		"no publication": func(c *source.Config) { c.Publications = nil },
		"no stream":      func(c *source.Config) { c.Stream = nil },
		"no start":       func(c *source.Config) { c.Start = 0 },
		"no applied":     func(c *source.Config) { c.Ack = source.AckApplied },
	} {
		cfg := g.cfg
		spoil(&cfg)
		if _, err := source.New(cfg); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
}
