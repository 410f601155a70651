package link

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/sync/source"
)

// TestCopyOfAReplacedProcess: while a copy runs another process takes the migration over. From the moment
// that this is committed not one row more comes in, and a copy that the replaced process begins
// empties no table.
//
// It fails when chunks are copied without asking, and when tables are emptied without asking.
func TestCopyOfAReplacedProcess(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.from.Exec(t, `INSERT INTO public.account SELECT i, 100, repeat('x', 500) FROM generate_series(5001, 60000) i`)
	p.to.Exec(t, `CREATE TABLE public.driver (token text); INSERT INTO public.driver VALUES ('first')`)
	l := p.link(t, source.AckStored)
	errReplaced := errors.New("replaced")
	l.cfg.Guard = func(ctx context.Context, tx pgx.Tx) error {
		var token string
		if err := tx.QueryRow(ctx, `SELECT token FROM public.driver FOR SHARE`).Scan(&token); err != nil {
			return err
		}
		if token != "first" {
			return errReplaced
		}
		return nil
	}
	const count = `SELECT (SELECT count(*) FROM public.account) + (SELECT count(*) FROM public.entry) + (SELECT count(*) FROM public.event)`

	some, over := make(chan struct{}), make(chan error, 1)
	begun := sync.OnceFunc(func() { close(some) })
	go func() {
		_, err := l.Load(t.Context(), LoadConfig{Workers: 2, ChunkBytes: 8 << 10, Progress: func(s snapshot.Table) {
			if s.Rows > 0 {
				begun()
			}
		}})
		over <- err
	}()
	<-some
	p.to.Exec(t, `UPDATE public.driver SET token = 'second'`)
	taken := p.to.Int(t, count)
	if err := <-over; !errors.Is(err, errReplaced) {
		t.Errorf("the copy of the replaced process: %v", err)
	}
	if now := p.to.Int(t, count); now != taken || taken == 0 {
		t.Errorf("%d rows when it was replaced, %d when it ended", taken, now)
	}
	other := *p
	other.open(t, t.TempDir()) // one that knows nothing begins by emptying the tables
	anew := other.link(t, source.AckStored)
	anew.cfg.Guard = l.cfg.Guard
	if _, err := anew.Load(t.Context(), LoadConfig{}); !errors.Is(err, errReplaced) {
		t.Errorf("another copy of the replaced process: %v", err)
	}
	if now := p.to.Int(t, count); now != taken {
		t.Errorf("%d rows when it was replaced, %d after it began another copy", taken, now)
	}
	pgtest.Eventually(t, "its sessions to end", func() bool {
		return p.to.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'ficus/copy'`) == 0
	})
}
