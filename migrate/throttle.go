package migrate

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ficus-migrate/ficus/change"
)

// The copy, and the link that follows, stand back while something else needs the databases more: each
// for a reason with a name. Nothing is lost by it, as changes go on being stored. A promotion is
// never throttled, nor is a comparison of everything: clients would wait for it.

// ThrottleOperator is the reason's name when a person said so.
const ThrottleOperator = "operator"

// A Throttle is why the copy or the link stands still.
type Throttle struct {
	Name   string    `json:"name"`   // operator, replica-lag, load, or the name of a query
	Reason string    `json:"reason"` // "standby db2 replays 12s behind, at most 5s"
	Since  time.Time `json:"since"`
}

// A Brake is a condition under which copy and link stand still. The packages in this folder and
// playbooks add their own.
type Brake interface {
	Name() string
	// Look returns why to stand still now, "" to go on. An error lets them go on, and is shown once.
	Look(ctx context.Context) (reason string, err error)
}

// A Stopper is a Link that can stand still at the end of a transaction while it goes on receiving.
type Stopper interface {
	Link

	// StopAt with position 0 stops applying where it stands, until release is called.
	StopAt(ctx context.Context, lsn change.LSN) (release func(), err error)
}

// throttled reports whether a phase may be made to stand back: link says by its link.
func throttled(p Phase) (yes, link bool) {
	switch p {
	case Copying:
		return true, false
	case CatchingUp, Following, ReadsSwitched, Promoted, RolledBack:
		return true, true
	case Pending, Preparing, Verifying, Promoting, RollingBack, Completed, Cancelled, Failed:
	}
	return false, false
}

// Pace returns at once, or while the migration is throttled once it no longer is. A copy asks before
// each chunk.
func (m *Migration) Pace(ctx context.Context) error {
	return m.until(ctx, func(_ *state, l *live) (bool, error) { return l.throttle == nil, nil })
}

// keepThrottle looks at the brakes, and holds the link while one of them is on, until ctx is done.
func (m *Migration) keepThrottle(ctx context.Context) {
	tick := time.NewTicker(m.cfg.Settings.Sample)
	defer tick.Stop()
	var h linkHold
	defer h.release()
	failed := map[string]bool{}
	for {
		m.look(ctx, failed)
		m.mu.Lock()
		l, on := m.mu.live.link, m.mu.live.throttle != nil
		_, links := throttled(m.mu.state.phase)
		m.mu.Unlock()
		if on && links {
			h.stop(ctx, l)
		} else {
			h.release()
		}
		m.mu.Lock()
		if holds := h.link != nil; m.mu.live.held != holds {
			m.mu.live.held = holds
			m.changedLocked()
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-m.rethink: // a promotion must not wait for the next tick
		}
	}
}

// look decides whether to stand back, and tells when that changes.
func (m *Migration) look(ctx context.Context, failed map[string]bool) {
	m.mu.Lock()
	idle := len(m.cfg.Brakes) == 0 && m.mu.state.throttle == nil && m.mu.live.throttle == nil
	m.mu.Unlock()
	if idle {
		return
	}
	s := m.snapshot()
	var now *Throttle
	if may, _ := throttled(s.phase); may && !s.paused {
		now = m.brake(ctx, &s, failed)
	}
	m.mu.Lock()
	was := m.mu.live.throttle
	if was != nil && now != nil && was.Name == now.Name {
		now.Since = was.Since
	}
	m.mu.live.throttle = now
	if (was == nil) != (now == nil) || was != nil && *was != *now {
		m.changedLocked()
	}
	m.mu.Unlock()
	switch {
	case now != nil && (was == nil || was.Name != now.Name):
		m.note(Event{Type: eventThrottle, Message: "throttled, " + now.Name + ": " + now.Reason}, fact{})
	case now == nil && was != nil:
		m.note(Event{Type: eventThrottle, Message: "goes on, no longer throttled by " + was.Name}, fact{})
	}
}

// brake returns the first reason to stand back.
func (m *Migration) brake(ctx context.Context, s *state, failed map[string]bool) *Throttle {
	if h := s.throttle; h != nil {
		return &Throttle{Name: ThrottleOperator, Reason: "by " + h.By, Since: h.Since}
	}
	for _, b := range m.cfg.Brakes {
		once, cancel := context.WithTimeout(ctx, max(5*time.Second, m.cfg.Settings.Sample))
		why, err := b.Look(once)
		cancel()
		if err != nil && !failed[b.Name()] && ctx.Err() == nil {
			m.note(Event{Type: eventThrottle, Message: fmt.Sprintf("warning: %s cannot be looked at, and throttles nothing: %v", b.Name(), err)}, fact{})
		}
		failed[b.Name()] = err != nil
		if err == nil && why != "" {
			return &Throttle{Name: b.Name(), Reason: why, Since: time.Now().UTC()}
		}
	}
	return nil
}

