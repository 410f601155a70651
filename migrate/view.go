package migrate

import (
	"fmt"
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
	samples  []Lag // the newest, in order
}

// forget drops what belongs to one phase.
func (l *live) forget() {
	l.waitingFor, l.resting, l.trouble, l.build, l.checked, l.blockers = "", false, nil, nil, nil, nil
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
		ReadsOn: s.reads, Promotions: s.promotions, Phases: s.phases,
	}
	if err := cmpErr(l.trouble, l.linkErr); err != nil {
		st.Error, st.Hint = err.Error(), hint.Of(err)
	}
	st.Asks, _ = m.asksLocked(&s)
	st.Traffic = traffic
	st.Recopy = m.recopyLocked()
	st.Rollback = m.verdictLocked()
	return st
}

// verdictLocked says whether going back would lose nothing.
func (m *Migration) verdictLocked() RollbackVerdict {
	s, l := &m.mu.state, &m.mu.live
	var because []string
	switch {
	case s.phase == Completed:
		because = append(because, "the migration is completed: the old database no longer follows")
	case s.owner != Target:
		because = append(because, "nothing to roll back: the source owns the data")
	case len(m.lossy()) > 0:
		because = slices.Clone(m.lossy())
	case l.linkErr != nil:
		because = append(because, "the reverse link stopped: "+l.linkErr.Error())
	case s.paused:
		because = append(because, "paused: the reverse link does not run")
	case m.recopyLocked() != nil:
		because = append(because, "tables of the old database are being copied anew")
	case l.link == nil || l.linkFrom != Target:
		because = append(because, "the reverse link does not run")
	case l.lag == nil:
		because = append(because, "the reverse link's lag is not measured yet")
	case l.lag.Time > m.cfg.Settings.Budgets.Drain:
		because = append(because, fmt.Sprintf("the reverse link is %s behind, more than a rollback may take to drain", l.lag.Time.Round(time.Second)))
	}
	return RollbackVerdict{Safe: len(because) == 0, Because: because}
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
