package migrate

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A shifting link follows changes of tables: it is both optional kinds of Link.
type shifting struct {
	Link

	w *world
	// unseen is how many of the next looks under the closed gate find a change.
	unseen int
	looks  []bool // whether the gate was open
	held   bool
	woken  int
}

func (l *shifting) Settle(context.Context) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.held = true
	open := l.w.db[Source].row.GateOpen
	l.looks = append(l.looks, open)
	if !open && l.unseen > 0 {
		l.unseen--
		return errors.New("a table changed")
	}
	return nil
}

func (l *shifting) Unsettle() { l.held = false }

func (l *shifting) Known(tables []string) ([]string, error) {
	if slices.Contains(tables, "nowhere") {
		return nil, errors.New("not one that moves")
	}
	return tables, nil
}

func (l *shifting) Wake() { l.woken++ }

// TestSettleUnderTheFence: a change of a table that comes in the last moment takes the promotion back,
// which is then tried again. It fails when the step settle is left out, or the look after the proof.
func TestSettleUnderTheFence(t *testing.T) {
	t.Parallel()
	for name, unseen := range map[string]int{"nothing": 0, "once": 1} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t bubble) {
				l := &shifting{w: t.w, unseen: unseen}
				b := newBench(t, t.w, func(c *Config) { l.Link, c.Forward = c.Forward, l })
				b.start(t)
				b.reach(t, Promoted)
				want := slices.Concat(slices.Repeat([]bool{true, false}, unseen), []bool{true, false, false})
				if diff := cmp.Diff(want, l.looks); diff != "" {
					t.Errorf("looks, with the gate open (-want +got):\n%s", diff)
				}
				if n := len(b.Status().Promotions); n != 1 || l.held {
					t.Errorf("%d promotions, the link is held: %t", n, l.held)
				}
			})
		})
	}
}

// TestUnprovedWhileWaiting: what was proved counts no more while the migration waits for an approval.
// It compares again by itself, and waits again.
func TestUnprovedWhileWaiting(t *testing.T) {
	inWorld(t, func(t bubble) {
		b := newBench(t, t.w, func(c *Config) { c.Settings.AutoApprove = false })
		b.start(t)
		first := b.waitsFor(t, GateApproval)
		b.Unprove("a table changed")
		time.Sleep(time.Minute)
		s := b.waitsFor(t, GateApproval)
		if s.Phase != ReadsSwitched || s.Proof == nil || !s.Proof.Time.After(first.Proof.Time) {
			t.Errorf("phase %s, proof %+v", s.Phase, s.Proof)
		}
		b.must(t, Approve)
		b.reach(t, Promoted)
	})
}

// TestResyncCommand: where it may be asked for, that it outlives the process, and what it makes of proofs.
func TestResyncCommand(t *testing.T) {
	inWorld(t, func(t bubble) {
		l := &shifting{w: t.w}
		wrap := func(c *Config) {
			l.Link, c.Forward = c.Forward, l
			c.Settings.AutoApprove = false
		}
		b := newBench(t, t.w, wrap)
		ask := func(tables ...string) error {
			return b.Do(t.Context(), Command{Verb: Resync, Actor: "anna", Tables: tables})
		}
		if err := ask("public.t"); !errors.Is(err, ErrNotNow) || !strings.Contains(err.Error(), "nothing was copied yet") {
			t.Errorf("while pending: %v", err)
		}
		b.start(t)
		b.waitsFor(t, GateApproval)
		if err := ask(); !errors.Is(err, ErrNotNow) {
			t.Errorf("of no table: %v", err)
		}
		if err := ask("nowhere"); err == nil || len(b.Asked()) > 0 {
			t.Errorf("of a table that does not move: %v, asked %v", err, b.Asked())
		}
		if err := ask("public.t", "public.u"); err != nil {
			t.Fatal(err)
		}
		if s := b.Status(); s.Proof != nil || s.Recopy == nil || len(s.Recopy.Tables) != 2 || s.Recopy.Why != "asked for by anna" || l.woken != 1 {
			t.Errorf("status %+v, woken %d", s, l.woken)
		}
		enough := errors.New("enough")
		b.stop(enough)
		if err := <-b.done; !errors.Is(err, enough) {
			t.Errorf("stopped: %v", err)
		}

		b = newBench(t, t.w, wrap)
		asked := b.Asked()
		if len(asked) != 1 || asked[0].By != "anna" || !slices.Equal(asked[0].Tables, []string{"public.t", "public.u"}) {
			t.Fatalf("after a restart: %+v", asked)
		}
		b.start(t)
		done := make(chan error, 1)
		go func() {
			done <- b.Do(t.Context(), Command{Verb: Resync, Actor: "ben", Tables: []string{"public.v"}, Wait: true})
		}()
		time.Sleep(time.Second)
		b.Answered(asked[0].Number)
		if asked = b.Asked(); len(asked) != 1 || asked[0].By != "ben" {
			t.Errorf("asked %+v", asked)
		}
		select {
		case err := <-done:
			t.Errorf("it was not waited for: %v", err)
		case <-time.After(time.Second):
		}
		b.Recopying("asked for by ben", &TableProgress{Table: "public.v", Rows: 7})
		if r := b.Status().Recopy; r == nil || r.Tables[0].Rows != 7 {
			t.Errorf("progress %+v", r)
		}
		b.Recopying("", nil)
		b.Answered(asked[0].Number)
		if err := <-done; err != nil || b.Status().Recopy != nil {
			t.Errorf("done: %v, %+v", err, b.Status().Recopy)
		}
		b.waitsFor(t, GateApproval)
		b.must(t, Approve)
		b.reach(t, Promoted)
		if err := ask("public.t"); !errors.Is(err, ErrNotNow) { // the reverse link cannot
			t.Errorf("once promoted: %v", err)
		}
	})
}
