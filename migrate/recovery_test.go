package migrate

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// TestRecoverFromTheDatabases: histories of the model end at any moment, and the journals with them. What
// Recover says of the two databases is what an engine without a journal then does: the side that it names
// owns the data and takes writes, and one that it calls the owner while the other does not answer is
// never another than the one that both together name.
//
// It fails when Recover goes by the source's row alone, and when one database that is fenced counts as the
// owner by its own row.
func TestRecoverFromTheDatabases(t *testing.T) {
	t.Parallel()
	seen := map[Course]int{}
	for seed := range uint64(600) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(1_000_000 + seed)
			h := &history{w: w}
			for range 1 + w.rng.IntN(4) {
				h.life(t)
			}
			if w.violation != nil {
				t.Fatal(w.violation)
			}
			w.faults = 0
			for len(w.late) > 0 { // what is on its way arrives
				time.Sleep(time.Second)
				w.mu.Lock()
				w.step(1)
				w.mu.Unlock()
			}
			for _, d := range w.db {
				for _, tx := range d.txs {
					tx.stuck = time.Time{}
				}
			}
			w.journals, w.rng = [2][][]byte{}, rand.New(rand.NewPCG(seed, 1))
			src, dst := w.db[Source].row, w.db[Target].row
			r := Recover(&src, &dst)
			seen[r.Course]++
			oneIsEnough(t, r, src, dst)
			if r.Course == Begins || r.Course == Refuses || r.Course == Ends {
				return
			}
			m, _ := h.newEngine(t, 0, func(error) {})
			h.untilOwned(t, m)
			s := m.Status()
			if w.violation != nil {
				t.Fatalf("seed %d: %v", seed, w.violation)
			}
			if s.Owner != r.Owner || !w.db[r.Owner].row.GateOpen || w.db[r.Owner.Other()].row.GateOpen {
				t.Fatalf("seed %d: Recover said %+v of source %+v and target %+v; the engine made the %s the owner, source %+v, target %+v",
					seed, r, src, dst, s.Owner, w.db[Source].row, w.db[Target].row)
			}
		})
	}
	t.Logf("courses: %v", seen)
	for _, c := range []Course{Begins, GoesOn, Undoes, Ends} { // Finishes is rare; see TestRecoverRows
		if seen[c] == 0 {
			t.Errorf("no history came to %q", c)
		}
	}
}

// oneIsEnough holds what either database tells alone against what both tell together.
func oneIsEnough(t *testing.T, both Recovery, src, dst Ownership) {
	t.Helper()
	for side, r := range map[Side]Recovery{Source: Recover(&src, nil), Target: Recover(nil, &dst)} {
		if r.Course != Waits || r.Owner != "" && r.Owner != both.Owner && both.Course != Begins || r.Writes && !both.Writes {
			t.Fatalf("the %s alone: %+v; both together: %+v", side, r, both)
		}
	}
}

// untilOwned runs an engine until it has dealt with what it found.
func (h *history) untilOwned(t *testing.T, m *Migration) {
	t.Helper()
	before := m.Status().Seq
	over := make(chan struct{})
	ctx, stop := context.WithCancelCause(t.Context())
	go func() {
		defer close(over)
		_ = m.Run(ctx) // the databases tell
	}()
	for range 400 {
		time.Sleep(250 * time.Millisecond)
		h.w.mu.Lock()
		d := h.w.db[h.w.owner()]
		dealt := d != nil && d.row.GateOpen && m.Status().Seq > before
		h.w.mu.Unlock()
		if dealt {
			break
		}
	}
	stop(errors.New("seen"))
	<-over
}

// TestRecoverRows: what pairs of rows mean, those among them at which both databases are seldom left.
//
// It fails when a gate that is closed behind the point of no return counts as one before it, and when an old
// owner that was not told yet is overlooked.
func TestRecoverRows(t *testing.T) {
	t.Parallel()
	row := func(epoch int64, owner Side, open bool) *Ownership {
		return &Ownership{Migration: "m", Epoch: epoch, Owner: owner, GateOpen: open}
	}
	other := row(1, Source, true)
	other.Migration = "n"
	for name, c := range map[string]struct {
		source, target *Ownership
		course         Course
		owner          Side
		writes         bool
	}{
		"nothing":                        {&Ownership{}, &Ownership{}, Begins, "", false},
		"copied":                         {row(1, Source, true), row(1, Source, false), GoesOn, Source, true},
		"fenced":                         {row(1, Source, false), row(1, Source, false), Undoes, Source, false},
		"fenced, and burnt":              {row(1, Source, false), row(2, Source, false), Undoes, Source, false},
		"passed":                         {row(1, Source, false), row(2, Target, false), Finishes, Target, false},
		"passed and open":                {row(1, Source, false), row(2, Target, true), Finishes, Target, true},
		"promoted":                       {row(2, Target, false), row(2, Target, true), GoesOn, Target, true},
		"rollback, fenced":               {row(2, Target, false), row(2, Target, false), Undoes, Target, false},
		"rollback, passed":               {row(3, Source, false), row(2, Target, false), Finishes, Source, false},
		"rolled back":                    {row(3, Source, true), row(3, Source, false), GoesOn, Source, true},
		"completed":                      {row(2, Target, false), &Ownership{}, Ends, Target, true},
		"the source lost its schema":     {&Ownership{}, row(2, Target, true), Refuses, Target, false},
		"two migrations":                 {other, row(1, Source, false), Refuses, Source, false},
		"source alone, open":             {row(1, Source, true), nil, Waits, Source, true},
		"source alone, fenced":           {row(1, Source, false), nil, Waits, "", false},
		"source alone, knows":            {row(2, Target, false), nil, Waits, Target, false},
		"target alone, follows":          {nil, row(1, Source, false), Waits, Source, false},
		"target alone, owner but closed": {nil, row(2, Target, false), Waits, "", false},
		"neither":                        {nil, nil, Waits, "", false},
	} {
		r := Recover(c.source, c.target)
		if r.Course != c.course || r.Owner != c.owner || r.Writes != c.writes || r.Why == "" {
			t.Errorf("%s: got %+v, want %s, owner %q, writes %t", name, r, c.course, c.owner, c.writes)
		}
	}
}
