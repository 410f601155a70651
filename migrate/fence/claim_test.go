package fence

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
)

// endDriver ends the sessions that hold claims, as a network that broke does.
func endDriver(t *testing.T, db *pgtest.Database) {
	t.Helper()
	const drivers = ` FROM pg_stat_activity WHERE application_name = 'ficus/driver' AND datname = current_database()`
	db.Exec(t, `SELECT pg_terminate_backend(pid)`+drivers)
	pgtest.Eventually(t, "the sessions to end", func() bool { return db.Int(t, `SELECT count(*)`+drivers) == 0 })
}

// TestOneDriver: a second process is refused, and told by whom, until the first one is gone.
//
// It fails when Claim does not take the lock, and when Disclaim keeps it.
func TestOneDriver(t *testing.T) {
	t.Parallel()
	first, db, _ := installed(t)
	second := open(t, db, migrate.Source)
	ctx := t.Context()
	lost, err := first.Claim(ctx)
	must(t, err)
	_, err = second.Claim(ctx)
	if !errors.Is(err, migrate.ErrDriven) || !strings.Contains(err.Error(), "session ") {
		t.Errorf("second claim: %v", err)
	}
	if again, err := first.Claim(ctx); err != nil || again != lost {
		t.Errorf("a repeated claim is another one, or %v", err)
	}
	must(t, first.CloseGate(ctx))
	first.Disclaim()
	<-lost
	_, err = second.Claim(ctx)
	must(t, err)
	must(t, second.OpenGate(ctx))
}

// TestDeposed: a process that stood still while another one took over is refused whatever it does,
// and whatever it had on its way does nothing.
//
// It fails, call by call, when stillMine is left out there.
func TestDeposed(t *testing.T) {
	t.Parallel()
	first, db, _ := installed(t)
	second := open(t, db, migrate.Source)
	ctx := t.Context()
	lost, err := first.Claim(ctx)
	must(t, err)
	endDriver(t, db)
	_, err = second.Claim(ctx)
	must(t, err)
	want := migrate.Ownership{Migration: "m", Epoch: 1, Owner: migrate.Source, GateOpen: true}
	for name, call := range map[string]func() error{
		"CloseGate": func() error { return first.CloseGate(ctx) },
		"Own":       func() error { return first.Own(ctx, 7, migrate.Target) },
		"Signal":    func() error { return first.Signal(ctx, "late") },
		"Install":   func() error { return first.Install(ctx, "m", migrate.Source) },
		"Uninstall": func() error { return first.Uninstall(ctx) },
	} {
		if err := call(); !errors.Is(err, migrate.ErrDeposed) {
			t.Errorf("%s of a replaced process: %v", name, err)
		}
	}
	if n := db.Int(t, `SELECT count(*) FROM pg_trigger WHERE tgname = 'ficus_fence'`); n == 0 {
		t.Error("a replaced process removed the triggers")
	}
	if _, err := first.Claim(ctx); !errors.Is(err, migrate.ErrDeposed) {
		t.Errorf("Claim of a process that has not noticed: %v", err)
	}
	must(t, second.CloseGate(ctx))
	if err := first.OpenGate(ctx); !errors.Is(err, migrate.ErrDeposed) {
		t.Errorf("OpenGate of a replaced process: %v", err)
	}
	must(t, second.OpenGate(ctx))
	if o, err := second.Ownership(ctx); err != nil || o != want {
		t.Errorf("ownership %+v, %v", o, err)
	}

	select {
	case <-lost:
	case <-time.After(2 * beatTimeout):
		t.Fatal("the lost session was not noticed")
	}
	second.Disclaim() // even with nobody there, it is not the driver any more
	if _, err := first.Claim(ctx); !errors.Is(err, migrate.ErrDeposed) {
		t.Errorf("claim of a replaced process: %v", err)
	}
}

// TestGuard: a transaction of a copy holds up whoever takes the migration over until it has ended, and the next
// one of the replaced process is refused.
//
// It fails when Guard reads the token without a lock.
func TestGuard(t *testing.T) {
	t.Parallel()
	first, db, _ := installed(t)
	second := open(t, db, migrate.Source)
	ctx := t.Context()
	_, err := first.Claim(ctx)
	must(t, err)
	tx, err := db.Conn(t).Begin(ctx)
	must(t, err)
	must(t, first.Guard(ctx, tx))
	endDriver(t, db)
	claimed := make(chan error, 1)
	go func() {
		_, err := second.Claim(ctx)
		claimed <- err
	}()
	pgtest.Eventually(t, "the second one to wait", func() bool {
		return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ficus/driver' AND wait_event_type = 'Lock' AND datname = current_database()`) == 1
	})
	must(t, tx.Commit(ctx))
	must(t, <-claimed)
	late, err := db.Conn(t).Begin(ctx)
	must(t, err)
	if err := first.Guard(ctx, late); !errors.Is(err, migrate.ErrDeposed) {
		t.Errorf("a transaction of the replaced process: %v", err)
	}
	must(t, late.Rollback(ctx))
}

