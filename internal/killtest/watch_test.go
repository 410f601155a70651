package killtest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// A watcher looks all the time whether both databases take writes at one moment.
type watcher struct {
	source, target *pgtest.Database
	looked         atomic.Int64

	mu    sync.Mutex
	first string
}

// A gate is what a database says of itself. Its number grows whenever the gate closes or opens.
type gate struct {
	epoch, number int64
	owner         string
}

func (g gate) open() bool { return g.number%2 == 0 }

func (w *watcher) found() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.first
}

// start watches until stop is called.
func (w *watcher) start(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			w.session(ctx, tick.C)
			select {
			case <-ctx.Done():
				return
			case <-time.After(50 * time.Millisecond): // a server is away
			}
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// session looks until a server does not answer.
func (w *watcher) session(ctx context.Context, tick <-chan time.Time) {
	source, err := pgx.Connect(ctx, w.source.URL)
	if err != nil {
		return
	}
	defer func() { _ = source.Close(context.WithoutCancel(ctx)) }()
	target, err := pgx.Connect(ctx, w.target.URL)
	if err != nil {
		return
	}
	defer func() { _ = target.Close(context.WithoutCancel(ctx)) }()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		before, err1 := look(ctx, source)
		between, err2 := look(ctx, target)
		after, err3 := look(ctx, source)
		if err1 != nil || err2 != nil || err3 != nil {
			return
		}
		w.looked.Add(1)
		// A number that is the same before and after means that nothing happened in between.
		if before == after && before.open() && between.open() {
			w.mu.Lock()
			if w.first == "" {
				w.first = fmt.Sprintf("source %+v, target %+v", before, between)
			}
			w.mu.Unlock()
		}
	}
}

func look(ctx context.Context, conn *pgx.Conn) (g gate, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err = conn.QueryRow(ctx, `SELECT epoch, owner, (SELECT last_value FROM ficus.gate) FROM ficus.ownership`).Scan(&g.epoch, &g.owner, &g.number)
	return g, err
}
