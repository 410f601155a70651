package migrate

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// byHand is a router that leads nobody.
type byHand struct{ router }

func (byHand) Reads(context.Context, int) error { return nil }

func (byHand) Ahead(owner Side) string { return "writes on the " + string(owner) + " will fail" }
func (byHand) After(owner Side) string { return "move the clients to the " + string(owner) }

// TestRouted: without a router a person is asked before and after each change of owner, the answer outlives
// the process, and it cannot be given before it is asked for. Breaks that it catches: an answer that
// counts for the next change too; a question that is still there after the answer.
func TestRouted(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		ask := func(c *Config) {
			inner, ok := c.Router.(router)
			if !ok {
				t.Fatal("the bench has another router")
			}
			c.Router = byHand{inner}
			c.Settings.AutoApprove = false
		}
		b := newBench(t, w, ask)
		b.start(t)
		if s := b.waitsFor(t, GateApproval); s.Asks != "writes on the source will fail" {
			t.Errorf("at the approval: asks %q", s.Asks)
		}
		if err := b.Do(t.Context(), Command{Verb: Routed}); !errors.Is(err, ErrNotNow) {
			t.Errorf("routed before the switch: %v", err)
		}
		b.must(t, Approve)
		b.reach(t, Promoted)
		if s := b.Status(); s.Asks != "move the clients to the target; then: ficus routed shop" {
			t.Errorf("after the switch: asks %q", s.Asks)
		}
		b.must(t, Routed)
		if s := b.Status(); s.Asks != "" {
			t.Errorf("after the answer: asks %q", s.Asks)
		}
		if err := b.Do(t.Context(), Command{Verb: Routed}); !errors.Is(err, ErrNotNow) {
			t.Errorf("routed twice: %v", err)
		}
		b.stop(errors.New("the process ends"))
		if err := <-b.done; err == nil {
			t.Error("Run returned nothing")
		}
		b = newBench(t, w, ask)
		b.start(t)
		b.reach(t, Promoted)
		if s := b.Status(); s.Asks != "" {
			t.Errorf("after a restart: asks %q", s.Asks)
		}
		b.must(t, Rollback)
		if s := b.Status(); !strings.HasPrefix(s.Asks, "move the clients to the source") {
			t.Errorf("after the rollback: asks %q", s.Asks)
		}
	})
}
