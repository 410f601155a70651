package link

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/source"
)

// TestBesideTheCopy: when the rows are there, the origin is free of the copy's sessions while what
// runs beside it goes on, and the origin's changes are stored all the time. It notices a copy that
// keeps its snapshot open while indexes are built, and a reader that stops with the copy.
func TestBesideTheCopy(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	l := p.link(t, source.AckStored)
	const held = `SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND application_name IN ('ficus/snapshot', 'ficus/lock', 'ficus/copy')`
	var mu sync.Mutex
	var told []string
	idle := 0
	reached, goOn, loaded := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	load := LoadConfig{
		Workers: 2,
		Copied: func(_ context.Context, target schema.Name) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, target.Name)
		},
		Idle: func(context.Context) {
			mu.Lock()
			defer mu.Unlock()
			idle++
		},
		Beside: func(ctx context.Context, copied <-chan struct{}) error {
			for _, c := range []<-chan struct{}{copied, goOn} {
				select {
				case <-c:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				if c == copied {
					close(reached)
				}
			}
			return nil
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { // ends with goOn or ctx
		_, err := l.Load(ctx, load)
		loaded <- err
	}()
	select {
	case <-reached:
	case err := <-loaded:
		t.Fatalf("loaded before what runs beside it ended: %v", err)
	}
	pgtest.Eventually(t, "the copy's sessions to end", func() bool { return len(p.from.Strings(t, held)) == 0 })
	p.from.Exec(t, "INSERT INTO public.account VALUES (100001, 1, 'beside'); ALTER TABLE public.event RENAME TO other; ALTER TABLE public.other RENAME TO event")
	end, err := p.lsn(t)
	must(t, err)
	pgtest.Eventually(t, "the change to be stored", func() bool {
		p.from.Exec(t, "INSERT INTO public.entry VALUES (1, 1)") // or nothing later is sent
		return l.Stream().Head() >= end
	})
	close(goOn)
	must(t, <-loaded)
	slices.Sort(told)
	if !slices.Equal(told, []string{"account", "entry", "event"}) || idle != 2 {
		t.Errorf("told of tables %q and of %d workers", told, idle)
	}
	stop := run(t, l)
	p.equal(t, l)
	stop()
}

// TestBesideFails: what fails beside the copy ends it, and the next one goes on where it was.
func TestBesideFails(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	l := p.link(t, source.AckStored)
	errIndex := errors.New("no such index")
	_, err := l.Load(t.Context(), LoadConfig{Beside: func(context.Context, <-chan struct{}) error { return errIndex }})
	if !errors.Is(err, errIndex) {
		t.Fatalf("got %v, want what failed", err)
	}
	if _, err := l.Load(t.Context(), LoadConfig{}); err != nil {
		t.Fatal(err)
	}
	stop := run(t, l)
	p.equal(t, l)
	stop()
}
