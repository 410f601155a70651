package migrate

import (
	"slices"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// live is what is shown and does not outlive the process.
type live struct {
	waitingFor string
	resting    bool  // waits, with nothing to do
	trouble    error // being retried
	tables     []TableProgress
	build      *Build
	checked    *Progress
	recopy     *Recopy
	copied     *Copied // of the load that just ended, until its step is journaled
	sequences  int     // moved by the step that runs
	blockers   []Blocker
	gates      []GateState

	link     Link // that runs now
	linkFrom Side
	linkErr  error // why the last one stopped by itself
	relink   bool  // start it again
	lag      *Lag
	throttle *Throttle
	held     bool   // the link stands still because of it
	marks    []mark // how much was left of the phase, over the last minute
	samples  []Lag  // the newest, in order
}

// forget drops what belongs to one phase.
func (l *live) forget() {
	l.waitingFor, l.resting, l.trouble, l.build, l.checked, l.blockers, l.marks = "", false, nil, nil, nil, nil, nil
}

// Progress counts done of total, in whatever unit is being worked through.
type Progress struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`

	Rate int64         `json:"rate,omitempty"`    // per second
	Left time.Duration `json:"left_ns,omitempty"` // at this rate; 0 while it is not known
}

// Status returns all there is to show, at this moment. It shares nothing with the Migration.
func (m *Migration) Status() Status {
	var warnings []string
	traffic := m.traffic()
	if m.cfg.Warnings != nil {
		warnings = m.cfg.Warnings()
	}
	if traffic != nil && traffic.Fault != "" {
		warnings = append(slices.Clone(warnings), traffic.Fault)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, l := m.mu.state.clone(), &m.mu.live
	st := Status{
		Name: m.cfg.Name, Playbook: m.cfg.Playbook, Source: m.cfg.SourceDSN, Target: m.cfg.TargetDSN,
		Seq: s.seq, Phase: s.phase, Step: s.step, WaitingFor: l.waitingFor, Paused: s.paused, Running: m.mu.running,
		Error: s.err, Hint: s.hint, Warnings: warnings, StartedAt: s.startedAt, PhaseSince: s.phaseSince,
		Owner: s.owner, Epoch: s.epoch,
		Tables: slices.Clone(l.tables), Copied: s.copied, Build: copied(l.build), Checked: copied(l.checked), ComparisonPaused: copied(s.held), Lag: copied(l.lag),
		Gates: slices.Clone(l.gates), Proof: s.proof, FenceProof: s.fenceProof, Blockers: slices.Clone(l.blockers),
		ReadsOn: s.reads, Promotions: s.promotions, Rehearsal: s.rehearsal, Rehearses: m.rehearsesLocked(), Phases: s.phases,
	}
	if err := cmpErr(l.trouble, l.linkErr); err != nil {
		st.Error, st.Hint = err.Error(), hint.Of(err)
	}
	st.Asks, _ = m.asksLocked(&s)
	st.Traffic = traffic
	for _, row := range m.of(s.phase) {
		if s.done[row.Name] {
			st.StepsDone = append(st.StepsDone, row.Name)
		}
	}
	st.Throttle, st.ETA = copied(l.throttle), m.etaLocked()
	st.Recopy = m.recopyLocked()
	st.Rollback, st.Unsettled, st.Archived = m.verdictLocked(), m.unsettledLocked(), slices.Clone(s.archived)
	return st
}

// tell announces what is not worth a journal record. Such an event has no sequence number.
func (m *Migration) tell(e Event) {
	m.journal.Lock() // keeps the callbacks one at a time
	defer m.journal.Unlock()
	m.mu.Lock()
	e.Time, e.Phase = time.Now().UTC(), m.mu.state.phase
	m.passLocked(e)
	m.mu.Unlock()
	m.cfg.Events(e)
}

func copied[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}

func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
