package backoff_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ficus-migrate/ficus/internal/backoff"
)

// waited returns how long one Wait takes on the test's clock.
func waited(t *testing.T, timer *backoff.Timer) time.Duration {
	t.Helper()
	start := time.Now()
	if err := timer.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

func TestDelaysDoubleUpToMax(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		timer := &backoff.Timer{Min: time.Second, Max: time.Minute}
		for i, seconds := range []int{1, 2, 4, 8, 16, 32, 60, 60} {
			base := time.Duration(seconds) * time.Second
			if d := waited(t, timer); d < base*3/4 || d > base*5/4 {
				t.Errorf("delay %d is %s, want %s give or take a quarter", i, d, base)
			}
		}
		timer.Reset()
		if d := waited(t, timer); d > 1250*time.Millisecond {
			t.Errorf("after Reset the delay is %s, want a second give or take a quarter", d)
		}
	})
}

// A target that is down for days does not make the delay overflow.
func TestManyFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		timer := &backoff.Timer{Min: 250 * time.Millisecond, Max: time.Minute}
		for i := range 100 {
			if d := waited(t, timer); d <= 0 || d > 75*time.Second {
				t.Fatalf("delay %d is %s", i, d)
			}
		}
	})
}

func TestWorkersDoNotRetryTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		seen := map[time.Duration]bool{}
		for range 20 {
			seen[waited(t, &backoff.Timer{Min: time.Second, Max: time.Second})] = true
		}
		if len(seen) < 10 {
			t.Errorf("20 workers wait only %d different times", len(seen))
		}
	})
}

func TestWaitReturnsTheCause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		paused := errors.New("paused")
		ctx, cancel := context.WithCancelCause(t.Context())
		start := time.Now()
		time.AfterFunc(time.Second, func() { cancel(paused) })
		timer := &backoff.Timer{Min: time.Hour, Max: time.Hour}
		if err := timer.Wait(ctx); !errors.Is(err, paused) || time.Since(start) != time.Second {
			t.Errorf("Wait = %v after %s, want %v after 1s", err, time.Since(start), paused)
		}
	})
}
