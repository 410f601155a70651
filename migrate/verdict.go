package migrate

import (
	"fmt"
	"slices"
	"time"

	"github.com/ficus-migrate/ficus/internal/units"
)

// verdictLocked says whether going back would lose nothing, and how long the way back is kept.
func (m *Migration) verdictLocked() RollbackVerdict {
	s, l := &m.mu.state, &m.mu.live
	v := RollbackVerdict{Foreign: s.foreign}
	switch {
	case s.phase == Completed:
		v.Because = append(v.Because, "the migration is completed: the old database no longer follows")
	case s.owner != Target:
		v.Because = append(v.Because, "nothing to roll back: the source owns the data")
		for _, why := range m.lossy() {
			v.Because = append(v.Because, "a promotion could not be rolled back: "+why)
		}
	case len(m.lossy()) > 0:
		v.Because = slices.Clone(m.lossy())
	default:
		v.Because = m.behindLocked()
		if l.link != nil && l.linkFrom == Target && l.lag == nil && len(v.Because) == 0 {
			v.Because = append(v.Because, "the reverse link's lag is not measured yet")
		}
		if s.foreign > 0 {
			v.Because = append(v.Because, foreignText(s.foreign))
		}
		v.Until = m.windowLocked()
		if l.lag != nil && l.linkFrom == Target {
			v.Behind, v.Retained, v.Room = l.lag.Time, l.lag.Retained, l.lag.Room
		}
	}
	v.Safe = len(v.Because) == 0
	return v
}

// behindLocked says why the old database does not hold what the new owner has, give or take a moment.
func (m *Migration) behindLocked() []string {
	s, l := &m.mu.state, &m.mu.live
	switch {
	case l.linkErr != nil:
		return []string{"the reverse link stopped: " + l.linkErr.Error()}
	case s.paused:
		return []string{"paused: the reverse link does not run"}
	case m.recopyLocked() != nil:
		return []string{"tables of the old database are being copied anew"}
	case l.link == nil || l.linkFrom != Target:
		return []string{"the reverse link does not run"}
	case l.lag == nil:
		return nil
	case l.lag.Time > m.cfg.Settings.Budgets.Drain:
		return []string{fmt.Sprintf("the reverse link is %s behind, more than a rollback may take to drain", l.lag.Time.Round(time.Second))}
	case l.lag.Room == 0 && l.lag.Retained > 0:
		return []string{fmt.Sprintf("the new owner may give the reverse link's slot up at any moment: it keeps %s of WAL, all that it may", units.Bytes(l.lag.Retained))}
	}
	return nil
}

// windowLocked is when the migration completes by itself; zero while it does not.
func (m *Migration) windowLocked() time.Time {
	s := &m.mu.state
	if window := m.cfg.Settings.RollbackWindow; window > 0 && s.phase == Promoted {
		return s.phaseSince.Add(window)
	}
	return time.Time{}
}

func foreignText(n int64) string {
	return fmt.Sprintf("others wrote %d times to the old database, past its fence: see ficus events, then ficus verify", n)
}

// Foreign journals that somebody else wrote to the side that follows. What was proved no longer holds,
// and until everything was compared again no rollback counts as safe.
func (m *Migration) Foreign(what string) {
	m.note(Event{Type: eventLink, Message: "warning: " + what}, fact{Foreign: 1})
}
