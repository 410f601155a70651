package migrate

import (
	"context"
	"time"

	"github.com/ficus-migrate/ficus/internal/backoff"
)

// A pause spaces out retries: it doubles from min to max. One engine retries alone, so it needs no
// jitter, and without it a test's history can be replayed.
type pause struct {
	min, max time.Duration
	next     time.Duration
}

// wait blocks for the next pause and returns nil, or ctx's cause if that comes first.
func (p *pause) wait(ctx context.Context) error {
	p.next = min(max(p.next*2, p.min), p.max)
	return backoff.Sleep(ctx, p.next)
}

// graceful returns a context that outlives ctx by at most grace, for what must not be left half
// done.
func graceful(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { // ends with late at the latest
		if backoff.Sleep(late, grace) == nil {
			cancel(context.Cause(ctx))
		}
	})
	return late, func() {
		stop()
		cancel(nil)
	}
}