// A linkHold is a link that was told to stand still.
type linkHold struct {
	link Link
	free func()
}

func (h *linkHold) stop(ctx context.Context, l Link) {
	s, ok := l.(Stopper)
	if h.link == l || !ok {
		return
	}
	h.release()
	once, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	free, err := s.StopAt(once, 0)
	if err != nil {
		return // it is not running yet, or not any more: the next look tries again
	}
	h.link, h.free = l, free
}

func (h *linkHold) release() {
	if h.free != nil {
		h.free()
	}
	h.link, h.free = nil, nil
}

// An ETA says when the present phase may be done. It is a range, as the rate of the last minute was
// one, or it is not known and says why.
type ETA struct {
	Of      string        `json:"of"` // copy, catch-up
	Low     time.Duration `json:"low_ns,omitempty"`
	High    time.Duration `json:"high_ns,omitempty"`
	Unknown string        `json:"unknown,omitempty"`
}

const (
	etaKeep = time.Minute      // how far back rates are looked at
	etaPart = 10 * time.Second // over which one rate is taken
)

// A mark is how much was left at one moment.
type mark struct {
	at   time.Time
	left int64
}

// eta makes a range of what is left: at the best and at the worst rate of the last minute.
func eta(of string, marks []mark, still string) ETA {
	e := ETA{Of: of}
	if len(marks) == 0 {
		e.Unknown = "not measured yet"
		return e
	}
	var rates []float64
	from := marks[0]
	for _, m := range marks[1:] {
		if took := m.at.Sub(from.at); took >= etaPart {
			rates = append(rates, float64(from.left-m.left)/took.Seconds())
			from = m
		}
	}
	left := marks[len(marks)-1].left
	switch {
	case left <= 0:
	case len(rates) < 2:
		e.Unknown = "not measured for long enough"
	case slices.Min(rates) <= 0:
		e.Unknown = still
	default:
		e.Low = time.Duration(float64(left) / slices.Max(rates) * float64(time.Second))
		e.High = time.Duration(float64(left) / slices.Min(rates) * float64(time.Second))
	}
	return e
}

// markLocked remembers how much is left of the present phase.
func (m *Migration) markLocked(now time.Time) {
	l := &m.mu.live
	left, ok, _ := m.leftLocked()
	if !ok {
		l.marks = nil
		return
	}
	l.marks = append(l.marks, mark{now, left})
	l.marks = slices.DeleteFunc(l.marks, func(k mark) bool { return now.Sub(k.at) > etaKeep+etaPart })
}

// leftLocked is what is left to do: rows of a copy, bytes of lag.
func (m *Migration) leftLocked() (left int64, ok bool, why string) {
	l := &m.mu.live
	switch m.mu.state.phase {
	case Copying:
		if l.copied != nil || len(l.tables) == 0 || m.mu.state.copied != nil {
			return 0, false, ""
		}
		for _, t := range l.tables {
			if t.TotalRows < 0 && !t.Done {
				return 0, false, "nobody knows how many rows " + t.Table + " has: ANALYZE it"
			}
			if !t.Done {
				left += max(0, t.TotalRows-t.Rows)
			}
		}
		return left, true, ""
	case CatchingUp:
		if l.lag == nil {
			return 0, false, ""
		}
		return l.lag.Bytes, true, ""
	case Pending, Preparing, Following, Verifying, ReadsSwitched, Promoting, Promoted, RollingBack, RolledBack, Completed, Cancelled, Failed:
	}
	return 0, false, ""
}

// etaLocked is what Status shows; nil in phases that end when somebody wants them to.
func (m *Migration) etaLocked() *ETA {
	l := &m.mu.live
	of, still := "copy", "no row was copied for a while"
	switch m.mu.state.phase {
	case Copying:
	case CatchingUp:
		of, still = "catch-up", "the lag does not fall"
	case Pending, Preparing, Following, Verifying, ReadsSwitched, Promoting, Promoted, RollingBack, RolledBack, Completed, Cancelled, Failed:
		return nil
	}
	_, ok, why := m.leftLocked()
	switch {
	case l.throttle != nil:
		return &ETA{Of: of, Unknown: "throttled, " + l.throttle.Name + ": " + l.throttle.Reason}
	case m.mu.state.paused:
		return &ETA{Of: of, Unknown: "paused"}
	case why != "":
		return &ETA{Of: of, Unknown: why}
	case !ok:
		return nil
	}
	e := eta(of, l.marks, still)
	return &e
}
