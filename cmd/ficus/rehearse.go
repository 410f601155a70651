package main

import (
	"fmt"

	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
)

// rehearsal prints what a promotion would have cost.
func (a *app) rehearsal(screen *console, s migrate.Status, r migrate.Rehearsal) {
	if a.json {
		steps := map[string]any{}
		for _, st := range r.Steps {
			steps[st.Step] = milliseconds(st.Took)
		}
		a.line("result", map[string]any{
			"name": s.Name, "phase": s.Phase, "owner": s.Owner, "epoch": s.Epoch, "rehearsed": true, "blackout_ms": milliseconds(r.Blackout), "steps_ms": steps,
			"stall_ms":          map[string]any{"p50": milliseconds(r.Stall.P50), "p99": milliseconds(r.Stall.P99), "max": milliseconds(r.Stall.Max), "clients": r.Stall.Clients},
			"proof_differences": r.Proof.Differences, "proof_keys": r.Proof.Keys,
		}, "")
		return
	}
	screen.say(fmt.Sprintf("%s: rehearsed, the %s owns the data as before", s.Name, s.Owner))
	screen.say(fmt.Sprintf("  a promotion would have stopped writes for %s; %d clients waited, p99 %s, longest %s",
		units.Duration(r.Blackout), r.Stall.Clients, units.Duration(r.Stall.P99), units.Duration(r.Stall.Max)))
	for _, st := range r.Steps {
		screen.say(fmt.Sprintf("  %-14s %s of %s", st.Step, units.Duration(st.Took), units.Duration(st.Budget)))
	}
	screen.say("  for the real thing: ficus promote " + s.Name)
}
