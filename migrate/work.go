package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// The steps before a promotion, in the order of the table in steps.go.

func (m *Migration) preflight(ctx context.Context, _ *attempt) error {
	findings, err := m.cfg.Preflight(ctx)
	if err != nil {
		return err
	}
	var bad []error
	for _, f := range findings {
		message := fmt.Sprintf("%s: %s: %s", f.Severity, f.Check, f.Message)
		if err := m.emit(Event{Type: eventFinding, Message: message}, fact{Finding: &f}, nil); err != nil {
			return err
		}
		if f.Severity == SeverityError {
			err := errors.New(f.Message)
			if f.Object != "" {
				err = fmt.Errorf("%s: %s", f.Object, f.Message)
			}
			if f.Fix != "" {
				err = hint.Wrap(err, "%s", f.Fix)
			}
			bad = append(bad, err)
		}
	}
	return errors.Join(bad...)
}

func (m *Migration) install(ctx context.Context, _ *attempt) error {
	for _, side := range []Side{Source, Target} {
		if err := m.database(side).Install(ctx, m.cfg.Name, Source); err != nil {
			return fmt.Errorf("on the %s: %w", side, err)
		}
	}
	o, err := m.cfg.Source.Ownership(ctx)
	if err != nil {
		return fmt.Errorf("read the ownership of the source: %w", err)
	}
	if err := m.leadClients(ctx, o); err != nil {
		return err
	}
	return m.emit(Event{Type: eventOwner, Message: "the source owns the data"}, fact{Owner: Source, Epoch: o.Epoch}, nil)
}

func (m *Migration) createTables(ctx context.Context, _ *attempt) error {
	if err := m.stillDrives(ctx); err != nil {
		return err
	}
	return m.cfg.Loader.CreateTables(ctx)
}

func (m *Migration) armTarget(ctx context.Context, _ *attempt) error {
	return m.cfg.Target.Arm(ctx)
}

func (m *Migration) load(ctx context.Context, _ *attempt) error {
	if err := m.stillDrives(ctx); err != nil {
		return err
	}
	m.update(func(l *live) { l.tables = nil })
	sum, err := m.cfg.Loader.Load(ctx, func(p TableProgress) {
		m.update(func(l *live) {
			if i := slices.IndexFunc(l.tables, func(t TableProgress) bool { return t.Table == p.Table }); i >= 0 {
				l.tables[i] = p
			} else {
				l.tables = append(l.tables, p)
			}
		})
		m.tell(Event{Type: eventProgress, Message: "copy " + p.Table, Data: map[string]any{"table": p}})
	}, m.builds)
	if err == nil {
		m.update(func(l *live) { l.copied = &sum })
	}
	return m.heed(err) // the copy's own transactions may have been refused
}

func (m *Migration) build(ctx context.Context, _ *attempt) error {
	return m.cfg.Loader.Finish(ctx, m.builds)
}

// builds tells of an object that is being built.
func (m *Migration) builds(what string, done, total int) {
	b := Build{What: what, Done: done, Total: total}
	m.update(func(l *live) { l.build = &b })
	m.tell(Event{Type: eventProgress, Message: "build " + what, Data: map[string]any{"build": b}})
}

func (m *Migration) catchUp(ctx context.Context, _ *attempt) error {
	return m.waitGates(ctx, Following)
}

func (m *Migration) follow(ctx context.Context, _ *attempt) error {
	// The operator's wish to go no further counts before the gates of what comes next.
	if m.cfg.Settings.Until == Following {
		if err := m.await(ctx, string(Promote), func(s *state) bool { return s.goOn }); err != nil {
			return err
		}
	}
	return m.waitGates(ctx, Verifying)
}

// prove compares everything until there is no difference; after each that finds some, a person
// looks into it and says "promote".
func (m *Migration) prove(ctx context.Context, _ *attempt) error {
	for {
		if s := m.snapshot(); s.parked != "" {
			if err := m.await(ctx, s.parked, func(s *state) bool { return s.parked == "" }); err != nil {
				return err
			}
		}
		err := m.proveExact(ctx, Source)
		if !errors.Is(err, ErrDifferences) {
			return err
		}
		f := fact{Error: err.Error(), Hint: hint.Of(err), Park: GateProof}
		if err := m.emit(Event{Type: eventError, Message: f.Error}, f, nil); err != nil {
			return err
		}
	}
}

