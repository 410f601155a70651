// Package routertest holds routers to what they promise: one test for all of them.
package routertest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/router"
)

// A Subject is a router with what it leads clients to.
type Subject struct {
	Router     migrate.Router
	Guarantees []migrate.Guarantee
	// Again makes the router anew, as a later process would; nil when what leads clients ends with it.
	Again func(t testing.TB) migrate.Router
	// Write and Read are connection strings of clients; "" when there is no such door.
	Write, Read string
}

// Databases makes the two databases, each with a table that says which it is.
func Databases(t testing.TB) (map[migrate.Side]*pgtest.Database, map[migrate.Side]pg.DSN) {
	t.Helper()
	dbs, places := map[migrate.Side]*pgtest.Database{}, map[migrate.Side]pg.DSN{}
	for _, side := range []migrate.Side{migrate.Source, migrate.Target} {
		dbs[side] = pgtest.DB(t)
		dbs[side].Exec(t, fmt.Sprintf("CREATE TABLE here AS SELECT '%s'::text AS name", side))
		places[side] = dbs[side].DSN
	}
	return dbs, places
}

// Conform runs every test on a router made by start, which the source owns at epoch 1.
func Conform(t *testing.T, start func(t testing.TB) Subject) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, Subject){
		"guarantees": guarantees, "repeats": repeats, "leads": leads, "holds": holds, "drains": drains,
		"epochs": epochs, "again": again, "reads": reads,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			if err := s.Router.Release(t.Context(), migrate.Source, 1); err != nil {
				t.Fatalf("first release: %v", err)
			}
			test(t, s)
		})
	}
}

func (s Subject) gives(name string) bool {
	for _, g := range s.Guarantees {
		if g.Name == name {
			return g.Given
		}
	}
	return false
}

// guarantees: each is said once, with a reason.
func guarantees(t *testing.T, s Subject) {
	t.Helper()
	said := map[string]bool{}
	for _, g := range s.Guarantees {
		if said[g.Name] || g.How == "" {
			t.Errorf("guarantee %q: said twice, or without how", g.Name)
		}
		said[g.Name] = true
	}
	for _, name := range []string{router.Leads, router.Holds, router.Drains, router.Epochs, router.Reads, router.Stalls, router.Outlive} {
		if !said[name] {
			t.Errorf("nothing is said of %q", name)
		}
	}
	if door := s.Write != ""; s.gives(router.Leads) != door {
		t.Errorf("leads: %t, with a door: %t", s.gives(router.Leads), door)
	}
}

// repeats: every order may be given again, and what makes no sense is refused.
func repeats(t *testing.T, s Subject) {
	t.Helper()
	ctx := t.Context()
	for range 2 {
		must(t, s.Router.Hold(ctx, 2))
	}
	for range 2 {
		must(t, s.Router.Release(ctx, migrate.Source, 2))
	}
	must(t, s.Router.Release(ctx, migrate.Source, 5)) // epochs have gaps
	for _, percent := range []int{-1, 101} {
		if err := s.Router.Reads(ctx, percent); err == nil {
			t.Errorf("reads at %d percent: no error", percent)
		}
	}
}

// leads: new and old clients come to the owner.
func leads(t *testing.T, s Subject) {
	t.Helper()
	if s.Write == "" {
		return
	}
	old := connect(t, s.Write)
	at(t, old, migrate.Source)
	for epoch, side := range map[int64]migrate.Side{2: migrate.Target} {
		must(t, s.Router.Hold(t.Context(), epoch))
		must(t, s.Router.Release(t.Context(), side, epoch))
		at(t, old, side)
		at(t, connect(t, s.Write), side)
	}
}

// holds: clients that want to begin something wait, and go on with the new owner without an error.
func holds(t *testing.T, s Subject) {
	t.Helper()
	if !s.gives(router.Holds) {
		return
	}
	const clients = 5
	conns := make([]*pgx.Conn, clients)
	for i := range conns {
		conns[i] = connect(t, s.Write)
		at(t, conns[i], migrate.Source)
	}
	must(t, s.Router.Hold(t.Context(), 2))
	got := make(chan string, clients)
	for _, c := range conns {
		go func() { got <- where(t.Context(), c) }() // each answers, below
	}
	select {
	case name := <-got:
		t.Fatalf("a held client got %q", name)
	case <-time.After(300 * time.Millisecond): // nobody says that a client waits, in the terms of every router
	}
	must(t, s.Router.Release(t.Context(), migrate.Target, 2))
	for range conns {
		if name := <-got; name != string(migrate.Target) {
			t.Errorf("a released client got %q", name)
		}
	}
	st := s.Router.Stalls()
	if s.gives(router.Stalls) && (st.Clients < clients || st.Max < 250*time.Millisecond || st.Max < st.P50) {
		t.Errorf("stalls of %d clients that waited for 300 ms: %+v", clients, st)
	}
}

