package apply

import (
	"testing"
	"time"
)

// It fails when a stream that has caught up, or is idle, waits for company, and when one that catches
// up does not.
func TestPace(t *testing.T) {
	t.Parallel()
	const second, ms = time.Second, time.Millisecond
	for _, test := range []struct {
		name       string
		here, made time.Duration // since the batch before
		want       time.Duration
	}{
		{"steady", 2 * ms, 2 * ms, 0},
		{"late by chance", 2 * ms, 5 * ms, 0},
		{"idle for an hour", 3600 * second, 3600 * second, 0},
		{"falling behind", 20 * ms, 5 * ms, 0},
		{"after a pause of the network", 1 * ms, 41 * ms, 20 * ms},
		{"a backlog", 10 * ms, 410 * ms, 100 * ms},
		{"an old backlog", 10 * ms, 3600 * second, 100 * ms},
		{"the source's clock was set back", 10 * ms, -3600 * second, 0},
	} {
		var p pace
		now, made := time.Unix(1_000_000, 0), time.Unix(5_000, 0) // clocks that do not agree
		p.look(now, made)
		if p.linger() != 0 {
			t.Errorf("%s: the first batch waits", test.name)
		}
		p.look(now.Add(test.here), made.Add(test.made))
		if got := p.linger(); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}
