package migrate

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/hint"
)

func gateOf(s Status, name string) GateState {
	if i := slices.IndexFunc(s.Gates, func(g GateState) bool { return g.Name == name }); i >= 0 {
		return s.Gates[i]
	}
	return GateState{}
}

// TestApprovalsOfSeveral: two of three named people have to approve, each counts once, others are refused,
// and what was said too long ago no longer counts.
//
// It fails when names are not compared, one person counts twice, or approvals do not end.
func TestApprovalsOfSeveral(t *testing.T) {
	inWorld(t, func(t bubble) {
		b := newBench(t, t.w, func(c *Config) {
			c.Settings.AutoApprove = false
			c.Settings.Approval = Approval{Need: 2, Of: []string{"anna", "ben", "carl"}, Valid: time.Hour}
		})
		b.start(t)
		b.waitsFor(t, GateApproval)
		say := func(actor string) error { return b.Do(t.Context(), Command{Verb: Approve, Actor: actor}) }
		if err := say("mallory"); !errors.Is(err, ErrNotNow) || !strings.Contains(hint.Of(err), "anna, ben, carl") {
			t.Errorf("a stranger's approval: %v", err)
		}
		if err := say("anna via mallory"); !errors.Is(err, ErrNotNow) {
			t.Errorf("a name that a stranger's token gave itself: %v", err)
		}
		for range 2 {
			if err := say("anna"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(59 * time.Minute)
		if g := gateOf(b.Status(), GateApproval); g.Open || !strings.HasPrefix(g.Measured, "1 of 2: anna until ") || !strings.HasPrefix(g.Wanted, "2 of anna, ben, carl") {
			t.Errorf("after one approval: %+v", g)
		}
		time.Sleep(2 * time.Minute)
		if err := say("whoever via ben"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if s := b.Status(); s.Phase != ReadsSwitched || gateOf(s, GateApproval).Open {
			t.Errorf("an approval that is over counted: %s, %+v", s.Phase, gateOf(s, GateApproval))
		}
		if err := say("anna"); err != nil {
			t.Fatal(err)
		}
		b.reach(t, Promoted)
	})
}

// TestHookRefuses: a phase that is refused does not begin until a person asks again, and a command is not
// held up by it.
//
// It fails when the phase is entered all the same, or the question is not asked again.
func TestHookRefuses(t *testing.T) {
	inWorld(t, func(t bubble) {
		var asked []Phase
		refuse := true
		b := newBench(t, t.w, func(c *Config) {
			c.Before = func(_ context.Context, _ Status, next Phase) error {
				asked = append(asked, next)
				if next == Promoting && refuse {
					return hint.Wrap(errors.New("not today"), "ask tomorrow")
				}
				return nil
			}
		})
		b.start(t)
		s := b.waitsFor(t, GateHook)
		if s.Phase != ReadsSwitched || s.Error != "not today" || s.Hint != "ask tomorrow" {
			t.Errorf("refused: %+v", s)
		}
		b.must(t, Resume)
		time.Sleep(time.Second) // it asks again
		b.waitsFor(t, GateHook)
		refuse = false
		b.must(t, Resume)
		b.reach(t, Promoted)
		want := []Phase{Copying, CatchingUp, Following, Verifying, ReadsSwitched, Promoting, Promoting, Promoting}
		if diff := cmp.Diff(want, asked); diff != "" {
			t.Error(diff)
		}
		b.must(t, Rollback)
		if got := asked[len(asked)-1]; got != RollingBack {
			t.Errorf("asked last for %s", got)
		}
	})
}
