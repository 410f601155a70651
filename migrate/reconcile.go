package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// owners is what both databases say.
type owners map[Side]Ownership

// installed reports whether a database has an ownership row.
func (o Ownership) installed() bool { return o.Epoch > 0 }

// newest is the row that counts: of the higher epoch. Rows of one epoch agree, because an epoch is
// tried by one attempt only and its row moves only upwards.
func (o owners) newest() Ownership {
	if o[Target].Epoch > o[Source].Epoch {
		return o[Target]
	}
	return o[Source]
}

// unheard reports whether the side that does not own has yet to hear of it: it names itself.
func (o owners) unheard() bool {
	other := o.newest().Owner.Other()
	return o[other].Owner == other
}

func (m *Migration) readOwnership(ctx context.Context) (owners, error) {
	found := owners{}
	for _, side := range []Side{Source, Target} {
		o, err := m.database(side).Ownership(ctx)
		if err != nil {
			return nil, fmt.Errorf("ask the %s who owns the data: %w", side, err)
		}
		if o.installed() && o.Migration != m.cfg.Name {
			return nil, hint.Wrap(fmt.Errorf("%s: %w: %q", side, ErrForeign, o.Migration),
				"finish or cancel migration %q first, or remove what it left: ficus cleanup", o.Migration)
		}
		found[side] = o
	}
	return found, nil
}

