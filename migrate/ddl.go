package migrate

import (
	"fmt"
	"slices"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// An Ask is a request to copy tables anew, of which the link has not said yet that it is done.
type Ask struct {
	Number int64    // of its record
	Tables []string // as the link's origin calls them
	By     string
}

// What the link's driver tells of the source's DDL: it happens beside the steps.

// Tell journals something that happened beside the steps and that an operator may want to know.
func (m *Migration) Tell(message string) {
	m.note(Event{Type: eventDDL, Message: message}, fact{})
}

// Notice journals something that stands against the migration, though not in its way.
func (m *Migration) Notice(f Finding) {
	m.note(Event{Type: eventFinding, Message: string(f.Severity) + ": " + f.Check + ": " + f.Message}, fact{Finding: &f})
}

// Unprove journals that what was proved no longer holds, and why: before the next promotion
// everything is compared again.
func (m *Migration) Unprove(why string) {
	if s := m.snapshot(); s.proof == nil && s.proven.Time.IsZero() {
		return
	}
	m.note(Event{Type: eventProof, Message: "earlier proofs do not count: " + why}, fact{})
}

// Asked returns the requests that are not answered, the oldest first.
func (m *Migration) Asked() []Ask {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.mu.state.asked)
}

// Answered journals that the requests up to a number are fulfilled.
func (m *Migration) Answered(number int64) {
	m.note(Event{Type: eventDDL, Message: "what was asked to be copied anew is copied"}, fact{Answered: number})
}

// Recopying shows how far a table is that is being copied anew beside the steps, and why; nil when none
// is any more.
func (m *Migration) Recopying(why string, t *TableProgress) {
	m.update(func(l *live) {
		if t == nil {
			l.recopy = nil
			return
		}
		next := Recopy{Why: why}
		if l.recopy != nil && l.recopy.Why == why {
			next.Tables = slices.DeleteFunc(slices.Clone(l.recopy.Tables), func(o TableProgress) bool { return o.Table == t.Table })
		}
		next.Tables = append(next.Tables, *t)
		l.recopy = &next
	})
	if t != nil {
		m.tell(Event{Type: eventProgress, Message: "copy " + t.Table, Data: map[string]any{"table": *t}})
	}
}

// tablesOf gives tables the names that the link which runs in this phase knows them by.
func (m *Migration) tablesOf(names []string) ([]string, error) {
	if len(names) == 0 {
		return nil, hint.Wrap(fmt.Errorf("resync: %w: of no table", ErrNotNow), "name the tables to be copied anew: ficus resync %s TABLE...", m.cfg.Name)
	}
	s := m.snapshot()
	p := s.phase
	if p == Failed {
		p = s.failedIn
	}
	from, _ := linkOf(p)
	l, ok := m.linkFrom(from).(Recopier)
	if !ok { // the phase says why not
		return names, nil
	}
	known, err := l.Known(names)
	if err != nil {
		return nil, fmt.Errorf("resync: %w: %w", ErrNotNow, err)
	}
	return known, nil
}

// recopyLocked is what is being copied anew, or waits for it.
func (m *Migration) recopyLocked() *Recopy {
	if r := m.mu.live.recopy; r != nil {
		return &Recopy{Why: r.Why, Tables: slices.Clone(r.Tables)}
	}
	if len(m.mu.state.asked) == 0 {
		return nil
	}
	a := m.mu.state.asked[0]
	r := &Recopy{Why: "asked for by " + a.By}
	for _, t := range a.Tables {
		r.Tables = append(r.Tables, TableProgress{Table: t, TotalRows: -1})
	}
	return r
}
