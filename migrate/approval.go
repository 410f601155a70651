package migrate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// person is who stands behind an actor: over a token ("anna via ops") the token's name, which cannot be
// chosen by whoever uses it.
func person(actor string) string {
	if i := strings.LastIndex(actor, " via "); i >= 0 {
		return actor[i+len(" via "):]
	}
	return actor
}

// refuseApproval says why somebody's approval does not count.
func (m *Migration) refuseApproval(actor string) error {
	of := m.cfg.Settings.Approval.Of
	if len(of) == 0 || slices.Contains(of, person(actor)) {
		return nil
	}
	return hint.Wrap(fmt.Errorf("approve: %w: %q is not asked for an approval", ErrNotNow, person(actor)), "these are: %s", strings.Join(of, ", "))
}

// consents returns the approvals that count now.
func (m *Migration) consents(s *state) []consent {
	rule := m.cfg.Settings.Approval
	return slices.DeleteFunc(slices.Clone(s.approvals), func(c consent) bool {
		return rule.Valid > 0 && time.Since(c.at) >= rule.Valid || len(rule.Of) > 0 && !slices.Contains(rule.Of, c.by)
	})
}

func (m *Migration) approvalReading(Status) Reading {
	rule := m.cfg.Settings.Approval
	m.mu.Lock()
	given := m.consents(&m.mu.state)
	m.mu.Unlock()
	names := make([]string, len(given))
	for i, c := range given {
		names[i] = c.by
		if rule.Valid > 0 {
			names[i] += " until " + c.at.Add(rule.Valid).Format(time.RFC3339)
		}
	}
	r := Reading{Wanted: "ficus approve " + m.cfg.Name, Measured: strings.Join(names, ", "), by: strings.Join(names, ", ")}
	if rule.Need > 1 || len(rule.Of) > 0 {
		r.Wanted = fmt.Sprintf("%d of %s: %s", rule.Need, strings.Join(rule.Of, ", "), r.Wanted)
		if len(rule.Of) == 0 {
			r.Wanted = fmt.Sprintf("%d people: ficus approve %s", rule.Need, m.cfg.Name)
		}
		r.Measured = strings.TrimSuffix(fmt.Sprintf("%d of %d: %s", len(given), rule.Need, r.Measured), ": ")
	}
	switch {
	case len(given) >= rule.Need:
		r.Open = true
	case m.cfg.Settings.AutoApprove:
		r.Open, r.Measured, r.by = true, "approved by the settings", "the settings"
	case len(given) == 0:
		r.Measured = "nobody approved yet"
	}
	return r
}
