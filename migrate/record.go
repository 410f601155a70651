package migrate

// The journal holds one JSON object per record:
//
//	{"seq":7,"time":…,"type":"step","phase":"copying","message":"load: done","data":{"step":"load","state":"done",…}}
//
// which is the Event as surfaces show it; its data is a fact, from which the state is folded.
// Records are only appended. Passing events (progress) are not in it.

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"
)

// Event types.
const (
	eventPhase     = "phase"
	eventStep      = "step"
	eventGate      = "gate"
	eventProgress  = "progress"
	eventProof     = "proof"
	eventPromotion = "promotion"
	eventRehearsal = "rehearsal"
	eventCommand   = "command"
	eventError     = "error"
	eventOwner     = "owner"
	eventFinding   = "finding"
	eventLink      = "link"
	eventDDL       = "ddl"
	eventThrottle  = "throttle"
)

// stepState is what a record says of a step.
type stepState string

const (
	stepStarted stepState = "started"
	stepDone    stepState = "done"
	stepFailed  stepState = "failed"
	stepUndone  stepState = "undone"
)

// A record is an event with what the fold needs; a fact replaces the event's Data.
type record struct {
	Event

	Fact fact `json:"data,omitzero"`
}

// A fact is the part of an event that changes the state. Unused fields stay empty.
type fact struct {
	Step  string        `json:"step,omitempty"`
	State stepState     `json:"state,omitempty"`
	Took  time.Duration `json:"took_ns,omitempty"`

	FailedIn Phase  `json:"failed_in,omitempty"` // where a resumed migration goes on
	Bare     bool   `json:"bare,omitempty"`      // schema ficus is gone from a database
	Error    string `json:"error,omitempty"`
	Hint     string `json:"hint,omitempty"`
	Undone   bool   `json:"undone,omitempty"` // a promotion took itself back
	Park     string `json:"park,omitempty"`   // what a person must do before it is tried again

	Verb Verb   `json:"verb,omitempty"`
	Gate string `json:"gate,omitempty"`
	Open bool   `json:"open,omitempty"`

	Tables   []string `json:"tables,omitempty"`   // resync: which
	Answered int64    `json:"answered,omitempty"` // the resyncs up to that record are done

	Owner     Side       `json:"owner,omitempty"`
	Epoch     int64      `json:"epoch,omitempty"`
	Attempt   int64      `json:"attempt,omitempty"` // epoch that a promotion tries
	Reads     *int       `json:"reads_percent,omitempty"`
	Sequences int        `json:"sequences,omitempty"`
	Copied    *Copied    `json:"copied,omitempty"`
	Proof     *Proof     `json:"proof,omitempty"`
	Fenced    bool       `json:"fenced,omitempty"` // the proof was made while nobody could write
	Promotion *Promotion `json:"promotion,omitempty"`
	Rehearsal *Rehearsal `json:"rehearsal,omitempty"`
	Finding   *Finding   `json:"finding,omitempty"`
	Archived  []string   `json:"archived,omitempty"` // schemas of the old tables
	Foreign   int64      `json:"foreign,omitempty"`  // writes of others to the side that follows
}

// state is all that survives a restart: the fold of the journal's records.
type state struct {
	seq        int64
	phase      Phase
	phaseSince time.Time
	startedAt  time.Time
	failedIn   Phase
	bare       bool            // it failed because schema ficus is gone from a database
	step       string          // started and neither done nor failed
	done       map[string]bool // steps of the present phase
	err, hint  string

	paused    bool
	held      *Hold     // comparisons are paused
	throttle  *Hold     // a person wants copy and link to stand back
	heldAt    time.Time // when they were paused or went on last
	wish      Verb      // rollback, complete or cancel, asked for and not yet done
	goOn      bool      // "promote" was said: Until no longer holds
	parked    string    // what a person must do first, after a failure
	undone    int       // promotions that undid themselves, in a row
	approvals []consent
	asked     []Ask // for which tables somebody wants to be copied anew, oldest first

	owner   Side
	epoch   int64 // highest seen in the databases
	attempt int64 // highest that a promotion tried
	routed  int64 // up to which a person has moved the clients
	passing bool  // own was begun and is not undone: the point of no return may be behind us

	copied     *Copied
	proof      *Proof // newest exact one that was not refuted
	fenceProof *Proof
	proven     Proof // newest whole proof, exact or fenced; zero when none holds
	provenFor  Side  // the owner it was made for; "" both: nobody could write
	reads      int
	closedAt   time.Time // when the present attempt began to close the gate
	sequences  int
	promotions []Promotion
	rehearsal  *Rehearsal // newest one
	foreign    int64      // writes of others to the side that follows, since everything was compared
	endsAt     time.Time  // when "complete" was said
	archived   []string   // schemas that the old tables were put into
	phases     []PhaseTime
}

