package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/units"
)

// Names of the built-in gates.
const (
	GateLag      = "lag"
	GateProof    = "proof"
	GateApproval = "approval"
	GateHook     = "hook" // a hook has refused the next phase
)

// A Gate is a condition that must hold before a phase begins. Playbooks add their own.
type Gate interface {
	Name() string
	// Before is the phase it guards: Following, Verifying or Promoting.
	Before() Phase
	// Measure is called about once a second while the migration waits there. An error keeps the
	// gate closed and is shown.
	Measure(ctx context.Context, s Status) (Reading, error)
}

// A Reading is what a gate measured.
type Reading struct {
	Open     bool
	Measured string // "lag 12 MB"
	Wanted   string // "at most 1 MB"

	by string // approval: who gave it
}

// errTick ends one round of waiting at a gate.
var errTick = errors.New("time to measure again")

// builtin is a gate of the engine's own.
type builtin struct {
	name    string
	before  Phase
	measure func(Status) Reading
}

func (g builtin) Name() string  { return g.name }
func (g builtin) Before() Phase { return g.before }

func (g builtin) Measure(_ context.Context, s Status) (Reading, error) { return g.measure(s), nil }

// gatesBefore lists the gates of a phase; the one that bothers a person comes last.
func (m *Migration) gatesBefore(p Phase) []Gate {
	var gates []Gate
	if p == Following || p == Promoting {
		gates = append(gates, builtin{GateLag, p, m.lagReading})
	}
	if p == Promoting {
		gates = append(gates, builtin{GateProof, p, proofReading})
	}
	for _, g := range m.cfg.Gates {
		if g.Before() == p {
			gates = append(gates, g)
		}
	}
	if p == Promoting {
		gates = append(gates, builtin{GateApproval, p, m.approvalReading})
	}
	return gates
}

// waitGates returns when every gate of a phase was open in one round. A proof that no longer holds is
// not waited for: it has to be made again, in another phase.
func (m *Migration) waitGates(ctx context.Context, p Phase) error {
	defer m.update(func(l *live) { l.waitingFor, l.resting = "", false })
	for {
		if p == Promoting && m.snapshot().proven.Time.IsZero() {
			return errInterrupted
		}
		closed, err := m.measureGates(ctx, p)
		if err != nil || closed == "" {
			return err
		}
		m.update(func(l *live) { l.waitingFor, l.resting = closed, true })
		round, cancel := context.WithTimeoutCause(ctx, m.cfg.Settings.Sample, errTick)
		err = m.restUnlessInterrupted(round, func(s *state) bool {
			return closed == GateApproval && len(m.consents(s)) >= m.cfg.Settings.Approval.Need
		})
		cancel()
		if err != nil && !errors.Is(err, errTick) {
			return err
		}
	}
}

// measureGates measures all gates of a phase and returns the first that is closed, or "".
func (m *Migration) measureGates(ctx context.Context, p Phase) (closed string, err error) {
	for _, g := range m.gatesBefore(p) {
		r, err := g.Measure(ctx, m.Status())
		if err != nil {
			r.Open, r.Measured = false, err.Error()
		}
		if err := m.showGate(g.Name(), p, r); err != nil {
			return "", err
		}
		if !r.Open && closed == "" {
			closed = g.Name()
		}
	}
	return closed, nil
}

// showGate updates what is shown of a gate, and journals when it opened or closed.
func (m *Migration) showGate(name string, p Phase, r Reading) error {
	g := GateState{Name: name, Phase: p, Manual: name == GateApproval, Open: r.Open, Measured: r.Measured, Wanted: r.Wanted, Since: time.Now().UTC()}
	moved := true
	m.update(func(l *live) {
		if name == GateApproval && r.Open {
			g.By = r.by
		}
		i := slices.IndexFunc(l.gates, func(o GateState) bool { return o.Name == name && o.Phase == p })
		if i < 0 {
			l.gates = append(l.gates, g)
			return
		}
		if old := l.gates[i]; old.Open == g.Open {
			g.Since, moved = old.Since, false
		}
		l.gates[i] = g
	})
	if !moved {
		return nil
	}
	word := "closed"
	if r.Open {
		word = "open"
	}
	message := fmt.Sprintf("gate %s is %s: %s, wanted %s", name, word, r.Measured, r.Wanted)
	return m.emit(Event{Type: eventGate, Message: message}, fact{Gate: name, Open: r.Open}, nil)
}

// lagReading opens the gate when enough measurements in a row were within the limit.
func (m *Migration) lagReading(Status) Reading {
	set := m.cfg.Settings
	r := Reading{Wanted: fmt.Sprintf("at most %s and %s, %d times in a row", units.Bytes(set.LagBytes), set.LagTime, set.LagSamples)}
	m.mu.Lock()
	samples := m.mu.live.samples
	m.mu.Unlock()
	if len(samples) == 0 {
		r.Measured = "not measured yet"
		return r
	}
	r.Measured = lagText(samples[len(samples)-1])
	r.Open = len(samples) >= set.LagSamples && !slices.ContainsFunc(samples, func(l Lag) bool { return !set.within(l) })
	return r
}

// within reports whether the lag gate lets a measurement pass.
func (s Settings) within(l Lag) bool { return l.Bytes <= s.LagBytes && l.Time <= s.LagTime }

func lagText(l Lag) string {
	return fmt.Sprintf("lag %s, %s", units.Bytes(l.Bytes), l.Time.Round(time.Millisecond))
}

// proofReading wants a proof without differences. Its age is dealt with at the promotion, which
// compares again when it must.
func proofReading(s Status) Reading {
	r := Reading{Wanted: "0 differences", Measured: "no proof yet"}
	if s.Proof != nil {
		r.Measured = fmt.Sprintf("%d differences in %d rows at %s", s.Proof.Differences, s.Proof.Rows, s.Proof.Time.Format(time.RFC3339))
		r.Open = s.Proof.Differences == 0
	}
	return r
}

// vetted asks whether a phase may begin, until it may. After a refusal a person says when to ask again.
func (m *Migration) vetted(ctx context.Context, next Phase) error {
	for {
		if s := m.snapshot(); s.parked == GateHook {
			if err := m.await(ctx, GateHook, func(s *state) bool { return s.parked == "" }); err != nil {
				return err
			}
		}
		asked, done, err := m.interruptible(ctx)
		if err != nil {
			return err
		}
		err = m.cfg.Before(asked, m.Status(), next)
		cause := context.Cause(asked)
		done()
		if err == nil || cause != nil {
			return cause // a command, a link that died, or the end of the process
		}
		if err := m.emit(Event{Type: eventError, Message: err.Error()}, fact{Error: err.Error(), Hint: hint.Of(err), Park: GateHook}, nil); err != nil {
			return err
		}
	}
}
