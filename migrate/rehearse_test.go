package migrate

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

// TestRehearsal: everything up to the point of no return is done and taken back, what it cost is told,
// and only a person's word makes the next one real. A rollback is never a rehearsal.
//
// It fails when a rehearsal is not taken back, when the next promotion is a rehearsal again, and when the
// rehearsal passes the point of no return.
func TestRehearsal(t *testing.T) {
	inWorld(t, func(t bubble) {
		b := newBench(t, t.w, func(c *Config) { c.Settings.Rehearse = true })
		b.start(t)
		r, err := b.Rehearsed(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s := b.waitsFor(t, string(Promote))
		if s.Phase != ReadsSwitched || s.Owner != Source || s.Rehearsal == nil || len(s.Promotions) > 0 {
			t.Errorf("after the rehearsal: %+v", s)
		}
		t.w.mu.Lock()
		if t.w.promotions > 0 || !t.w.db[Source].row.GateOpen || t.w.held || t.w.links[Target].prepared {
			t.Errorf("not taken back: %d changes of owner, source %+v, clients held: %t, reverse link: %t",
				t.w.promotions, t.w.db[Source].row, t.w.held, t.w.links[Target].prepared)
		}
		t.w.mu.Unlock()
		var steps []string
		for _, st := range r.Steps {
			steps = append(steps, st.Step)
		}
		want := []string{"hold", "close-gate", "wait-writers", "signal", "drain", "settle", "prove-fenced", "sequences"}
		if !slices.Equal(steps, want) || r.Blackout <= 0 || r.Proof.Kind == "" || r.Stall.Clients == 0 {
			t.Errorf("rehearsal %+v, want the steps %v", r, want)
		}

		b.must(t, Promote)
		if s := b.Status(); s.Owner != Target || len(s.Promotions) != 1 {
			t.Errorf("after the promotion: %+v", s)
		}
		b.must(t, Rollback)
		if s := b.Status(); s.Owner != Source {
			t.Errorf("after the rollback: %+v", s)
		}
	})
}

// TestRehearsedAgain: another process that is told to rehearse does so, though an earlier rehearsal waits
// for a person; one that is not told waits.
//
// It fails when what an earlier process waits for holds up the rehearsal.
func TestRehearsedAgain(t *testing.T) {
	inWorld(t, func(t bubble) {
		rehearse := func(c *Config) { c.Settings.Rehearse = true }
		stopped := errors.New("stopped")
		for range 2 {
			b := newBench(t, t.w, rehearse)
			b.start(t)
			soon, cancel := context.WithTimeout(t.Context(), time.Hour)
			_, err := b.Rehearsed(soon)
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			b.waitsFor(t, string(Promote))
			b.stop(stopped)
			if err := <-b.done; !errors.Is(err, stopped) {
				t.Errorf("stopped: %v", err)
			}
		}
		b := newBench(t, t.w, nil)
		b.start(t)
		b.waitsFor(t, string(Promote))
		t.w.mu.Lock()
		defer t.w.mu.Unlock()
		if t.w.promotions > 0 {
			t.Error("a rehearsal changed the owner")
		}
	})
}
