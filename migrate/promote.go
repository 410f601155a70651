package migrate

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// expectTimeout is how long a router may take to hear who will own.
const expectTimeout = time.Second

// An attempt is one try at changing the owner. A rollback is one with the sides swapped.
type attempt struct {
	from, to Side
	epoch    int64 // tried by no other attempt, so that what one left in flight cannot touch another
	link     Link  // from -> to, running
	opposite Link  // to -> from; nil when there is none
	nonce    string
	waited   []StepTime
	ahead    int64 // by which the router's epoch is higher; see lead
	opened   time.Time
}

// errPassed says that what was to be undone is beyond the point of no return.
var errPassed = errors.New("the new owner's row has the new epoch")

// errNotOwner says that the owner changed while nobody looked.
var errNotOwner = errors.New("another process changed the owner")

// promote tries to move ownership away from a side. Whatever happens, it ends either undone, with
// the old owner open, or finished, with the new one; only the end of the process leaves it half
// done, for reconcile.
func (m *Migration) promote(ctx context.Context, from Side) error {
	if s := m.snapshot(); s.wish == Cancel {
		return m.undone(ctx, from, errInterrupted)
	}
	a, err := m.newAttempt(ctx, from)
	if errors.Is(err, errNotOwner) {
		return m.reconcile(ctx)
	}
	if err != nil {
		return m.undone(ctx, from, err)
	}
	rows := m.of(Promoting)
	for i, st := range rows {
		if st.Name == stepOwn && m.rehearses() {
			return m.turnBack(ctx, a, rows[:i])
		}
		if err = m.tryStep(ctx, st, a); err != nil {
			passed, undoErr := m.undo(ctx, a, rows[:i+1])
			if undoErr != nil {
				return undoErr
			}
			if !passed {
				return m.undone(ctx, from, err)
			}
		}
		if st.Name == stepOwn {
			return m.finish(ctx, a, rows[i+1:])
		}
	}
	return errors.New("the table of steps has no point of no return")
}

// newAttempt takes an epoch above all that the databases and the journal know.
func (m *Migration) newAttempt(ctx context.Context, from Side) (*attempt, error) {
	to := from.Other()
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Settings.Budgets.Own)
	defer cancel()
	owners, err := m.readOwnership(ctx)
	if err != nil {
		return nil, err
	}
	if owners.newest().Owner != from {
		return nil, errNotOwner
	}
	a := &attempt{
		from: from, to: to, link: m.linkFrom(from), opposite: m.linkFrom(to),
		epoch: max(owners[from].Epoch, owners[to].Epoch, m.snapshot().attempt) + 1,
	}
	message := fmt.Sprintf("attempt to make the %s the owner, epoch %d", to, a.epoch)
	return a, m.emit(Event{Type: eventStep, Message: message}, fact{Attempt: a.epoch}, nil)
}

// tryStep runs one step up to the point of no return: once, within its budget.
func (m *Migration) tryStep(ctx context.Context, st step, a *attempt) error {
	began := time.Now()
	// From the moment that own is journaled the operator can no longer cancel.
	check := func(s *state) error {
		if s.wish == Cancel {
			return errInterrupted
		}
		return nil
	}
	if err := m.emit(stepEvent(st.Name, stepStarted, ""), fact{Step: st.Name, State: stepStarted}, check); err != nil {
		return err
	}
	ctx, done, err := m.interruptible(ctx)
	if err != nil {
		return err
	}
	defer done()
	if st.Budget > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, st.Budget, &budgetError{step: st.Name, budget: st.Budget})
		defer cancel()
	}
	err = st.run(m, ctx, a)
	m.update(func(l *live) { l.blockers = nil })
	f := fact{Step: st.Name, State: stepDone, Took: time.Since(began)}
	if st.Name == stepSequences {
		m.mu.Lock()
		f.Sequences = m.mu.live.sequences
		m.mu.Unlock()
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		err = fmt.Errorf("%s: %w", st.Name, err)
		f.State, f.Error, f.Hint = stepFailed, err.Error(), hint.Of(err)
		m.note(stepEvent(st.Name, stepFailed, f.Error), f)
		return err
	}
	if st.Waits {
		a.waited = append(a.waited, StepTime{Step: st.Name, Took: f.Took, Budget: st.Budget})
	}
	if st.Name == stepOwn {
		m.note(stepEvent(st.Name, stepDone, ""), f)
		return nil
	}
	return m.emit(stepEvent(st.Name, stepDone, ""), f, nil)
}