// A consent is one person's approval of the next promotion.
type consent struct {
	by string
	at time.Time
}

func newState() state {
	return state{phase: Pending, owner: Source, done: map[string]bool{}}
}

// clone returns a copy that shares nothing that changes.
func (s *state) clone() state {
	c := *s
	c.done = maps.Clone(s.done)
	c.approvals = slices.Clone(s.approvals)
	c.asked = slices.Clone(s.asked)
	c.promotions = slices.Clone(s.promotions)
	c.phases = slices.Clone(s.phases)
	return c
}

// apply folds one record into the state. It is the only writer of a state, live and on replay.
func (s *state) apply(r record) {
	s.seq = r.Seq
	if s.startedAt.IsZero() {
		s.startedAt = r.Time
	}
	f := r.Fact
	switch r.Type {
	case eventPhase:
		s.applyPhase(r)
	case eventStep:
		s.applyStep(r)
	case eventCommand:
		s.applyCommand(r)
	case eventDDL:
		s.asked = slices.DeleteFunc(s.asked, func(a Ask) bool { return a.Number <= f.Answered })
	case eventProof:
		s.applyProof(f)
	case eventPromotion:
		s.promotions = slices.DeleteFunc(s.promotions, func(p Promotion) bool { return p.Epoch == f.Promotion.Epoch })
		s.promotions = append(s.promotions, *f.Promotion)
	case eventLink:
		if f.Foreign > 0 {
			s.foreign += f.Foreign
			s.proof, s.proven = nil, Proof{}
		}
	case eventRehearsal:
		s.rehearsal = f.Rehearsal
	case eventOwner:
		s.owner, s.epoch = f.Owner, f.Epoch
	case eventError:
		s.err, s.hint, s.parked = f.Error, f.Hint, f.Park
	}
	if e := max(f.Attempt, f.Epoch); e > s.attempt {
		s.attempt = e
		if !s.passing { // nothing of an earlier attempt belongs to this one
			s.closedAt, s.fenceProof, s.sequences = time.Time{}, nil, 0
		}
	}
}

func (s *state) applyPhase(r record) {
	if n := len(s.phases); n > 0 {
		s.phases[n-1].Took = r.Time.Sub(s.phases[n-1].Start)
	}
	s.phases = append(s.phases, PhaseTime{Phase: r.Phase, Start: r.Time})
	back := s.phase == Failed && r.Phase == s.failedIn // goes on at the step that failed
	s.phase, s.phaseSince, s.failedIn, s.step = r.Phase, r.Time, r.Fact.FailedIn, ""
	s.passing = false
	if !back && r.Phase != Failed {
		clear(s.done)
	}
	s.err, s.hint = r.Fact.Error, r.Fact.Hint
	s.bare = r.Fact.Bare || back && s.bare

	switch {
	case back:
	case r.Fact.Undone:
		s.undone++
		if r.Fact.Park != "" {
			s.parked, s.undone = r.Fact.Park, 0
			if s.wish == Rollback {
				s.wish = ""
			}
		}
	case r.Phase == Promoted || r.Phase == RolledBack:
		s.wish, s.parked, s.undone, s.goOn, s.reads, s.asked = "", "", 0, false, 0, nil
		s.approvals = nil
	case r.Phase == Completed || r.Phase == Cancelled:
		s.wish, s.parked, s.reads, s.asked = "", "", 0, nil
	}
}

func (s *state) applyStep(r record) {
	f := r.Fact
	switch f.State {
	case stepStarted:
		s.step = f.Step
		if f.Step == stepCloseGate {
			s.closedAt = r.Time
		}
		s.passing = s.passing || f.Step == stepOwn
	case stepDone:
		s.step = ""
		s.done[f.Step] = true
		if f.Copied != nil {
			s.copied = f.Copied
		}
		if f.Step == stepSequences {
			s.sequences = f.Sequences
		}
	case stepFailed:
		s.step = ""
	case stepUndone:
		s.step = ""
		s.passing = s.passing && f.Step != stepOwn
	}
	if f.Reads != nil {
		s.reads = *f.Reads
	}
	if f.Archived != nil {
		s.archived = f.Archived
	}
}