// drains: Hold waits for a transaction in flight, and says so when it may not wait any longer.
func drains(t *testing.T, s Subject) {
	t.Helper()
	if !s.gives(router.Drains) {
		return
	}
	inside := connect(t, s.Write)
	run(t, inside, "BEGIN")
	at(t, inside, migrate.Source)
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := s.Router.Hold(short, 2); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("hold while a transaction is open: %v", err)
	}
	outside := connectLater(s.Write)
	held := make(chan error, 1)
	go func() { held <- s.Router.Hold(t.Context(), 2) }() // answers, below
	select {
	case err := <-held:
		t.Fatalf("hold ended while a transaction is open: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	run(t, inside, "COMMIT")
	must(t, <-held)
	must(t, s.Router.Release(t.Context(), migrate.Target, 2))
	at(t, inside, migrate.Target)
	at(t, outside(t), migrate.Target)
}

// epochs: what is older than the last order is refused.
func epochs(t *testing.T, s Subject) {
	t.Helper()
	ctx := t.Context()
	must(t, s.Router.Hold(ctx, 4))
	must(t, s.Router.Release(ctx, migrate.Target, 4))
	for _, epoch := range []int64{3, 4} {
		if err := s.Router.Hold(ctx, epoch); err == nil {
			t.Errorf("hold at epoch %d after release at 4: no error", epoch)
		}
	}
	if err := s.Router.Release(ctx, migrate.Source, 3); err == nil {
		t.Error("release at epoch 3 after release at 4: no error")
	}
	if s.Write != "" {
		at(t, connect(t, s.Write), migrate.Target)
	}
}

// again: a later process lets those go on whom an earlier one held.
func again(t *testing.T, s Subject) {
	t.Helper()
	if s.Again == nil {
		return
	}
	var got chan string
	if s.gives(router.Holds) {
		c := connect(t, s.Write)
		must(t, s.Router.Hold(t.Context(), 2))
		got = make(chan string, 1)
		go func() { got <- where(t.Context(), c) }() // answers, below
	}
	later := s.Again(t)
	must(t, later.Release(t.Context(), migrate.Target, 2))
	if got != nil {
		if name := <-got; name != string(migrate.Target) {
			t.Errorf("a client held by an earlier process got %q", name)
		}
	}
	if s.Write != "" {
		at(t, connect(t, s.Write), migrate.Target)
	}
}

// reads: all of them move, and come back, and follow the owner.
func reads(t *testing.T, s Subject) {
	t.Helper()
	if !s.gives(router.Reads) {
		return
	}
	old := connect(t, s.Read)
	at(t, old, migrate.Source)
	must(t, s.Router.Reads(t.Context(), 100))
	at(t, old, migrate.Target)
	at(t, connect(t, s.Read), migrate.Target)
	must(t, s.Router.Reads(t.Context(), 0))
	at(t, old, migrate.Source)
	must(t, s.Router.Hold(t.Context(), 2))
	must(t, s.Router.Release(t.Context(), migrate.Target, 2))
	at(t, old, migrate.Target)
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	return connectLater(url)(t)
}

func connectLater(url string) func(testing.TB) *pgx.Conn {
	return func(t testing.TB) *pgx.Conn {
		t.Helper()
		cfg, err := pgx.ParseConfig(url)
		must(t, err)
		cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol // no statement outlives its transaction
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		must(t, err)
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
		return conn
	}
}

// at waits until a client is led to a side: idle ones may be moved a little after the order.
func at(t testing.TB, conn *pgx.Conn, side migrate.Side) {
	t.Helper()
	var got string
	pgtest.Eventually(t, "a client on the "+string(side), func() bool {
		got = where(t.Context(), conn)
		return got == string(side)
	})
}

// where asks a client's database for its name; an error is its text.
func where(ctx context.Context, conn *pgx.Conn) (name string) {
	if err := conn.QueryRow(ctx, "SELECT name FROM here").Scan(&name); err != nil {
		return err.Error()
	}
	return name
}

func run(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	_, err := conn.Exec(t.Context(), sql)
	must(t, err)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