// undo takes steps back, the last one first. Each is tried until it works, because the application
// stands still meanwhile; passed reports that there was nothing left to undo, as the new owner's
// row has the epoch. The error is the end of ctx.
func (m *Migration) undo(ctx context.Context, a *attempt, rows []step) (passed bool, err error) {
	ctx, cancel := graceful(ctx, m.cfg.Settings.Grace)
	defer cancel()
	for _, st := range slices.Backward(rows) {
		if st.undo == nil {
			continue
		}
		began := time.Now()
		err := m.insist(ctx, st, st.undo, a)
		if errors.Is(err, errPassed) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		m.note(stepEvent(st.Name, stepUndone, ""), fact{Step: st.Name, State: stepUndone, Took: time.Since(began)})
	}
	return false, nil
}

// insist repeats until it works. The error is errPassed, ErrDeposed or the end of ctx.
func (m *Migration) insist(ctx context.Context, st step, run func(*Migration, context.Context, *attempt) error, a *attempt) error {
	defer m.trouble(nil)
	retry := pause{min: 100 * time.Millisecond, max: 5 * time.Second}
	for {
		once, cancel := context.WithTimeoutCause(ctx, st.Budget, &budgetError{step: st.Name, budget: st.Budget})
		err := run(m, once, a)
		cancel()
		if err == nil || errors.Is(err, errPassed) || errors.Is(err, ErrDeposed) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		m.trouble(fmt.Errorf("%s: %w", st.Name, err))
		if err := retry.wait(ctx); err != nil {
			return err
		}
	}
}

// undone journals that an attempt took itself back, and whether it will be tried again.
func (m *Migration) undone(ctx context.Context, from Side, cause error) error {
	home, again := ReadsSwitched, Promote
	if from == Target {
		home, again = Promoted, Rollback
	}
	s := m.snapshot()
	f := fact{Undone: true, Error: "undone: " + cause.Error(), Hint: hint.Of(cause)}
	if f.Hint == "" {
		f.Hint = fmt.Sprintf("nobody was harmed: the %s owns the data and takes writes; mend the cause, then: ficus %s %s", from, again, m.cfg.Name)
	}
	switch {
	case errors.Is(cause, ErrDifferences):
		f.Park = GateProof
		if from == Source {
			home = Verifying
		}
	case s.undone+1 >= m.cfg.Settings.Attempts:
		f.Park = string(again)
	}
	m.note(phaseEvent(home, f.Error), f)
	m.update(func(l *live) { l.forget() })
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// finish goes forward from the point of no return; nothing takes it back any more.
func (m *Migration) finish(ctx context.Context, a *attempt, rows []step) error {
	ctx, cancel := graceful(ctx, m.cfg.Settings.Grace)
	defer cancel()
	message := fmt.Sprintf("the %s owns the data, epoch %d", a.to, a.epoch)
	m.note(Event{Type: eventOwner, Message: message}, fact{Owner: a.to, Epoch: a.epoch})
	for _, st := range rows {
		began := time.Now()
		m.note(stepEvent(st.Name, stepStarted, ""), fact{Step: st.Name, State: stepStarted})
		if err := m.insist(ctx, st, st.run, a); err != nil {
			return err
		}
		m.note(stepEvent(st.Name, stepDone, ""), fact{Step: st.Name, State: stepDone, Took: time.Since(began)})
	}
	p := m.promotion(a)
	message = fmt.Sprintf("promotion of the %s: blackout %s, longest stall %s", a.to, p.Blackout.Round(time.Millisecond), p.Stall.Max.Round(time.Millisecond))
	m.note(Event{Type: eventPromotion, Message: message}, fact{Promotion: &p})
	m.note(phaseEvent(restOf(a.to), "the "+string(a.to)+" owns the data"), fact{})
	m.askRouted()
	m.update(func(l *live) { l.forget() })
	return nil
}

// restOf is the phase in which a migration stands with that owner after a change.
func restOf(owner Side) Phase {
	if owner == Target {
		return Promoted
	}
	return RolledBack
}

// promotion sums up what the journal and the router know of a finished attempt.
func (m *Migration) promotion(a *attempt) Promotion {
	s := m.snapshot()
	p := Promotion{Epoch: a.epoch, From: a.from, To: a.to, At: time.Now().UTC(), Sequences: s.sequences, Stall: m.cfg.Router.Stalls()}
	if s.fenceProof != nil {
		p.LSN, p.Proof = s.fenceProof.LSN, *s.fenceProof
	}
	if !s.closedAt.IsZero() && !a.opened.IsZero() {
		p.Blackout = a.opened.Sub(s.closedAt)
	}
	return p
}

// The steps, in the order of the table in steps.go.

func (m *Migration) checkLag(ctx context.Context, a *attempt) error {
	// A throttle ends with the phase before; see keepThrottle.
	if err := m.until(ctx, func(_ *state, l *live) (bool, error) { return !l.held, nil }); err != nil {
		return err
	}
	lag, err := a.link.Lag(ctx)
	if err != nil {
		return err
	}
	if !m.cfg.Settings.within(lag) {
		return hint.Wrap(fmt.Errorf("%s is more than the gate lets pass", lagText(lag)), "wait until the link has caught up, then try again")
	}
	return nil
}

func (m *Migration) checkProof(ctx context.Context, a *attempt) error {
	s := m.snapshot()
	if (s.provenFor == a.from || s.provenFor == "") && !s.proven.Time.IsZero() && time.Since(s.proven.Time) <= m.cfg.Settings.ProofAge {
		return nil
	}
	return m.proveExact(ctx, a.from)
}

func (m *Migration) arm(ctx context.Context, a *attempt) error {
	return m.database(a.from).Arm(ctx)
}

func (m *Migration) prepareOpposite(ctx context.Context, a *attempt) error {
	m.leftover = nil
	if a.opposite == nil {
		return nil
	}
	if err := m.stillDrives(ctx); err != nil {
		return err
	}
	return m.heed(a.opposite.Prepare(ctx, a.epoch))
}

func (m *Migration) expectNew(ctx context.Context, a *attempt) error { return m.expect(ctx, a.to) }
func (m *Migration) expectOld(ctx context.Context, a *attempt) error { return m.expect(ctx, a.from) }

// expect makes the switch shorter where it works; without, it is as good.
func (m *Migration) expect(ctx context.Context, owner Side) error {
	r, ok := m.cfg.Router.(Expecter)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, expectTimeout)
	defer cancel()
	if err := r.Expect(ctx, owner); err != nil {
		m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "router does not get ready for the new owner", slog.Any("err", err))
	}
	return nil
}

