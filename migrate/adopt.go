package migrate

import "fmt"

// Adopt makes a migration that has no journal, because the data directory was lost, go on in a phase
// while the source owns the data: catching-up, or rolled-back where ownership has been to the target and
// came back. What comes later, proofs and approvals included, is done again. It is for a migration
// whose databases show that it was copied; whoever calls it has made
// the forward link prepared. A migration that has a journal is left as it is.
func (m *Migration) Adopt(p Phase, why string) error {
	if m.snapshot().phase != Pending {
		return nil
	}
	if err := m.enter(p, fact{}, why); err != nil {
		return fmt.Errorf("migration %s: %w", m.cfg.Name, err)
	}
	return nil
}

// Alarm journals a warning of a link when it comes up; Config.Warnings shows it for as long as it holds.
func (m *Migration) Alarm(warning string) {
	m.note(Event{Type: eventLink, Message: "warning: " + warning}, fact{})
}
