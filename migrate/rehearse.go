package migrate

import (
	"context"
	"fmt"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// A rehearsal is a promotion that turns back right before the point of no return. It runs the
// same steps in the same code, so clients wait as they would, and the undoing is rehearsed as well.

// A Rehearsal is what a promotion would have cost.
type Rehearsal struct {
	At       time.Time     `json:"at"`
	Blackout time.Duration `json:"blackout_ns"` // the gate closed to open again
	Stall    StallStats    `json:"stall"`       // of the clients, as the router saw it
	Proof    Proof         `json:"proof"`       // the delta proof under the fence
	Steps    []StepTime    `json:"steps"`       // those during which clients waited
}

// A StepTime is how long a step took.
type StepTime struct {
	Step   string        `json:"step"`
	Took   time.Duration `json:"took_ns"`
	Budget time.Duration `json:"budget_ns"`
}

// rehearses reports whether the next promotion is a rehearsal: the first one of a process that was told so.
func (m *Migration) rehearses() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rehearsesLocked()
}

func (m *Migration) rehearsesLocked() bool {
	s := &m.mu.state
	return m.cfg.Settings.Rehearse && !m.mu.rehearsed && s.owner == Source && !s.phase.Final()
}

// turnBack ends a rehearsal: everything is taken back, and a person says when it is done in earnest.
func (m *Migration) turnBack(ctx context.Context, a *attempt, rows []step) error {
	if _, err := m.undo(ctx, a, rows); err != nil {
		return err
	}
	s := m.snapshot()
	r := Rehearsal{At: time.Now().UTC(), Stall: m.cfg.Router.Stalls(), Steps: a.waited}
	if s.fenceProof != nil {
		r.Proof = *s.fenceProof
	}
	if !s.closedAt.IsZero() && !a.opened.IsZero() {
		r.Blackout = a.opened.Sub(s.closedAt)
	}
	message := fmt.Sprintf("rehearsed: no writes for %s, longest stall %s; the %s owns the data as before",
		r.Blackout.Round(time.Millisecond), r.Stall.Max.Round(time.Millisecond), a.from)
	m.note(Event{Type: eventRehearsal, Message: message}, fact{Rehearsal: &r})
	m.mu.Lock()
	m.mu.rehearsed = true
	m.mu.Unlock()
	f := fact{Undone: true, Hint: "for the real thing: ficus promote " + m.cfg.Name, Park: string(Promote)}
	m.note(phaseEvent(ReadsSwitched, "rehearsed"), f)
	m.update(func(l *live) { l.forget() })
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// waitsForEarlier reports whether a state waits for a person because of what an earlier process did.
func (m *Migration) waitsForEarlier(s *state) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.waitsForEarlierLocked(s)
}

func (m *Migration) waitsForEarlierLocked(s *state) bool {
	return s.parked == string(Promote) && !s.phaseSince.After(m.mu.began)
}

// unpark lets a process that rehearses not wait for what an earlier rehearsal waits for.
func (m *Migration) unpark() error {
	return m.emit(Event{Type: eventCommand, Actor: "rehearsal", Message: string(Resume)}, fact{Verb: Resume}, nil)
}

// Rehearsed returns once this process has rehearsed the promotion, with what it would have cost. It
// returns an error when it cannot get there without a person, ErrNotNow when the target owns the data.
func (m *Migration) Rehearsed(ctx context.Context) (Rehearsal, error) {
	var r Rehearsal
	err := m.until(ctx, func(s *state, l *live) (bool, error) {
		if m.mu.rehearsed && s.rehearsal != nil && s.phase != Promoting {
			r = *s.rehearsal
			return true, nil
		}
		if s.phase == Promoted || s.phase == Completed {
			return false, hint.Wrap(fmt.Errorf("rehearse: %w: the target owns the data already", ErrNotNow), "run it without --rehearse")
		}
		if m.waitsForEarlierLocked(s) { // it will not, see promotionGates
			return false, nil
		}
		return false, m.stoppedLocked(s, l)
	})
	return r, err
}