// dropOpposite is tried once, and again while the engine rests: nothing depends on it, because the
// next attempt starts the link afresh, and the database that would have to answer may be the one
// that broke.
func (m *Migration) dropOpposite(ctx context.Context, a *attempt) error {
	m.leftover = a.opposite
	m.dropLeftover(ctx)
	if m.leftover != nil {
		message := "the prepared " + linkName(a.to) + " could not be dropped yet and keeps WAL on the " + string(a.to)
		m.note(Event{Type: eventLink, Message: message}, fact{})
	}
	return nil
}

// dropLeftover tries to drop what an undone attempt left behind.
func (m *Migration) dropLeftover(ctx context.Context) {
	if m.leftover == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Settings.Budgets.Own)
	defer cancel()
	err := m.stillDrives(ctx)
	if err == nil {
		err = m.heed(m.leftover.Drop(ctx))
	}
	if err != nil {
		m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "prepared link not dropped yet", slog.Any("err", err))
		return
	}
	m.leftover = nil
}

func (m *Migration) deltaAhead(ctx context.Context, a *attempt) error {
	// Arming has changed the catalog: looked at now, it need not be read under the fence.
	if err := errors.Join(m.settle(ctx, a), m.unsettle(ctx, a)); err != nil {
		return err
	}
	p, err := m.cfg.Verifier.Delta(ctx, a.from, false)
	if errors.Is(err, ErrNoProof) {
		return m.proveExact(ctx, a.from)
	}
	if err != nil {
		return err
	}
	return m.proved(p, a.from, false)
}

func (m *Migration) moveSequences(ctx context.Context, a *attempt) error {
	seqs, err := m.database(a.from).Sequences(ctx)
	if err != nil {
		return err
	}
	m.update(func(l *live) { l.sequences = len(seqs) })
	return m.database(a.to).SetSequences(ctx, seqs, m.cfg.Settings.Headroom)
}

func (m *Migration) readsHome(ctx context.Context, _ *attempt) error {
	return m.setReads(ctx, 0)
}

func (m *Migration) hold(ctx context.Context, a *attempt) error {
	return m.cfg.Router.Hold(ctx, a.epoch)
}

func (m *Migration) releaseBack(ctx context.Context, a *attempt) error {
	return m.lead(ctx, a, a.from)
}

