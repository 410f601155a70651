package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/ficus-migrate/ficus/change"
)

// A diary is a follower that notes what is asked of it.
type diary struct {
	mu    sync.Mutex
	lines []string
	fails error
}

func (d *diary) StopAt(_ context.Context, lsn change.LSN) (release func(), err error) {
	if d.fails != nil {
		return nil, d.fails
	}
	d.note("stop at " + lsn.String())
	return func() { d.note("go on from " + lsn.String()) }, nil
}

func (d *diary) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
}

// One comparison at a time holds the link, from its first stop until that is released: the second one waits,
// goes on when the first is through, and gives up with its context; a stop that fails leaves the turn to
// others, and a release that comes twice takes nobody else's.
func TestTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := new(diary)
		turn := make(chan struct{}, 1)
		first, second := turns{d, turn}, turns{d, turn}
		stop := func(by turns, lsn change.LSN) func() {
			t.Helper()
			release, err := by.StopAt(t.Context(), lsn)
			if err != nil {
				t.Fatal(err)
			}
			return release
		}
		hold := stop(first, 0)
		released := make(chan func())
		go func() { released <- stop(second, 0) }()
		synctest.Wait()
		at := stop(first, 7)
		at()
		synctest.Wait()
		select {
		case <-released:
			t.Error("both hold the link")
		default:
		}
		hold()
		hold() // as a deferred call after an early one
		other := <-released
		if len(turn) != 1 {
			t.Error("the turn of the second was given back by the first")
		}
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(gone)
		if _, err := first.StopAt(ctx, 0); !errors.Is(err, gone) {
			t.Errorf("got %v, want %v", err, gone)
		}
		other()
		want := []string{"stop at 0/0", "stop at 0/7", "go on from 0/7", "go on from 0/0", "stop at 0/0", "go on from 0/0"}
		if !slices.Equal(d.lines, want) {
			t.Errorf("got %q, want %q", d.lines, want)
		}

		d.fails = errors.New("no link")
		for range 2 { // the second would wait for ever
			if _, err := first.StopAt(t.Context(), 0); !errors.Is(err, d.fails) {
				t.Error(fmt.Errorf("got %w", err))
			}
		}
	})
}
