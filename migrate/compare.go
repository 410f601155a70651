package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A Hold says who paused the comparisons of a migration, and since when. It is on record, so that a
// process which comes later does not go on with what was paused.
type Hold struct {
	By    string    `json:"by"`
	Since time.Time `json:"since"`
}

// Compare runs a comparison that somebody asked for, beside the steps, and shows how far it is. It can be
// paused, as that of a step can; see ComparisonHeld.
func (m *Migration) Compare(run func(progress func(done, total int64)) error) error {
	err := m.compare(run)
	m.unhold()
	return err
}

// ComparisonHeld returns nil while comparisons may go on, else what is closed when that may have changed.
func (m *Migration) ComparisonHeld() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.state.held == nil {
		return nil
	}
	if m.mu.goOn == nil {
		m.mu.goOn = make(chan struct{})
	}
	return m.mu.goOn
}

// Mended journals that rows of the follower were made what they are on the owner.
func (m *Migration) Mended(actor string, rows int, p Proof) {
	m.note(Event{Type: eventCommand, Actor: actor, Message: fmt.Sprintf("repair: %d rows mended at %s, %d of them still differ", rows, p.LSN, p.Differences)}, fact{})
}

func (m *Migration) compare(run func(progress func(done, total int64)) error) error {
	m.comparing(+1)
	defer m.comparing(-1)
	pace := pacer{since: time.Now()}
	return run(func(done, total int64) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.mu.live.checked = pace.progress(m.mu.state.heldAt, done, total)
		m.changedLocked()
	})
}

func (m *Migration) comparing(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.comparisons += n; m.mu.comparisons == 0 {
		m.mu.live.checked = nil
	}
	m.changedLocked()
}

// unhold lets comparisons go on when none is left that could have been meant.
func (m *Migration) unhold() {
	err := m.emit(Event{Type: eventCommand, Actor: "ficus", Message: string(ResumeVerify)}, fact{Verb: ResumeVerify}, func(s *state) error {
		if s.held == nil || m.mu.comparisons > 0 {
			return errInterrupted
		}
		return nil
	})
	if err == nil {
		m.obey(ResumeVerify)
	}
}

// unholdAfter is unhold after a comparison of a step, unless that ended with the process: the next one
// begins it again, and finds it paused.
func (m *Migration) unholdAfter(ctx context.Context) {
	if ctx.Err() == nil || errors.Is(context.Cause(ctx), errInterrupted) {
		m.unhold()
	}
}

// A pacer turns how far a comparison is into a rate, which a pause does not slow down.
type pacer struct {
	since time.Time
	from  int64 // done at that time
	last  int64
}

// progress is called with the time at which comparisons were paused or went on last.
func (p *pacer) progress(held time.Time, done, total int64) *Progress {
	if held.After(p.since) {
		p.since, p.from = time.Now(), p.last
	}
	p.last = done
	out := &Progress{Done: done, Total: total}
	if took, n := time.Since(p.since).Seconds(), done-p.from; took > 0 && n > 0 {
		out.Rate = int64(float64(n) / took)
		out.Left = time.Duration(float64(max(0, total-done)) / float64(n) * took * float64(time.Second))
	}
	return out
}