// lead releases clients to an owner. A router that outlived both an engine and the end of its
// journal may know a later epoch and refuse ours: epochs may have gaps, so a repeated call tries
// the next one, and the attempt after this starts from there.
func (m *Migration) lead(ctx context.Context, a *attempt, owner Side) error {
	if a.ahead > 0 { // the later epoch may be that of an engine that replaced this one
		if err := m.stillDrives(ctx); err != nil {
			return err
		}
	}
	if err := m.cfg.Router.Release(ctx, owner, a.epoch+a.ahead); err != nil {
		a.ahead++
		return err
	}
	if a.ahead > 0 {
		message := fmt.Sprintf("the router stands at epoch %d", a.epoch+a.ahead)
		m.note(Event{Type: eventStep, Message: message}, fact{Attempt: a.epoch + a.ahead})
	}
	return nil
}

func (m *Migration) closeGate(ctx context.Context, a *attempt) error {
	return m.database(a.from).CloseGate(ctx)
}

func (m *Migration) openBack(ctx context.Context, a *attempt) error {
	if err := m.database(a.from).OpenGate(ctx); err != nil {
		return err
	}
	a.opened = time.Now()
	return nil
}

func (m *Migration) waitWriters(ctx context.Context, a *attempt) error {
	told := map[int]bool{}
	return m.database(a.from).WaitWriters(ctx, func(bs []Blocker) {
		m.update(func(l *live) { l.blockers = bs })
		for _, b := range bs { // whom Ficus has cut off stays on record
			if b.Ended != "" && !told[b.PID] {
				told[b.PID] = true
				m.note(Event{Type: eventStep, Message: "stood in the way of the fence: " + b.String()}, fact{})
			}
		}
		m.tell(Event{Type: eventProgress, Message: fmt.Sprintf("waiting for %d writers", len(bs)), Data: map[string]any{"blockers": bs}})
	})
}

func (m *Migration) signal(ctx context.Context, a *attempt) error {
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce) // crypto/rand: never fails
	a.nonce = hex.EncodeToString(nonce)
	return m.database(a.from).Signal(ctx, a.nonce)
}

func (m *Migration) drain(ctx context.Context, a *attempt) error {
	return a.link.WaitSignal(ctx, a.nonce)
}

// settle makes sure that the link has missed no change of a table, and begins to follow none.
func (m *Migration) settle(ctx context.Context, a *attempt) error {
	if s, ok := a.link.(Settler); ok {
		return s.Settle(ctx)
	}
	return nil
}

func (m *Migration) unsettle(_ context.Context, a *attempt) error {
	if s, ok := a.link.(Settler); ok {
		s.Unsettle()
	}
	return nil
}

// finalSequences also looks whether tables changed while the proof was made.
func (m *Migration) finalSequences(ctx context.Context, a *attempt) error {
	if err := m.moveSequences(ctx, a); err != nil {
		return err
	}
	return m.settle(ctx, a)
}

func (m *Migration) proveFenced(ctx context.Context, a *attempt) error {
	p, err := m.cfg.Verifier.Delta(ctx, a.from, true)
	if err != nil {
		return err
	}
	return m.proved(p, a.from, true)
}

func (m *Migration) own(ctx context.Context, a *attempt) error {
	return m.database(a.to).Own(ctx, a.epoch, a.to)
}

func (m *Migration) openGate(ctx context.Context, a *attempt) error {
	if err := m.database(a.to).OpenGate(ctx); err != nil {
		return err
	}
	a.opened = time.Now()
	return nil
}

func (m *Migration) release(ctx context.Context, a *attempt) error {
	return m.lead(ctx, a, a.to)
}

func (m *Migration) recordOwner(ctx context.Context, a *attempt) error {
	db := m.database(a.from)
	err := db.Own(ctx, a.epoch, a.to)
	if err == nil {
		return nil
	}
	// A row that knows a later epoch of the same owner needs no telling.
	if o, readErr := db.Ownership(ctx); readErr == nil && o.Owner == a.to && o.Epoch >= a.epoch {
		return nil
	}
	return err
}

// switchLink drops the old link; the opposite one starts with the next phase.
func (m *Migration) switchLink(ctx context.Context, a *attempt) error {
	m.stopLink()
	if a.link == nil {
		return nil
	}
	if err := m.unsettle(ctx, a); err != nil {
		return err
	}
	if err := m.stillDrives(ctx); err != nil {
		return err
	}
	return m.heed(a.link.Drop(ctx))
}