func (s *state) applyCommand(r record) {
	switch r.Fact.Verb {
	case Approve:
		who := person(r.Actor)
		s.approvals = slices.DeleteFunc(s.approvals, func(c consent) bool { return c.by == who })
		s.approvals = append(s.approvals, consent{by: who, at: r.Time})
	case Pause:
		s.paused = true
	case Resume:
		s.paused, s.parked, s.err, s.hint = false, "", "", ""
	case Slow:
		s.throttle = &Hold{By: r.Actor, Since: r.Time}
	case Unslow:
		s.throttle = nil
	case PauseVerify:
		s.held, s.heldAt = &Hold{By: r.Actor, Since: r.Time}, r.Time
	case ResumeVerify:
		s.held, s.heldAt = nil, r.Time
	case Promote:
		s.goOn, s.parked, s.undone, s.err, s.hint = true, "", 0, "", ""
	case Rollback, Complete, Cancel:
		s.wish, s.endsAt = r.Fact.Verb, r.Time
	case Routed:
		s.routed = s.epoch
	case Resync:
		s.asked = append(s.asked, Ask{Number: r.Seq, Tables: r.Fact.Tables, By: r.Actor})
		s.proof, s.proven = nil, Proof{} // rows change that are not in the stream
	}
}

func (s *state) applyProof(f fact) {
	if f.Proof == nil { // what was proved no longer holds
		s.proof, s.proven = nil, Proof{}
		return
	}
	if f.Fenced {
		s.fenceProof = f.Proof
	} else if f.Proof.Kind == "exact" {
		s.proof = f.Proof
	}
	switch {
	case f.Proof.Differences > 0:
		s.proven = Proof{}
	case f.Fenced:
		s.proven, s.provenFor = *f.Proof, ""
	case f.Proof.Kind == "exact":
		s.proven, s.provenFor, s.foreign = *f.Proof, f.Owner, 0
	}
}

// replay folds the whole journal.
func replay(j Journal) (state, error) {
	s := newState()
	err := j.Scan(func(b []byte) error {
		var r record
		if err := json.Unmarshal(b, &r); err != nil {
			return fmt.Errorf("read journal record after %d: %w", s.seq, err)
		}
		if r.Type == eventPromotion && r.Fact.Promotion == nil {
			return fmt.Errorf("read journal record after %d: a promotion without its facts", s.seq)
		}
		s.apply(r)
		return nil
	})
	return s, err
}

// PhaseOf returns where the migration whose journal this is stands.
func PhaseOf(j Journal) (Phase, error) {
	s, err := replay(j)
	return s.phase, err
}

// emit journals an event, folds it and tells everybody. check, when given, decides first, with the
// state as the record will find it. Nothing has happened when it returns an error.
func (m *Migration) emit(e Event, f fact, check func(*state) error) error {
	return m.write(e, f, check, false)
}

// note is emit for what has happened already and must not be stopped by a journal that fails: the
// databases hold the truth, and a later process finds it there.
func (m *Migration) note(e Event, f fact) {
	_ = m.write(e, f, nil, true) // always nil when forced
}

// append adds a record to the journal, behind what it refused before and could not be left out: a journal may lack its end,
// never anything before. keep: this one cannot be left out either. Call it with journal held.
func (m *Migration) append(line []byte, keep bool) error {
	for len(m.refused) > 0 {
		if err := m.cfg.Journal.Append(m.refused[0]); err != nil {
			if keep {
				m.refused = append(m.refused, line)
			}
			return err
		}
		m.refused = m.refused[1:]
	}
	err := m.cfg.Journal.Append(line)
	if err != nil && keep {
		m.refused = append(m.refused, line)
	}
	return err
}

func (m *Migration) write(e Event, f fact, check func(*state) error, force bool) error {
	// Orders the journal, the state and the callbacks alike, so it is held across the append.
	m.journal.Lock()
	defer m.journal.Unlock()

	m.mu.Lock()
	s := &m.mu.state
	if check != nil {
		if err := check(s); err != nil {
			m.mu.Unlock()
			return err
		}
	}
	e.Seq, e.Time = s.seq+1, time.Now().UTC()
	if e.Phase == "" {
		e.Phase = s.phase
	}
	m.mu.Unlock()

	data, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	if err := json.Unmarshal(data, &e.Data); err != nil { // the event shows its fact as plain data
		return fmt.Errorf("write the journal: %w", err)
	}
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	if err := m.append(line, force); err != nil {
		if !force {
			return fmt.Errorf("write the journal: %w", err)
		}
		m.cfg.Log.Error("journal refused a record for now", slog.String("event", e.Message), slog.Any("err", err))
	}
	m.mu.Lock()
	m.mu.state.apply(record{Event: e, Fact: f})
	m.keepLocked(e)
	m.changedLocked()
	m.mu.Unlock()
	if e.Type == eventPhase || f.Verb == Slow || f.Verb == Unslow || f.Verb == Pause {
		select {
		case m.rethink <- struct{}{}:
		default: // one is there
		}
	}
	m.cfg.Events(e)
	return nil
}
