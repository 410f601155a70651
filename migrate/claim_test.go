package migrate

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// second is another engine on the same two databases, on another machine.
func second(t testing.TB, w *world, change func(*Config)) *bench {
	t.Helper()
	return newBenchOn(t, w, 1, change)
}

// TestSecondEngineIsRefused: while one engine drives a migration another one waits, is refused, and
// touches nothing.
//
// It fails when Run does not claim.
func TestSecondEngineIsRefused(t *testing.T) {
	inWorld(t, func(t bubble) {
		first := newBench(t, t.w, nil)
		first.start(t)
		first.reach(t, Promoted)
		before := t.w.db[Target].row

		rival := second(t, t.w, func(c *Config) { c.Settings.ClaimWait = time.Minute })
		began := time.Now()
		err := rival.Run(t.Context())
		if !errors.Is(err, ErrDriven) || hint.Of(err) == "" {
			t.Errorf("second engine: %v", err)
		}
		if waited := time.Since(began); waited < time.Minute || waited > 2*time.Minute {
			t.Errorf("it waited for %s", waited)
		}
		if s := rival.Status(); s.Phase != Pending || s.Seq != 0 {
			t.Errorf("second engine wrote a story: %+v", s)
		}
		if t.w.db[Target].row != before || !first.Status().Running {
			t.Error("the first engine was disturbed")
		}
	})
}

// TestSecondEngineWaits: a second engine goes on when the first one ends meanwhile.
//
// It fails when Run keeps its claims.
func TestSecondEngineWaits(t *testing.T) {
	inWorld(t, func(t bubble) {
		first := newBench(t, t.w, nil)
		first.start(t)
		first.reach(t, Promoted)
		next := second(t, t.w, nil)
		next.start(t)
		next.waitsFor(t, waitsForDriver)
		stopped := errors.New("stopped")
		first.stop(stopped)
		if err := <-first.done; !errors.Is(err, stopped) {
			t.Fatal(err)
		}
		next.reach(t, Promoted) // its journal is empty, the databases tell
		if s := next.Status(); s.Owner != Target || s.Epoch != 2 {
			t.Errorf("second engine: %+v", s)
		}
	})
}

// TestDeposedEngineEnds: an engine whose sessions broke, and which another one replaced, ends at once
// and changes nothing any more.
//
// It fails when a lost session is not noticed.
func TestDeposedEngineEnds(t *testing.T) {
	inWorld(t, func(t bubble) {
		first := newBench(t, t.w, nil)
		first.start(t)
		first.reach(t, Promoted)
		t.w.mu.Lock()
		first.p.stands = time.Now().Add(30 * time.Second)
		t.w.cutOff(first.p)
		t.w.mu.Unlock()
		next := second(t, t.w, func(c *Config) { c.Settings.Until = Promoted })
		next.start(t)
		next.reach(t, Promoted)
		select {
		case err := <-first.done:
			if !errors.Is(err, ErrDeposed) || hint.Of(err) == "" {
				t.Errorf("the first engine ended with %v", err)
			}
		case <-time.After(2 * time.Minute):
			t.Fatal("the first engine goes on")
		}
		if s := first.Status(); s.Phase == Failed {
			t.Errorf("its journal calls that a failure: %+v", s)
		}
		next.must(t, Rollback)
	})
}

// TestStaleEpochAcrossEngines: an engine that stood still between the last step before the point of no
// return and that one finds its epoch refused, though it is higher than what its successor burnt.
//
// Without claims the source's gate is open, and the target owns: the model finds it, too.
func TestStaleEpochAcrossEngines(t *testing.T) {
	inWorld(t, func(t bubble) {
		ctx := t.Context()
		first, next := newBench(t, t.w, nil), second(t, t.w, nil)
		for _, side := range []Side{Source, Target} {
			claim(ctx, t, first, side)
			if err := first.database(side).Install(ctx, "shop", Source); err != nil {
				t.Fatal(err)
			}
		}
		if err := first.database(Source).CloseGate(ctx); err != nil {
			t.Fatal(err)
		}
		t.w.mu.Lock()
		t.w.cutOff(first.p)
		t.w.mu.Unlock()
		for _, side := range []Side{Source, Target} {
			claim(ctx, t, next, side)
		}
		if err := next.database(Target).Own(ctx, 2, Source); err != nil { // burns what it knows of
			t.Fatal(err)
		}
		if err := next.database(Source).OpenGate(ctx); err != nil {
			t.Fatal(err)
		}
		if err := first.database(Target).Own(ctx, 9, Target); !errors.Is(err, ErrDeposed) {
			t.Errorf("epoch 9 of the first engine: %v", err)
		}
	})
}

func claim(ctx context.Context, t testing.TB, b *bench, side Side) {
	t.Helper()
	if _, err := b.database(side).Claim(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestStaleComplete: an engine that was asked to complete comes back after another one went back to the source, promoted again, and
// died before the source had heard of it. It tells the source, and completes nothing: that was wanted of another time.
//
// It fails when a phase that names the right owner is taken for the end of the newest promotion: the target's row was then removed with
// the source's naming the source.
func TestStaleComplete(t *testing.T) {
	inWorld(t, func(t bubble) {
		first := newBenchOn(t, t.w, 1, nil)
		first.start(t)
		first.reach(t, Promoted)
		first.stop(errors.New("enough"))
		if err := <-first.done; err == nil || err.Error() != "enough" {
			t.Errorf("run: %v", err)
		}
		if err := first.Do(t.Context(), Command{Verb: Complete, Actor: "anna", Force: true}); err != nil {
			t.Fatal(err)
		}
		t.w.mu.Lock()
		source, target := t.w.db[Source], t.w.db[Target]
		source.row.Epoch, source.row.Owner, source.row.GateOpen = 3, Source, false
		target.row.Epoch, target.row.Owner, target.row.GateOpen = 4, Target, true
		t.w.mu.Unlock()

		again := newBenchOn(t, t.w, 1, nil)
		again.start(t)
		time.Sleep(time.Minute)
		t.w.mu.Lock()
		row := source.row
		t.w.mu.Unlock()
		if s := again.Status(); row.Owner != Target || row.Epoch != 4 || s.Phase != Promoted || s.Owner != Target || s.Epoch != 4 {
			t.Errorf("the source says %+v; status: phase %s, owner %s, epoch %d", row, s.Phase, s.Owner, s.Epoch)
		}
	})
}

// TestStaleCancel: an engine that was asked to cancel comes back after another one has completed the
// migration. The source's own row says that the target owns, so it stays fenced and clients stay where
// they are.
//
// It fails when the wish in the journal counts more than the row: the model found that.
func TestStaleCancel(t *testing.T) {
	inWorld(t, func(t bubble) {
		first := newBench(t, t.w, func(c *Config) { c.Settings.Until = Following })
		first.start(t)
		first.waitsFor(t, string(Promote))
		stopped := errors.New("stopped")
		first.stop(stopped)
		if err := <-first.done; !errors.Is(err, stopped) {
			t.Fatal(err)
		}
		if err := first.Do(t.Context(), Command{Verb: Cancel}); err != nil { // on record, for the next Run
			t.Fatal(err)
		}

		other := second(t, t.w, nil)
		other.start(t)
		other.reach(t, Promoted)
		other.must(t, Complete)

		late := newBench(t, t.w, nil)
		if err := late.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if row := t.w.db[Source].row; row.GateOpen || row.Owner != Target {
			t.Errorf("the source: %+v", row)
		}
		if s := late.Status(); s.Phase != Completed {
			t.Errorf("the late engine stands in %s", s.Phase)
		}
	})
}
