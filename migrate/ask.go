package migrate

// asksLocked says what a person has to do because no router leads the clients, "" for nothing. owed
// reports that it is to be done now, and that "routed" answers it.
func (m *Migration) asksLocked(s *state) (text string, owed bool) {
	asker, ok := m.cfg.Router.(Asker)
	if !ok || s.phase.Final() {
		return "", false
	}
	if n := len(s.promotions); n > 0 && s.promotions[n-1].Epoch > s.routed {
		return asker.After(s.owner) + "; then: ficus routed " + m.cfg.Name, true
	}
	if m.mu.live.waitingFor == GateApproval {
		return asker.Ahead(s.owner), false
	}
	return "", false
}

// refuseRoutedLocked says why "routed" does not fit now, or "".
func (m *Migration) refuseRoutedLocked(s *state) string {
	if _, owed := m.asksLocked(s); !owed {
		return "nobody was asked to move clients"
	}
	return ""
}

// askRouted tells what a promotion leaves for a person to do.
func (m *Migration) askRouted() {
	m.mu.Lock()
	text, owed := m.asksLocked(&m.mu.state)
	m.mu.Unlock()
	if owed {
		m.note(Event{Type: eventStep, Message: text}, fact{})
	}
}