// proveExact compares everything over the link that runs from owner.
func (m *Migration) proveExact(ctx context.Context, owner Side) error {
	var p Proof
	err := m.compare(func(progress func(done, total int64)) (err error) {
		p, err = m.cfg.Verifier.Exact(ctx, owner, progress)
		return err
	})
	m.unholdAfter(ctx)
	if err != nil {
		return fmt.Errorf("compare the databases: %w", err)
	}
	return m.proved(p, owner, false)
}

// proved journals a proof; differences are an error.
func (m *Migration) proved(p Proof, owner Side, fenced bool) error {
	if p.Time.IsZero() {
		p.Time = time.Now().UTC()
	}
	message := fmt.Sprintf("%s proof: %d rows in %d tables, %d differences, in %s", p.Kind, p.Rows, p.Tables, p.Differences, p.Elapsed.Round(time.Millisecond))
	if err := m.emit(Event{Type: eventProof, Message: message}, fact{Proof: &p, Owner: owner, Fenced: fenced}, nil); err != nil {
		return err
	}
	if p.Differences == 0 {
		return nil
	}
	where := ""
	if len(p.Samples) > 0 {
		where = ", for example " + p.Samples[0]
	}
	return hint.Wrap(fmt.Errorf("%w: %d differences in %d rows%s", ErrDifferences, p.Differences, p.Rows, where),
		"ficus verify %[1]s --evidence FILE shows the rows, and with --repair FILE --apply mends the side that does not own the data; then: ficus promote %[1]s", m.cfg.Name)
}

func (m *Migration) routeReads(ctx context.Context, _ *attempt) error {
	if _, none := m.cfg.Router.(noRouter); none {
		return nil
	}
	for _, percent := range m.cfg.Settings.ReadSteps {
		if err := m.setReads(ctx, percent); err != nil {
			return err
		}
		lag, err := m.watchReads(ctx)
		if err != nil {
			return err
		}
		if err := m.readFault(); err != nil {
			return errors.Join(err, m.setReads(ctx, 0))
		}
		if lag != nil {
			if err := m.setReads(ctx, 0); err != nil {
				return err
			}
			return hint.Wrap(fmt.Errorf("%d percent of reads on the target: %s is more than the gate lets pass: reads are back on the source", percent, lagText(*lag)),
				"find out what slows the target down, then: ficus resume %s", m.cfg.Name)
		}
	}
	return nil
}

// watchReads watches the lag after a step. It returns nil once it is within the gate, and the lag
// when it was beyond it as many times in a row as the gate wants to see it within: one look may fall
// into a burst.
func (m *Migration) watchReads(ctx context.Context) (beyond *Lag, err error) {
	for pause := m.cfg.Settings.ReadWatch; ; pause = m.cfg.Settings.Sample {
		if err := backoff.Sleep(ctx, pause); err != nil {
			return nil, err
		}
		m.mu.Lock()
		samples := slices.Clone(m.mu.live.samples)
		m.mu.Unlock()
		n := len(samples)
		switch {
		case n == 0 || m.cfg.Settings.within(samples[n-1]):
			return nil, nil
		case n >= m.cfg.Settings.LagSamples && !slices.ContainsFunc(samples, m.cfg.Settings.within):
			return &samples[n-1], nil
		}
	}
}

// setReads routes that percentage of read-only traffic to the side that does not own.
func (m *Migration) setReads(ctx context.Context, percent int) error {
	if err := m.cfg.Router.Reads(ctx, percent); err != nil {
		return fmt.Errorf("route %d percent of reads: %w", percent, err)
	}
	message := fmt.Sprintf("%d percent of reads go to the side that does not own", percent)
	return m.emit(Event{Type: eventStep, Message: message}, fact{Reads: &percent}, nil)
}

// promotionGates waits for a person after a promotion that failed for good, a while after one that
// will be tried again, and then for the gates.
func (m *Migration) promotionGates(ctx context.Context, _ *attempt) error {
	s := m.snapshot()
	switch {
	case m.rehearses() && m.waitsForEarlier(&s):
		if err := m.unpark(); err != nil {
			return err
		}
	case s.parked != "":
		if err := m.await(ctx, s.parked, func(s *state) bool { return s.parked == "" }); err != nil {
			return err
		}
	case s.undone > 0:
		if err := backoff.Sleep(ctx, m.cfg.Settings.RetryPause); err != nil {
			return err
		}
	}
	if m.cfg.Settings.Until == ReadsSwitched {
		if err := m.await(ctx, string(Promote), func(s *state) bool { return s.goOn }); err != nil {
			return err
		}
	}
	return m.waitGates(ctx, Promoting)
}