// askOwnership is readOwnership until both answer. Before both have answered once there is nothing
// to wait for: the error is the operator's to see at once.
func (m *Migration) askOwnership(ctx context.Context) (owners, error) {
	defer m.trouble(nil)
	retry := pause{min: 250 * time.Millisecond, max: 5 * time.Second}
	for {
		once, cancel := context.WithTimeout(ctx, m.cfg.Settings.Budgets.Own)
		found, err := m.readOwnership(once)
		cancel()
		switch {
		case err == nil:
			return found, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, ErrForeign) || m.tellsAtOnce(err):
			return nil, err
		}
		m.trouble(err)
		if err := retry.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// tellsAtOnce reports whether an error of a database is the operator's to see at once. In phase preparing both have
// answered before, so what passes by itself is waited for.
func (m *Migration) tellsAtOnce(err error) bool {
	p := m.snapshot().phase
	return p == Pending || p == Preparing && !m.cfg.Retryable(err)
}

// reconcile brings journal and databases together after a start. The databases are right: whatever
// process stopped wherever, and whatever the journal lost, the newest ownership row says who owns
// the data. A promotion whose epoch is there is finished, any other is undone.
func (m *Migration) reconcile(ctx context.Context) error {
	if m.snapshot().phase.Final() {
		return nil
	}
	for {
		found, err := m.askOwnership(ctx)
		if err != nil {
			return err
		}
		s := m.snapshot()
		if !found[Source].installed() || !found[Target].installed() {
			return m.reconcileBare(ctx, s, found)
		}
		o := found.newest()
		if o.Owner != ownerIn(s.phase) || found.unheard() {
			a := &attempt{from: o.Owner.Other(), to: o.Owner, epoch: o.Epoch, link: m.linkFrom(o.Owner.Other()), opposite: m.linkFrom(o.Owner)}
			return m.finish(ctx, a, m.afterReturn())
		}
		foreign := o.Epoch > max(s.epoch, s.attempt)
		promoting := s.phase == Promoting || s.phase == RollingBack
		if promoting || !found[o.Owner].GateOpen {
			passed, err := m.reopen(ctx, o.Owner, max(o.Epoch, s.attempt)+1)
			if err != nil {
				return err
			}
			if passed {
				continue // an older process had got through after all
			}
			if found, err = m.askOwnership(ctx); err != nil {
				return err
			}
			o = found.newest()
		}
		if err := m.resumeOwner(ctx, s, o, foreign); err != nil {
			return err
		}
		if promoting {
			return m.undone(ctx, o.Owner, errors.New("the process stopped in the middle of it"))
		}
		return nil
	}
}

// ownerIn is who owns the data in a phase, as long as no promotion has passed the point of no return.
func ownerIn(p Phase) Side {
	switch p {
	case Promoted, RollingBack, Completed:
		return Target
	case Pending, Preparing, Copying, CatchingUp, Following, Verifying, ReadsSwitched, Promoting, RolledBack, Cancelled, Failed:
	}
	return Source
}

// afterReturn returns the steps behind the point of no return.
func (m *Migration) afterReturn() []step {
	rows := m.of(Promoting)
	for i, st := range rows {
		if st.Name == stepOwn {
			return rows[i+1:]
		}
	}
	return nil
}

// resumeOwner tells router and journal who owns the data. The router may be a process of its own
// that outlived ours, held. An epoch that is foreign to the journal is newer than what the journal
// knows of proofs, so these do not count.
func (m *Migration) resumeOwner(ctx context.Context, s state, o Ownership, foreign bool) error {
	if o.Owner != s.owner || o.Epoch != s.epoch {
		message := fmt.Sprintf("the %s owns the data, epoch %d", o.Owner, o.Epoch)
		if err := m.emit(Event{Type: eventOwner, Message: message}, fact{Owner: o.Owner, Epoch: o.Epoch}, nil); err != nil {
			return err
		}
	}
	if foreign && s.epoch != 0 {
		if err := m.emit(Event{Type: eventProof, Message: "earlier proofs do not count: the journal does not know this epoch"}, fact{}, nil); err != nil {
			return err
		}
	}
	return m.leadClients(ctx, o)
}

// leadClients makes the router agree with the databases.
func (m *Migration) leadClients(ctx context.Context, o Ownership) error {
	s := m.snapshot()
	a := &attempt{epoch: max(o.Epoch, s.attempt)}
	st := step{Step: Step{Name: "lead clients to the " + string(o.Owner), Budget: m.cfg.Settings.Budgets.Own}}
	return m.insist(ctx, st, func(m *Migration, ctx context.Context, a *attempt) error {
		if err := m.lead(ctx, a, o.Owner); err != nil {
			return err
		}
		return m.cfg.Router.Reads(ctx, s.reads)
	}, a)
}

// reconcileBare deals with databases of which at least one has no ownership row.
func (m *Migration) reconcileBare(ctx context.Context, s state, found owners) error {
	early := s.phase == Pending || s.phase == Preparing
	src, dst := found[Source], found[Target]
	switch {
	case s.wish == Complete && dst.Owner != Source, s.wish == Cancel && src.Owner != Target:
		return nil // it was being removed
	case early && src.Owner != Target && dst.Owner != Target:
		return nil // it was being installed, or will be
	case src.installed() && src.Owner == Target: // whatever else was asked for: another engine completed it
		return m.emit(Event{Type: eventCommand, Actor: "recovery", Message: "complete: the target was freed already"}, fact{Verb: Complete}, nil)
	case dst.installed() && dst.Owner == Source && !early:
		return m.emit(Event{Type: eventCommand, Actor: "recovery", Message: "cancel: the source was freed already"}, fact{Verb: Cancel}, nil)
	}
	return hint.Wrap(errBare,
		"the migration cannot go on: ficus cancel %s, then begin again", m.cfg.Name)
}

// reopen lets an owner write again after an attempt of which nobody knows how far it came: its
// epoch is burnt first, so that nothing in flight can make another owner afterwards, and the slot that
// it may have made goes. passed reports that the attempt had won.
func (m *Migration) reopen(ctx context.Context, owner Side, epoch int64) (passed bool, err error) {
	a := &attempt{from: owner, to: owner.Other(), epoch: epoch, opposite: m.linkFrom(owner.Other())}
	var rows []step
	for _, st := range m.of(Promoting) {
		if st.Name == stepPrepare || st.Name == stepCloseGate || st.Name == stepOwn {
			rows = append(rows, st)
		}
	}
	return m.undo(ctx, a, rows)
}

// burn makes it impossible that the attempt's new owner row is committed later: it commits the same
// epoch there for the old owner. Both take the row's lock and an epoch is never overwritten by the
// same or a lower one, so exactly one of them wins.
func (m *Migration) burn(ctx context.Context, a *attempt) error {
	db := m.database(a.to)
	err := db.Own(ctx, a.epoch, a.from)
	if err == nil {
		return nil
	}
	o, readErr := db.Ownership(ctx)
	switch {
	case readErr != nil:
		return errors.Join(err, readErr)
	case o.Epoch >= a.epoch && o.Owner == a.to:
		return errPassed
	case o.Epoch >= a.epoch:
		return nil // burnt by somebody else
	}
	return err
}

// watch looks at the owner's gate while nothing else goes on, and opens it when a lost command of
// an earlier attempt closed it late.
func (m *Migration) watch(ctx context.Context) error {
	m.dropLeftover(ctx)
	s := m.snapshot()
	if s.epoch == 0 || s.phase == Promoting || s.phase == RollingBack {
		return nil
	}
	look, cancel := context.WithTimeout(ctx, m.cfg.Settings.Budgets.Own)
	defer cancel()
	o, err := m.database(s.owner).Ownership(look)
	if err != nil {
		if ctx.Err() == nil {
			m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "owner does not answer", slog.String("side", string(s.owner)), slog.Any("err", err))
		}
		return nil // the link and the next look will tell
	}
	if o.GateOpen || !o.installed() {
		return nil
	}
	m.note(Event{Type: eventOwner, Message: fmt.Sprintf("the gate of the %s was found closed outside a promotion", s.owner)}, fact{Owner: s.owner, Epoch: s.epoch})
	if err := m.reconcile(ctx); err != nil {
		return err
	}
	return errInterrupted // the phase may be another one now
}
