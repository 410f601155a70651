package migrate

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// A slow verifier compares a row a second, and can be paused.
type slow struct {
	Verifier

	held func() <-chan struct{}
	rows int64
}

func (v *slow) Exact(ctx context.Context, owner Side, progress func(done, total int64)) (Proof, error) {
	for n := int64(0); n < v.rows; {
		if held := v.held(); held != nil {
			select {
			case <-held:
			case <-ctx.Done():
				return Proof{}, context.Cause(ctx)
			}
			continue
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return Proof{}, context.Cause(ctx)
		}
		n++
		progress(n, v.rows)
	}
	return v.Verifier.Exact(ctx, owner, progress)
}

// slowBench is a bench whose comparisons take a minute.
func slowBench(t bubble) *bench {
	t.Helper()
	v := &slow{rows: 60}
	b := newBench(t, t.w, func(c *Config) {
		v.Verifier, c.Verifier = c.Verifier, v
		c.Settings.Until = Verifying
	})
	v.held = b.ComparisonHeld
	return b
}

// comparing lets time pass until a comparison has come so far.
func (b *bench) comparing(t testing.TB, done int64) Status {
	t.Helper()
	for range 1000 {
		if s := b.Status(); s.Checked != nil && s.Checked.Done >= done {
			return s
		}
		time.Sleep(time.Second)
	}
	t.Fatalf("never compared %d: %+v", done, b.Status())
	return Status{}
}

// A comparison is paused and goes on, in sight, and on record with the name of who asked; the process may
// end meanwhile, and the rate does not count the pause.
func TestPauseOfAComparison(t *testing.T) {
	inWorld(t, func(t bubble) {
		b := slowBench(t)
		if err := b.Do(t.Context(), Command{Verb: PauseVerify, Actor: "anna"}); !errors.Is(err, ErrNotNow) || !strings.Contains(err.Error(), "no comparison runs") {
			t.Errorf("with nothing to pause: %v", err)
		}
		b.start(t)
		b.comparing(t, 10)
		b.must(t, PauseVerify)
		time.Sleep(time.Hour)
		s := b.Status()
		if s.ComparisonPaused == nil || s.ComparisonPaused.By != "anna" || time.Since(s.ComparisonPaused.Since) < time.Hour || s.Checked == nil || s.Checked.Done > 12 || s.Paused {
			t.Errorf("paused: %+v, %+v", s.ComparisonPaused, s.Checked)
		}
		if err := b.Do(t.Context(), Command{Verb: PauseVerify, Actor: "ben"}); !errors.Is(err, ErrNotNow) || !strings.Contains(err.Error(), "by anna") {
			t.Errorf("paused twice: %v", err)
		}
		b.must(t, ResumeVerify)
		if s := b.comparing(t, 30); s.Checked.Rate != 1 || s.Checked.Left > time.Minute || s.ComparisonPaused != nil {
			t.Errorf("after the pause: %+v", s.Checked)
		}

		b.must(t, PauseVerify)
		enough := errors.New("enough")
		b.stop(enough)
		if err := <-b.done; !errors.Is(err, enough) {
			t.Errorf("stopped: %v", err)
		}
		b = slowBench(t)
		b.start(t)
		time.Sleep(time.Hour)
		if s := b.Status(); s.Phase != Verifying || s.ComparisonPaused == nil || s.Checked != nil {
			t.Errorf("in the next process: phase %s, %+v, %+v", s.Phase, s.ComparisonPaused, s.Checked)
		}
		b.must(t, ResumeVerify)
		b.waitsFor(t, string(Promote))
		if s := b.Status(); s.Proof == nil || s.Checked != nil {
			t.Errorf("at the end: %+v, %+v", s.Proof, s.Checked)
		}
	})
}

// A pause ends with what was paused: the next comparison does not wait for somebody who thinks that it is
// over.
func TestPauseEndsWithTheComparison(t *testing.T) {
	inWorld(t, func(t bubble) {
		b := slowBench(t)
		b.start(t)
		b.waitsFor(t, string(Promote))
		gone := errors.New("the one who asked has left")
		for range 2 {
			ctx, leave := context.WithCancelCause(t.Context())
			done := make(chan error, 1)
			go func() {
				done <- b.Compare(func(progress func(done, total int64)) error {
					_, err := b.cfg.Verifier.Exact(ctx, Source, progress)
					return err
				})
			}()
			b.comparing(t, 10)
			b.must(t, PauseVerify)
			leave(gone)
			if err := <-done; !errors.Is(err, gone) {
				t.Errorf("got %v", err)
			}
			if s := b.Status(); s.ComparisonPaused != nil || s.Checked != nil {
				t.Errorf("left behind: %+v, %+v", s.ComparisonPaused, s.Checked)
			}
		}
		if err := b.Do(t.Context(), Command{Verb: ResumeVerify}); !errors.Is(err, ErrNotNow) {
			t.Errorf("with nothing paused: %v", err)
		}
	})
}
