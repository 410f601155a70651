// Package backoff spaces out retries.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// A Timer counts consecutive failures and waits longer after each.
// The zero value is not ready for use; set Min and Max. Not safe for concurrent use.
type Timer struct {
	Min, Max time.Duration
	fails    int
}

// Reset forgets past failures. Call it after progress, not after connecting.
func (t *Timer) Reset() { t.fails = 0 }

// Wait blocks for the next delay and returns nil, or ctx's cause if that comes first.
// The delay doubles from Min to Max, give or take a quarter, so that many workers that failed
// together do not retry together.
func (t *Timer) Wait(ctx context.Context) error {
	d := min(t.Min<<min(t.fails, 20), t.Max)
	t.fails++
	d += time.Duration((rand.Float64() - 0.5) / 2 * float64(d))
	return Sleep(ctx, d)
}

// Sleep returns nil after d, or ctx's cause if that comes first.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
