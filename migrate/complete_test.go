package migrate

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestCompleteIsRefused: while the way back is meant to be kept, others wrote to the old database, or that one
// does not follow, "complete" is refused with all of it, and the status shows it before anybody asks. With force
// it goes through.
//
// It fails when one of the reasons is left out, and when force does not help.
func TestCompleteIsRefused(t *testing.T) {
	inWorld(t, func(t bubble) {
		b := newBench(t, t.w, func(c *Config) { c.Settings.RollbackWindow = 72 * time.Hour })
		b.start(t)
		b.reach(t, Promoted)
		time.Sleep(5 * time.Second) // for a lag sample
		if v := b.Status().Rollback; !v.Safe || time.Until(v.Until).Round(time.Hour) != 72*time.Hour {
			t.Errorf("verdict: %+v", v)
		}
		b.Foreign("psql wrote to public.t on the source")
		s := b.Status()
		if s.Rollback.Safe || s.Rollback.Foreign != 1 || s.Proof != nil {
			t.Errorf("after a write of others: %+v, proof %v", s.Rollback, s.Proof)
		}
		b.must(t, Pause)
		want := []string{"paused: the reverse link does not run", "others wrote 1 times", "the way back is kept until"}
		err := b.Do(t.Context(), Command{Verb: Complete})
		for _, w := range want {
			if !errors.Is(err, ErrNotNow) || !strings.Contains(err.Error(), w) {
				t.Errorf("complete: %v, want %q in it", err, w)
			}
			if !slices.ContainsFunc(b.Status().Unsettled, func(have string) bool { return strings.HasPrefix(have, w) }) {
				t.Errorf("status: %q, want %q", b.Status().Unsettled, w)
			}
		}
		b.must(t, Resume)
		if err := b.Do(t.Context(), Command{Verb: Complete, Force: true, Wait: true}); err != nil {
			t.Fatal(err)
		}
		if s := b.Status(); s.Phase != Completed || len(s.Unsettled) > 0 {
			t.Errorf("in the end: %s, %q", s.Phase, s.Unsettled)
		}
	})
}

// TestForeignWritesEndWithAProof: a rollback after writes of others compares everything first, and what it finds
// equal counts as safe again.
//
// It fails when a write of others leaves the proof in force, and when a proof does not settle it.
func TestForeignWritesEndWithAProof(t *testing.T) {
	inWorld(t, func(t bubble) {
		b := newBench(t, t.w, nil)
		b.start(t)
		b.reach(t, Promoted)
		b.Foreign("psql wrote to public.t on the source")
		before := b.Status().Seq
		b.must(t, Rollback)
		proofs := 0
		for e, err := range b.Subscribe(t.Context(), before) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Type == eventProof && strings.HasPrefix(e.Message, "exact proof") {
				proofs++
			}
			if e.Seq >= b.Status().Seq {
				break
			}
		}
		if s := b.Status(); proofs != 1 || s.Rollback.Foreign != 0 {
			t.Errorf("%d exact proofs on the way back, verdict %+v", proofs, s.Rollback)
		}
	})
}

// archiver is a source whose tables can be put away.
type archiver struct {
	database

	done *[]string
}

func (a archiver) Archive(_ context.Context, suffix string) ([]string, error) {
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	if fenced := a.w.db[Source].row.Epoch > 0; !fenced {
		return nil, errors.New("the fence is gone already")
	}
	*a.done = append(*a.done, suffix)
	return []string{"public" + suffix}, nil
}

// TestArchive: the old tables are put away under the day on which "complete" was said, before the fence goes from
// both sides.
//
// It fails when the fence of the source goes first, and when it stays.
func TestArchive(t *testing.T) {
	inWorld(t, func(t bubble) {
		var done []string
		b := newBench(t, t.w, func(c *Config) {
			c.Settings.OldData = ArchiveOldData
			if d, ok := c.Source.(database); ok {
				c.Source = archiver{d, &done}
			}
		})
		b.start(t)
		b.reach(t, Promoted)
		b.must(t, Complete)
		s := b.Status()
		if want := []string{"_old_20000101"}; !slices.Equal(done, want) || !slices.Equal(s.Archived, []string{"public_old_20000101"}) {
			t.Errorf("put away: %q, status %q", done, s.Archived)
		}
		t.w.mu.Lock()
		defer t.w.mu.Unlock()
		if a, b := t.w.db[Source].row.Epoch, t.w.db[Target].row.Epoch; a != 0 || b != 0 {
			t.Errorf("epochs %d and %d: something of Ficus is left", a, b)
		}
	})
}