// TestClaimSurvivesItsSession: a process whose session broke goes on when nobody came meanwhile, and
// what it had on its way still counts.
//
// It fails when every claim writes a token of its own.
func TestClaimSurvivesItsSession(t *testing.T) {
	t.Parallel()
	d, db, _ := installed(t)
	ctx := t.Context()
	lost, err := d.Claim(ctx)
	must(t, err)
	before := d.token()
	endDriver(t, db)
	<-lost
	_, err = d.Claim(ctx)
	must(t, err)
	if d.token() != before {
		t.Error("the token changed though nobody came between")
	}
	must(t, d.CloseGate(ctx))
}

// TestClaimAfterAHalfBrokenSession: a session that is gone on our side, and which the server still
// believes in, does not keep its own process out.
//
// It fails when the lock's holder is taken for somebody else.
func TestClaimAfterAHalfBrokenSession(t *testing.T) {
	t.Parallel()
	d, _, _ := installed(t)
	ctx := t.Context()
	_, err := d.Claim(ctx)
	must(t, err)
	alive := d.claimed()
	broken := *alive
	broken.lost = make(chan struct{})
	close(broken.lost)
	d.mu.Lock()
	d.mu.claim = &broken
	d.mu.Unlock()
	pgtest.Eventually(t, "the claim to be there again", func() bool {
		_, err := d.Claim(ctx)
		if errors.Is(err, migrate.ErrDriven) {
			t.Fatal(err)
		}
		return err == nil
	})
	<-alive.lost // noticed at the next beat
	must(t, d.CloseGate(ctx))
}

// TestClaimBeforeInstall: the claim on an empty database is as good as one on an installed database.
//
// It fails when Install does not write the token.
func TestClaimBeforeInstall(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	first, second := open(t, db, migrate.Source), open(t, db, migrate.Source)
	ctx := t.Context()
	_, err := first.Claim(ctx)
	must(t, err)
	if _, err := second.Claim(ctx); !errors.Is(err, migrate.ErrDriven) {
		t.Errorf("second claim: %v", err)
	}
	must(t, first.Install(ctx, "m", migrate.Source))
	endDriver(t, db)
	_, err = second.Claim(ctx)
	must(t, err)
	if err := first.CloseGate(ctx); !errors.Is(err, migrate.ErrDeposed) {
		t.Errorf("replaced: %v", err)
	}
	must(t, second.Uninstall(ctx))
	must(t, second.Uninstall(ctx))
	second.Disclaim()
}

// TestEnlist: what a replaced process has at work is ended before its successor has claimed the database, and a
// session that it opens afterwards is refused; the successor's own are not.
//
// It fails when a claim does not end the sessions of others, and when Enlist does not look at the token.
func TestEnlist(t *testing.T) {
	t.Parallel()
	first, db, _ := installed(t)
	second := open(t, db, migrate.Source)
	ctx := t.Context()
	_, err := first.Claim(ctx)
	must(t, err)
	work, replication := db.Conn(t), connectReplication(t, db)
	must(t, first.Enlist(ctx, work.PgConn()))
	must(t, first.Enlist(ctx, replication))
	if _, err := work.Exec(ctx, `SELECT 1`); err != nil {
		t.Fatalf("an enlisted session does not work: %v", err)
	}
	endDriver(t, db)
	_, err = second.Claim(ctx)
	must(t, err)
	if _, err := work.Exec(ctx, `SELECT 1`); err == nil {
		t.Error("a session of the replaced process goes on")
	}
	if _, err := replication.Exec(ctx, `SELECT 1`).ReadAll(); err == nil {
		t.Error("a replication session of the replaced process goes on")
	}
	if err := first.Enlist(ctx, db.Conn(t).PgConn()); !errors.Is(err, migrate.ErrDeposed) {
		t.Errorf("a late session of the replaced process: %v", err)
	}
	must(t, second.Enlist(ctx, db.Conn(t).PgConn()))
	must(t, second.Uninstall(ctx))
	must(t, first.Enlist(ctx, db.Conn(t).PgConn())) // nothing of anybody is there
}

func connectReplication(t *testing.T, db *pgtest.Database) *pgconn.PgConn {
	t.Helper()
	dsn, err := pg.Parse(db.URL)
	must(t, err)
	conn, err := dsn.ConnectReplication(t.Context(), "test")
	must(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) }) // it may be ended already
	return conn
}
