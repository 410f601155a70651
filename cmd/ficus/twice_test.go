package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/fence"
	"github.com/ficus-migrate/ficus/sync/link"
)

// TestTwoAtOnce: the same migration is started a second time with another data directory, as on
// another machine. The second process waits and says for whom; it goes on once the first is gone, and
// the first one, which only stood still, then ends by itself.
//
// It fails when the engine does not claim its databases: the second one then takes the slot's place
// in turn with the first.
func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY); INSERT INTO public.t SELECT i FROM generate_series(1, 100) i`)
	file := filepath.Join(t.TempDir(), "book.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, "name: %s\nfollow: {ack: applied}\nrouter: {type: none}\nuntil: following\n", nameFor(source)), 0o600))
	start := func() *process {
		_, api := freeAddrs(t)
		return ficus(t, t.TempDir(), "run", "-f", file, "--source", source.URL, "--target", target.URL, "--yes", "--listen", api)
	}
	first := start()
	first.line("phase", map[string]any{"phase": "following"})

	second := start()
	pgtest.Eventually(t, "the second one to ask for the databases", func() bool {
		return source.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ficus/fence' AND datname = current_database()`) >= 2
	})
	if strings.Contains(second.text(), `"following"`) {
		t.Fatal("both drive the migration")
	}
	must(t, first.cmd.Process.Signal(syscall.SIGSTOP))
	// Its sessions live as long as it is only stopped; the network, or a person, ends them.
	for _, db := range []*pgtest.Database{source, target} {
		db.Exec(t, `SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid AND l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
			WHERE a.application_name = 'ficus/driver' AND a.datname = current_database()`)
		db.Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ '^ficus/' AND application_name <> 'ficus/driver' AND datname = current_database() AND backend_start <
			(SELECT min(backend_start) FROM pg_stat_activity WHERE application_name = 'ficus/driver' AND datname = current_database())`)
	}
	second.line("phase", map[string]any{"phase": "following"})
	must(t, first.cmd.Process.Signal(syscall.SIGCONT))
	<-first.done
	if status := first.cmd.ProcessState.ExitCode(); status != 3 || !strings.Contains(first.text(), "taken the migration over") {
		t.Errorf("the first one ended with status %d", status)
	}
	if status := second.stop(os.Interrupt); status != 0 {
		t.Errorf("the second one: status %d", status)
	}
}

// TestSlotOfTheSuccessor: a process stands still right before it drops a slot, another one takes the migration
// over and makes a slot of that name, and the first one wakes up. The slot stays.
//
// It fails when the link drops in a session that is not enlisted.
func TestSlotOfTheSuccessor(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	name := linkName(nameFor(source), migrate.Source)
	type side struct {
		database *fence.Database
		link     *link.Link
	}
	var stalled func()
	process := func() side {
		from, err := pg.Parse(source.URL)
		must(t, err)
		to, err := pg.Parse(target.URL)
		must(t, err)
		db, err := fence.New(t.Context(), fence.Config{DSN: from, Self: migrate.Source})
		must(t, err)
		t.Cleanup(db.Close)
		store, err := eventstore.Open(eventstore.Config{Dir: t.TempDir()})
		must(t, err)
		t.Cleanup(func() { must(t, store.Close()) })
		l, err := link.New(t.Context(), link.Config{Name: name, From: from, To: to, Store: store, EnlistFrom: func(ctx context.Context, session *pgconn.PgConn) error {
			if err := db.Enlist(ctx, session); err != nil || stalled == nil {
				return err
			}
			during := stalled
			stalled = nil
			during()
			return nil
		}})
		must(t, err)
		t.Cleanup(l.Close)
		return side{db, l}
	}
	first, second := process(), process()
	must(t, first.database.Install(t.Context(), nameFor(source), migrate.Source))
	_, err := first.database.Claim(t.Context())
	must(t, err)
	must(t, first.link.Prepare(t.Context(), 1))

	stalled = func() {
		source.Exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ficus/driver' AND datname = current_database()`)
		pgtest.Eventually(t, "the second one to take over", func() bool {
			_, err := second.database.Claim(t.Context())
			return err == nil
		})
		must(t, second.link.Prepare(t.Context(), 2))
	}
	if err := first.link.Drop(t.Context()); err == nil || stalled != nil {
		t.Errorf("the replaced process dropped its link: %v", err)
	}
	if source.Int(t, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, name) != 1 {
		t.Error("the slot of the successor is gone")
	}
	if err := first.link.Drop(t.Context()); !errors.Is(err, migrate.ErrDeposed) {
		t.Errorf("a later try: %v", err)
	}
	must(t, second.link.Drop(t.Context()))
}

// TestFailedInServeGoesOn: a migration with a gateway fails in "ficus serve" while nobody uses it, and goes on when it is
// resumed. It fails when the gateway ends with the failure: it cannot be run twice.
func TestFailedInServeGoesOn(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)`)
	gateway, addr := freeAddrs(t)
	ficus(t, t.TempDir(), "serve", "--listen", addr).line("listening", nil)
	client, err := api.NewClient("http://"+addr, "")
	must(t, err)
	t.Cleanup(client.Close)
	name := nameFor(source)
	_, err = client.Start(t.Context(), api.StartRequest{YAML: fmt.Sprintf("name: %s\nsource: %q\ntarget: %q\nuntil: following\nrouter: {listen: %q}\nschema: {after: 'INSERT INTO public.later VALUES (1)'}\n",
		name, source.URL, target.URL, gateway)})
	must(t, err)
	stands := func(phase migrate.Phase) {
		t.Helper()
		pgtest.Eventually(t, "phase "+string(phase), func() bool {
			s, err := client.Get(t.Context(), name)
			return err == nil && s.Phase == phase
		})
	}
	stands(migrate.Failed)
	target.Exec(t, `CREATE TABLE public.later (id int)`)
	must(t, client.Do(t.Context(), name, migrate.Command{Verb: migrate.Resume, Actor: "test"}))
	stands(migrate.Following)
	conn, err := pgx.Connect(t.Context(), "postgresql://postgres@"+gateway+"/"+source.Name+"?sslmode=disable")
	must(t, err)
	must(t, conn.Close(t.Context()))
}
