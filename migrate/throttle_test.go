package migrate

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/change"
)

// A lever is a brake that a test pulls.
type lever struct {
	mu  sync.Mutex
	why string
	err error
}

func (*lever) Name() string { return "replica-lag" }

func (l *lever) Look(context.Context) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why, l.err
}

func (l *lever) pull(why string, err error) {
	l.mu.Lock()
	l.why, l.err = why, err
	l.mu.Unlock()
	time.Sleep(3 * time.Second) // until it was looked at
}

// stoppable is a link that can be told to stand still.
type stoppable struct {
	link

	held *int
}

func (s stoppable) StopAt(context.Context, change.LSN) (release func(), err error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	*s.held++
	return sync.OnceFunc(func() {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		*s.held--
	}), nil
}

// TestThrottle: while a brake is on, the link is held and copies wait, and the status says why; a person can do
// the same, which outlives the process. A promotion is never throttled, whatever is on.
//
// It fails when the link is not held, when it stays held in a promotion, and when a brake that cannot be
// measured holds it.
func TestThrottle(t *testing.T) {
	inWorld(t, func(t bubble) {
		var held int
		count := func() int {
			t.w.mu.Lock()
			defer t.w.mu.Unlock()
			return held
		}
		var brake lever
		b := newBench(t, t.w, func(c *Config) {
			c.Settings.Until = Following
			c.Brakes = []Brake{&brake}
			if l, ok := c.Forward.(link); ok {
				c.Forward = stoppable{l, &held}
			}
		})
		b.start(t)
		b.reach(t, Following)
		if err := b.Pace(t.Context()); err != nil || b.Status().Throttle != nil || count() != 0 {
			t.Errorf("nothing throttles: %v, %+v, held %d", err, b.Status().Throttle, count())
		}
		brake.pull("standby db2 replays 12s behind", nil)
		s := b.Status()
		if s.Throttle == nil || s.Throttle.Name != "replica-lag" || s.Throttle.Reason != "standby db2 replays 12s behind" || count() != 1 {
			t.Fatalf("throttled: %+v, held %d", s.Throttle, count())
		}
		short, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := b.Pace(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a copy went on: %v", err)
		}
		cancel()
		brake.pull("", errors.New("no answer"))
		if s := b.Status(); s.Throttle != nil || count() != 0 {
			t.Errorf("a brake that cannot be measured: %+v, held %d", s.Throttle, count())
		}

		b.must(t, Slow)
		time.Sleep(time.Second)
		if s := b.Status(); s.Throttle == nil || s.Throttle.Name != ThrottleOperator || s.Throttle.Reason != "by anna" || count() != 1 {
			t.Errorf("throttled by a person: %+v, held %d", s.Throttle, count())
		}
		b.must(t, Promote)
		if n := count(); n > 1 {
			t.Errorf("held %d times", n)
		}
		if s := b.Status(); s.Phase != Promoted {
			t.Errorf("phase %s", s.Phase)
		}
		b.must(t, Unslow)
		time.Sleep(time.Second)
		if s := b.Status(); s.Throttle != nil || count() != 0 {
			t.Errorf("in the end: %+v, held %d", s.Throttle, count())
		}
		var story []string
		for e, err := range b.Subscribe(t.Context(), 0) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Type == eventThrottle {
				story = append(story, e.Message)
			}
			if e.Seq >= b.Status().Seq {
				break
			}
		}
		for _, want := range []string{"throttled, replica-lag: standby db2", "warning: replica-lag cannot be looked at", "throttled, operator: by anna"} {
			if !slices.ContainsFunc(story, func(m string) bool { return strings.HasPrefix(m, want) }) {
				t.Errorf("the journal does not say %q: %q", want, story)
			}
		}
	})
}

// TestETA: a steady rate gives a narrow range, a changing one a wide range, and one that is not known or nothing gives
// none.
//
// It fails when the mean is taken for both ends, and when a standstill is passed over.
func TestETA(t *testing.T) {
	t.Parallel()
	began := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	marks := func(left ...int64) []mark {
		var all []mark
		for i, n := range left {
			all = append(all, mark{began.Add(time.Duration(i) * etaPart), n})
		}
		return all
	}
	for name, c := range map[string]struct {
		marks []mark
		want  ETA
	}{
		"nothing yet": {nil, ETA{Unknown: "not measured yet"}},
		"too short":   {marks(1000, 900), ETA{Unknown: "not measured for long enough"}},
		"steady":      {marks(1000, 900, 800), ETA{Low: 80 * time.Second, High: 80 * time.Second}},
		"changing":    {marks(1000, 900, 860), ETA{Low: 86 * time.Second, High: 215 * time.Second}},
		"standstill":  {marks(1000, 900, 900), ETA{Unknown: "it stands"}},
		"grows":       {marks(1000, 900, 950), ETA{Unknown: "it stands"}},
		"done":        {marks(1000, 500, 0), ETA{}},
	} {
		c.want.Of = "copy"
		if got := eta("copy", c.marks, "it stands"); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
