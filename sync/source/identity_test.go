package source

import (
	"testing"

	"github.com/ficus-migrate/ficus/change"
)

func TestEndOfTimeline(t *testing.T) {
	t.Parallel()
	const history = "1\t0/16B3748\tno recovery target specified\n\n# a comment\n2\t1/5000000\tbefore 2026-11-21\n"
	for _, c := range []struct {
		history  string
		timeline int32
		want     change.LSN
		ok, bad  bool
	}{
		{history, 1, 0x16B3748, true, false},
		{history, 2, 0x105000000, true, false},
		{history, 3, 0, false, false},
		{"", 1, 0, false, false},
		{"one\t0/1\n", 1, 0, false, true},
		{"1\n", 1, 0, false, true},
		{"1\tnowhere\n", 1, 0, false, true},
	} {
		got, ok, err := endOfTimeline(c.history, c.timeline)
		if got != c.want || ok != c.ok || (err != nil) != c.bad {
			t.Errorf("timeline %d in %q: %s, %t, %v", c.timeline, c.history, got, ok, err)
		}
	}
}
