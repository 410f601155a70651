package main

import (
	"context"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/examples/shop"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
)

// TestKillAnywhere kills a migration with SIGKILL at random moments while ownership goes back and
// forth and clients work through the gateway, and starts it again. Whatever was acknowledged is
// found once at the end, and both databases are equal.
func TestKillAnywhere(t *testing.T) {
	t.Parallel()
	kills := 3
	if os.Getenv("FICUS_TEST_LONG") != "" {
		kills = 100
	}
	source, target := pgtest.DB(t), pgtest.DB(t)
	if _, err := shop.Fill(t.Context(), source.Conn(t), 5000); err != nil {
		t.Fatal(err)
	}
	gateway, address := freeAddrs(t)
	dir := t.TempDir()
	args := []string{"run", "cluster-move", "--name", nameFor(source), "--source", source.URL, "--target", target.URL, "--yes", "--gateway-listen", gateway, "--listen", address, "-p", "reads="}

	client, err := api.NewClient("http://"+address, "")
	must(t, err)
	defer client.Close()
	var ledger shop.Ledger
	ctx, stopLoad := context.WithCancel(t.Context())
	defer stopLoad()
	loaded := make(chan error, 1)
	p := ficus(t, dir, args...)
	p.line("listening", nil)
	go func() {
		loaded <- shop.Load{Write: "postgresql://postgres@" + gateway + "/" + source.Name + "?sslmode=disable", Writers: 4, Rate: 200, Ledger: &ledger}.Run(ctx)
	}()

	for i := range kills {
		alive, dead := context.WithCancel(ctx)
		go flipFlop(alive, client, nameFor(source))
		// A change of owner takes about four seconds, most of them the lag gate.
		timer := time.NewTimer(time.Duration(rand.Int64N(int64(6 * time.Second))))
		select {
		case <-timer.C:
		case <-p.done:
			t.Fatalf("kill %d: ended by itself with status %d", i, p.cmd.ProcessState.ExitCode())
		}
		timer.Stop()
		p.stop(syscall.SIGKILL)
		dead()
		p = ficus(t, dir, args...)
	}

	var s migrate.Status
	pgtest.Eventually(t, "the migration to rest", func() bool {
		s, err = client.Get(t.Context(), nameFor(source))
		if err == nil && s.WaitingFor == string(migrate.Promote) { // killed in the middle as often as it tries
			_ = client.Do(t.Context(), nameFor(source), migrate.Command{Verb: migrate.Promote, Actor: "test"})
		}
		return err == nil && (s.Phase == migrate.Promoted || s.Phase == migrate.RolledBack) && s.Lag != nil && s.Lag.Bytes < 1<<20
	})
	stopLoad()
	must(t, <-loaded)
	proof, err := client.Verify(t.Context(), nameFor(source), api.VerifyRequest{RowsOnly: true})
	must(t, err)
	if proof.Differences != 0 || proof.Rows == 0 {
		t.Errorf("both databases: %+v", proof)
	}
	owner := map[migrate.Side]*pgtest.Database{migrate.Source: source, migrate.Target: target}[s.Owner]
	report, err := ledger.Check(t.Context(), owner.URL)
	must(t, err)
	t.Logf("%d kills, epoch %d, %+v", kills, s.Epoch, ledger.Totals())
	if !report.OK() || ledger.Acknowledged() == 0 {
		t.Errorf("ledger: %+v", report)
	}
}

// flipFlop asks for the next change of owner, whatever it is, until ctx ends.
func flipFlop(ctx context.Context, client *api.Client, name string) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s, err := client.Get(ctx, name)
		if err != nil {
			continue // it is starting
		}
		verb := migrate.Promote
		if s.Owner == migrate.Target {
			verb = migrate.Rollback
		}
		if s.Phase == migrate.Promoted || s.Phase == migrate.RolledBack || s.WaitingFor == string(migrate.Promote) {
			_ = client.Do(ctx, name, migrate.Command{Verb: verb, Actor: "test", Wait: true}) // may be killed in the middle
		}
	}
}