// standBy keeps the reverse link running until somebody wants something else. After a rollback that failed for good
// it says so.
func (m *Migration) standBy(ctx context.Context, _ *attempt) error {
	if s := m.snapshot(); s.wish == Rollback && s.undone > 0 {
		if err := backoff.Sleep(ctx, m.cfg.Settings.RetryPause); err != nil {
			return err
		}
	}
	window, parked := m.cfg.Settings.RollbackWindow, m.snapshot().parked
	if window <= 0 {
		return m.await(ctx, parked, wantsRollback)
	}
	ends := m.snapshot().phaseSince.Add(window)
	limited, cancel := context.WithDeadlineCause(ctx, ends, errTick)
	defer cancel()
	err := m.await(limited, parked, wantsRollback)
	if !errors.Is(err, errTick) {
		return err
	}
	message := fmt.Sprintf("complete: the rollback window of %s is over", window)
	return errors.Join(errInterrupted, m.emit(Event{Type: eventCommand, Message: message, Actor: "rollback window"}, fact{Verb: Complete}, nil))
}

func wantsRollback(s *state) bool { return s.wish == Rollback }

// followAgain keeps the forward link running after a rollback.
func (m *Migration) followAgain(ctx context.Context, _ *attempt) error {
	return m.await(ctx, string(Promote), func(s *state) bool { return s.goOn })
}

// drainReverse leaves the old owner at a known place: it holds everything that was committed when
// the migration was completed. It is a courtesy, so its failure is told and stops nothing.
func (m *Migration) drainReverse(ctx context.Context, _ *attempt) error {
	m.mu.Lock()
	running := m.mu.live.link != nil && m.mu.live.linkFrom == Target && m.mu.live.linkErr == nil
	m.mu.Unlock()
	if !running {
		m.note(Event{Type: eventLink, Message: "the reverse link does not run: the old database stays where it stopped"}, fact{})
		return nil
	}
	budget := m.cfg.Settings.Budgets.Drain
	drain, cancel := context.WithTimeoutCause(ctx, budget, &budgetError{step: "drain-reverse", budget: budget})
	defer cancel()
	a := &attempt{from: Target, link: m.cfg.Reverse}
	err := m.signal(drain, a)
	if err == nil {
		err = m.drain(drain, a)
	}
	if err == nil { // or a row of the new owner's would be in the way of the next one there
		err = m.copySequences(drain, Target)
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		m.note(Event{Type: eventLink, Message: "the old database misses the last changes: " + err.Error()}, fact{})
	}
	return nil
}

// dropReverse and the following end a migration.
func (m *Migration) dropReverse(ctx context.Context, _ *attempt) error {
	m.stopLink()
	m.dropLeftover(ctx)
	if m.cfg.Reverse == nil {
		return nil
	}
	if err := m.stillDrives(ctx); err != nil {
		return err
	}
	return m.heed(m.cfg.Reverse.Drop(ctx))
}

func (m *Migration) uninstallOwner(ctx context.Context, _ *attempt) error {
	return m.database(Target).Uninstall(ctx)
}

func (m *Migration) leadToTarget(ctx context.Context, _ *attempt) error {
	return m.leadClients(ctx, Ownership{Owner: Target, Epoch: m.snapshot().epoch})
}

// leadToSource leaves the router alone when nobody can say any more who owned the data last.
func (m *Migration) leadToSource(ctx context.Context, _ *attempt) error {
	s := m.snapshot()
	if s.bare {
		return nil
	}
	if err := m.setReads(ctx, 0); err != nil {
		return err
	}
	return m.leadClients(ctx, Ownership{Owner: Source, Epoch: s.epoch})
}

func (m *Migration) dropLinks(ctx context.Context, _ *attempt) error {
	m.stopLink()
	if err := m.stillDrives(ctx); err != nil {
		return err
	}
	err := m.cfg.Forward.Drop(ctx)
	if m.cfg.Reverse != nil {
		err = errors.Join(err, m.cfg.Reverse.Drop(ctx))
	}
	return m.heed(err)
}

// uninstall frees the application first: what is left after a crash is on the target.
func (m *Migration) uninstall(ctx context.Context, _ *attempt) error {
	if err := m.database(Source).Uninstall(ctx); err != nil {
		return err
	}
	return m.database(Target).Uninstall(ctx)
}
