package migrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// A Command is what a person asks of a migration.
type Command struct {
	Verb  Verb
	Gate  string // approve: which gate. Default "approval"
	Actor string // who asks, for the journal
	// Tables are those that resync copies anew, named as on either side.
	Tables []string
	// Force lets complete end what is not settled; see Status.Unsettled.
	Force bool
	// Wait lets Do return when the command has done its work, rather than when it is on record.
	Wait bool
}

// Do records a command, and refuses with ErrNotNow what does not fit the phase. Without Wait it
// returns at once. A migration that no Run drives now remembers the command for the next Run; in
// particular, after "resume" of a failed one its owner calls Run again.
func (m *Migration) Do(ctx context.Context, c Command) error {
	f := fact{Verb: c.Verb}
	if c.Verb == Approve {
		f.Gate = GateApproval
		if c.Gate != "" && c.Gate != GateApproval {
			return hint.Wrap(fmt.Errorf("approve %q: %w: no such manual gate", c.Gate, ErrNotNow), "the only gate that people open is %q", GateApproval)
		}
	}
	if c.Verb == Resync {
		var err error
		if f.Tables, err = m.tablesOf(c.Tables); err != nil {
			return err
		}
	}
	var before state
	err := m.emit(Event{Type: eventCommand, Actor: c.Actor, Message: string(c.Verb)}, f, func(s *state) error {
		before = s.clone()
		if c.Verb == Approve {
			if err := m.refuseApproval(c.Actor); err != nil {
				return err
			}
		}
		if why := m.refuseLocked(s, c.Verb); why != "" {
			return hint.Wrap(fmt.Errorf("%s: %w: %s", c.Verb, ErrNotNow, why), "%s", m.possibleLocked(s))
		}
		if c.Verb == Complete && !c.Force {
			return m.refuseCompleteLocked()
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.obey(c.Verb)
	if !c.Wait {
		return nil
	}
	return m.obeyed(ctx, c.Verb, before)
}

// obey wakes whatever the command concerns.
func (m *Migration) obey(v Verb) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch v {
	case Cancel:
		if m.mu.interrupt != nil {
			m.mu.interrupt(errInterrupted)
		}
	case Resume:
		m.mu.live.relink = m.mu.live.linkErr != nil
	case Resync:
		m.mu.live.relink = m.mu.live.linkErr != nil
		if l, ok := m.mu.live.link.(Recopier); ok {
			l.Wake()
		}
	case ResumeVerify:
		if m.mu.goOn != nil {
			close(m.mu.goOn)
			m.mu.goOn = nil
		}
	case Approve, Pause, Promote, Rollback, Complete, Routed, Slow, Unslow, PauseVerify:
	}
	m.changedLocked()
}

// refuseLocked says why a verb does not fit now, or "".
func (m *Migration) refuseLocked(s *state, v Verb) string {
	switch {
	case s.phase.Final():
		return "the migration is " + string(s.phase)
	case s.wish == Cancel || s.wish == Complete:
		return string(s.wish) + " is under way"
	}
	switching := s.phase == Promoting || s.phase == RollingBack
	target := s.phase == Promoted || s.phase == RollingBack || s.phase == Failed && ownerIn(s.failedIn) == Target
	switch v {
	case Approve:
		if switching || target || s.phase == Failed {
			return "no gate waits for an approval in phase " + string(s.phase)
		}
	case Pause:
		if switching || s.phase == Failed {
			return "a migration cannot pause in phase " + string(s.phase)
		}
		if s.paused {
			return "it is paused already"
		}
	case Resume:
		if !s.paused && s.phase != Failed && s.parked == "" && m.mu.live.linkErr == nil {
			return "it is neither paused nor failed"
		}
	case Promote:
		return m.refusePromoteLocked(s, switching || target)
	case Rollback:
		return m.refuseRollbackLocked(s)
	case Complete:
		if s.phase != Promoted && (s.phase != Failed || s.failedIn != Promoted) {
			return "the target does not own the data"
		}
		if s.wish == Rollback {
			return "it is rolling back"
		}
	case Cancel:
		if (target || s.owner == Target) && !s.bare {
			return "the target owns the data"
		}
		if s.passing {
			return "the point of no return is being passed"
		}
	case Resync:
		return m.refuseResyncLocked(s, switching)
	case Routed:
		return m.refuseRoutedLocked(s)
	case Slow:
		if s.throttle != nil {
			return "it is throttled already, by " + s.throttle.By
		}
	case Unslow:
		if s.throttle == nil {
			return "nobody throttles it"
		}
	case PauseVerify:
		if s.held != nil {
			return "comparisons are paused already, by " + s.held.By
		}
		if m.mu.comparisons == 0 {
			return "no comparison runs"
		}
	case ResumeVerify:
		if s.held == nil {
			return "no comparison is paused"
		}
	default:
		return "no such verb"
	}
	return ""
}

func (m *Migration) refuseResyncLocked(s *state, switching bool) string {
	p := s.phase
	if p == Failed {
		p = s.failedIn
	}
	from, flows := linkOf(p)
	_, can := m.linkFrom(from).(Recopier)
	switch {
	case switching:
		return "the owner changes just now"
	case p == Pending || p == Preparing:
		return "nothing was copied yet"
	case p == Copying:
		return "the first copy is under way"
	case s.wish != "":
		return string(s.wish) + " is under way"
	case !flows || !can:
		return "no link copies tables in phase " + string(s.phase)
	}
	return ""
}

func (m *Migration) refusePromoteLocked(s *state, late bool) string {
	switch {
	case late:
		return "phase " + string(s.phase)
	case s.phase == Failed:
		return "it failed"
	case s.paused:
		return "it is paused"
	case m.mu.live.waitingFor == GateApproval:
		return "it waits for an approval"
	case s.goOn && s.parked == "" && s.undone == 0:
		return "it goes on already"
	}
	return ""
}

func (m *Migration) refuseRollbackLocked(s *state) string {
	switch {
	case s.phase == RollingBack || s.wish == Rollback:
		return "it is rolling back already"
	case s.phase != Promoted:
		return "the target does not own the data"
	case len(m.lossy()) > 0:
		return "it would lose data: " + strings.Join(m.lossy(), "; ")
	case s.paused:
		return "it is paused"
	case m.mu.live.linkErr != nil:
		return "the reverse link stopped: " + m.mu.live.linkErr.Error()
	}
	return ""
}

// possibleLocked is the hint of a refusal: what would not be refused.
func (m *Migration) possibleLocked(s *state) string {
	var can []string
	for _, v := range []Verb{Approve, Pause, Resume, Promote, Rollback, Complete, Cancel, Resync, Routed, Slow, Unslow, PauseVerify, ResumeVerify} {
		if m.refuseLocked(s, v) == "" {
			can = append(can, string(v))
		}
	}
	if len(can) == 0 {
		return fmt.Sprintf("nothing can be asked of it in phase %s; ficus status %s shows more", s.phase, m.cfg.Name)
	}
	return fmt.Sprintf("in phase %s these are possible: %s", s.phase, strings.Join(can, ", "))
}

// obeyed waits until a command has done its work.
func (m *Migration) obeyed(ctx context.Context, v Verb, before state) error {
	switch v {
	case Promote:
		return m.until(ctx, func(s *state, l *live) (bool, error) {
			return s.phase == Promoted, m.stoppedLocked(s, l)
		})
	case Rollback:
		return m.until(ctx, func(s *state, l *live) (bool, error) {
			if s.phase == Promoted && s.wish == "" {
				return false, s.failure()
			}
			return s.phase == RolledBack, m.stoppedLocked(s, l)
		})
	case Complete, Cancel:
		return m.until(ctx, func(s *state, _ *live) (bool, error) {
			if s.phase == Failed && before.phase != Failed {
				return false, s.failure()
			}
			return s.phase.Final(), nil
		})
	case Pause:
		return m.until(ctx, func(s *state, l *live) (bool, error) {
			return !s.paused || l.resting && l.waitingFor == string(Resume), nil
		})
	case Resync:
		number := before.seq + 1 // of its record
		return m.until(ctx, func(s *state, l *live) (bool, error) {
			if !slices.ContainsFunc(s.asked, func(a Ask) bool { return a.Number == number }) {
				return true, nil
			}
			if s.phase == Promoted && l.linkErr != nil && !l.relink {
				return false, l.linkErr
			}
			if before.phase == Failed && s.phaseSince.Equal(before.phaseSince) { // it has yet to wake up
				return false, nil
			}
			return false, m.stoppedLocked(s, l)
		})
	case Approve, Resume, Routed, Slow, Unslow, PauseVerify, ResumeVerify:
	}
	return nil
}

// Reached returns once the migration has come to a phase, or beyond it on the way to completed,
// and rests or goes on there. It returns an error when it cannot get there without a person:
// failed, cancelled, or waiting for one after an error; waiting for an approval is no error.
func (m *Migration) Reached(ctx context.Context, p Phase) error {
	return m.until(ctx, func(s *state, l *live) (bool, error) {
		if s.phase == p {
			stop := p == m.cfg.Settings.Until || p == RolledBack || p == Promoted
			return !stop || l.resting || !m.mu.running, m.stoppedLocked(s, l)
		}
		if passed(s.phase, p) {
			return true, nil
		}
		return false, m.stoppedLocked(s, l)
	})
}

// passed reports whether a phase lies beyond another on the straight way.
func passed(now, p Phase) bool {
	way := []Phase{Pending, Preparing, Copying, CatchingUp, Following, Verifying, ReadsSwitched, Promoting, Promoted, Completed}
	i, j := slices.Index(way, now), slices.Index(way, p)
	return i >= 0 && j >= 0 && i > j
}

// stoppedLocked returns why the migration waits for a person, other than for an approval.
func (m *Migration) stoppedLocked(s *state, l *live) error {
	switch {
	case s.phase == Failed && m.mu.ran && !m.mu.running, s.parked != "" && l.resting:
		return s.failure()
	case s.phase == Cancelled:
		return errors.New("the migration was cancelled")
	case s.phase == Completed:
		return errors.New("the migration is completed")
	}
	return nil
}

// failure is the error that a state shows, or what it waits for after none.
func (s *state) failure() error {
	return hint.Wrap(errors.New(cmp.Or(s.err, "it waits for "+s.parked)), "%s", s.hint)
}

// until waits for a condition, called with mu held.
func (m *Migration) until(ctx context.Context, cond func(*state, *live) (bool, error)) error {
	for {
		m.mu.Lock()
		ok, err := cond(&m.mu.state, &m.mu.live)
		changed := m.mu.changed
		m.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}
