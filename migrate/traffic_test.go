package migrate

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
)

// seer is a router that sees how reads fare, and takes them back at a percentage.
type seer struct {
	router

	at      int
	percent *atomic.Int64
}

func (s seer) Reads(ctx context.Context, percent int) error {
	s.percent.Store(int64(percent))
	return s.router.Reads(ctx, percent)
}

func (s seer) Traffic() Traffic {
	t := Traffic{Percent: int(s.percent.Load())}
	if t.Percent >= s.at {
		t.Fault = "reads stepped back"
	}
	return t
}

// TestReadFault: reads that the router takes back during the steps stop the migration there, with all of them
// on the owner. It catches steps that go on.
func TestReadFault(t *testing.T) {
	inWorld(t, func(t bubble) {
		w := t.w
		b := newBench(t, w, func(c *Config) {
			c.Settings.ReadSteps = []int{10, 50, 100}
			inner, ok := c.Router.(router)
			if !ok {
				t.Fatal("the bench has another router")
			}
			c.Router = seer{inner, 50, new(atomic.Int64)}
		})
		b.start(t)
		ctx := t.Context()
		if err := b.Reached(ctx, Promoted); err == nil || !strings.Contains(err.Error(), "reads stepped back") {
			t.Fatalf("the migration went on: %v, %+v", err, b.Status())
		}
		if s := b.Status(); s.ReadsOn != 0 || s.Owner != Source || s.Traffic == nil {
			t.Errorf("after it: %d percent, owner %s, traffic %+v", s.ReadsOn, s.Owner, s.Traffic)
		}
	})
}
