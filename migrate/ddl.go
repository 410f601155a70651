package migrate

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
