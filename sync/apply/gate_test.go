package apply

import (
	"context"
	"testing"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
)

// TestGateLimits: of several stops the earliest counts, in whatever order they came and go.
func TestGateLimits(t *testing.T) {
	t.Parallel()
	batch := []txn{{end: 10}, {end: 20}, {end: 30}}
	for _, tc := range []struct {
		name  string
		stops []change.LSN
		want  int // transactions that may pass
	}{
		{"none", nil, 3},
		{"behind all", []change.LSN{40}, 3},
		{"at one", []change.LSN{20}, 2},
		{"between", []change.LSN{29}, 2},
		{"earliest first", []change.LSN{10, 30}, 1},
		{"earliest last", []change.LSN{30, 10}, 1},
		{"a position takes over", []change.LSN{0, 20}, 2},
		{"before all", []change.LSN{9}, 0},
		{"where it is", []change.LSN{0}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := newGate(func(change.LSN) change.LSN { return 0 })
			for _, at := range tc.stops {
				g.mu.holds = append(g.mu.holds, &hold{at})
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			if tc.want == 0 {
				cancel(errTestOver) // it would wait
			}
			defer cancel(nil)
			n, err := g.await(ctx, batch, false)
			if n != tc.want || (err != nil) != (tc.want == 0) {
				t.Errorf("got %d, %v; want %d", n, err, tc.want)
			}
			s := g.read()
			if tc.want == 0 && s.standing != 10 || tc.want > 0 && s.writing != batch[n-1].end {
				t.Errorf("got %+v", s)
			}
		})
	}
}

// TestIdlePosition: what was received counts only when everything stored is applied.
func TestIdlePosition(t *testing.T) {
	t.Parallel()
	log := newMemLog()
	log.add(eventstore.Chunk{End: 50})
	a := &Applier{log: log, cfg: Config{Received: func() change.LSN { return 90 }}}
	for applied, want := range map[change.LSN]change.LSN{40: 0, 49: 0, 50: 90, 60: 90} {
		if got := a.idleAt(applied); got != want {
			t.Errorf("applied %s: got %s, want %s", applied, got, want)
		}
	}
}
