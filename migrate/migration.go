package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// A Migration takes one database to another. Its methods may be called by several goroutines.
type Migration struct {
	cfg   Config
	steps []step

	// Touched by Run's own goroutine only:
	link     linkRunner
	watched  time.Time // when the owner's gate was looked at last
	leftover Link      // that an undone attempt had prepared and could not drop yet

	// rethink holds a token when the throttle may have to change with the phase, or by a person's wish.
	rethink chan struct{}

	// journal orders appends, folds and event callbacks. It is taken before mu, and is the only
	// lock held across I/O: the order of records is what it protects.
	journal sync.Mutex
	refused [][]byte // records that had to be made and found no room, oldest first; guarded by journal

	mu struct {
		sync.Mutex
		state     state
		live      live
		log       eventLog
		changed   chan struct{} // closed and replaced whenever something above changed
		running   bool
		began     time.Time // Run
		rehearsed bool      // the promotion, since then
		ran       bool      // Run was called: a failure is its result, not one that it will go on from
		// interrupt ends the step that is running; nil while none may be interrupted.
		interrupt   context.CancelCauseFunc
		comparisons int           // that run
		goOn        chan struct{} // closed when comparisons that are paused may go on; nil: nobody waits
		// depose ends Run because another process took over; nil outside Run.
		depose context.CancelCauseFunc
	}
}

// New reads the journal and returns a Migration that stands where the journal ends. It touches no
// database and starts nothing.
func New(cfg Config) (*Migration, error) {
	if err := cfg.normalize(); err != nil {
		return nil, err
	}
	m := &Migration{cfg: cfg, steps: table(cfg.Settings), rethink: make(chan struct{}, 1)}
	s, err := replay(cfg.Journal)
	if err != nil {
		return nil, fmt.Errorf("migration %s: %w", cfg.Name, err)
	}
	m.mu.state = s
	m.mu.changed = make(chan struct{})
	m.mu.log.subscribers = map[*subscriber]struct{}{}
	return m, nil
}

// Run drives the migration until it is completed or cancelled (nil), fails (the error), or ctx is
// done (its cause). It first asks both databases who owns the data, and undoes or finishes what an
// earlier process left half done. While another process drives the migration it waits for
// Settings.ClaimWait, and is refused with ErrDriven; when another one takes over it ends with
// ErrDeposed. It may be called again after it returned: a failed migration
// goes on at the step that failed. When ctx ends in the middle of a promotion, that is undone or
// finished first, for at most Settings.Grace.
func (m *Migration) Run(ctx context.Context) error {
	if !m.begin() {
		return fmt.Errorf("migration %s is running already", m.cfg.Name)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	m.mu.Lock()
	m.mu.depose, m.mu.began = cancel, time.Now()
	m.mu.Unlock()
	var beside sync.WaitGroup
	err := m.Claim(ctx)
	if err == nil {
		beside.Go(func() { m.keepClaims(ctx) })
		beside.Go(func() { m.monitor(ctx) })
		beside.Go(func() { m.keepSequences(ctx) })
		beside.Go(func() { m.keepThrottle(ctx) })
	}
	err = m.drive(ctx, err)
	m.stopLink()
	cancel(nil)
	beside.Wait()
	m.cfg.Source.Disclaim()
	m.cfg.Target.Disclaim()
	m.end()
	return err
}

func (m *Migration) begin() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.running {
		return false
	}
	m.mu.running, m.mu.ran = true, true
	m.mu.live = live{}
	m.changedLocked()
	return true
}

func (m *Migration) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.running, m.mu.depose = false, nil
	m.mu.live.waitingFor, m.mu.live.resting = "", false
	m.changedLocked()
}

// drive makes one move after the other until none is left. err is that of the claim.
func (m *Migration) drive(ctx context.Context, err error) error {
	if errors.Is(err, ErrDriven) {
		return err // it goes on elsewhere
	}
	if err == nil {
		err = m.wake()
	}
	if err == nil {
		err = m.reconcile(ctx)
	}
	if m.snapshot().phase != Verifying { // else it begins again what was paused
		m.unhold()
	}
	for {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !errors.Is(err, errInterrupted):
			return m.fail(err)
		}
		if s := m.snapshot(); s.phase.Final() {
			return nil
		}
		err = m.move(ctx)
	}
}

// wake lets a failed migration go on where it failed.
func (m *Migration) wake() error {
	s := m.snapshot()
	if s.phase != Failed {
		return nil
	}
	return m.enter(s.failedIn, fact{}, "goes on where it failed")
}

// move does what comes next: a wish, a rest while paused, or the present phase.
func (m *Migration) move(ctx context.Context) error {
	s := m.snapshot()
	switch {
	case s.wish == Cancel && s.phase != Promoting:
		return m.finally(ctx, Cancelled)
	case s.wish == Complete:
		return m.finally(ctx, Completed)
	case s.paused:
		m.stopLink()
		return m.restPaused(ctx)
	}
	if err := m.runLink(ctx, s.phase); err != nil {
		return err
	}
	switch s.phase {
	case Pending:
		return m.enter(Preparing, fact{}, "")
	case Preparing:
		return m.pass(ctx, Copying)
	case Copying:
		return m.pass(ctx, CatchingUp)
	case CatchingUp:
		return m.pass(ctx, Following)
	case Following:
		return m.pass(ctx, Verifying)
	case Verifying:
		return m.pass(ctx, ReadsSwitched)
	case ReadsSwitched:
		if s.proven.Time.IsZero() {
			return m.enter(Verifying, fact{}, "the proof no longer holds")
		}
		return m.pass(ctx, Promoting)
	case Promoting:
		return m.promote(ctx, Source)
	case Promoted:
		return m.pass(ctx, RollingBack)
	case RollingBack:
		return m.promote(ctx, Target)
	case RolledBack:
		return m.pass(ctx, Verifying)
	case Completed, Cancelled, Failed:
	}
	return fmt.Errorf("phase %q leads nowhere", s.phase)
}

func (m *Migration) restPaused(ctx context.Context) error {
	defer m.update(func(l *live) { l.waitingFor, l.resting = "", false })
	m.update(func(l *live) { l.waitingFor, l.resting = string(Resume), true })
	return m.rest(ctx, func(s *state) bool { return !s.paused || s.wish == Cancel || s.wish == Complete })
}

// pass runs the steps of the present phase that are not done yet, stops when the operator wants
// the migration to go no further, and enters the next phase.
func (m *Migration) pass(ctx context.Context, next Phase) error {
	s := m.snapshot()
	for _, st := range m.of(s.phase) {
		if s.done[st.Name] && st.Known != nothing {
			continue
		}
		if err := m.runStep(ctx, st); err != nil {
			return err
		}
		if s := m.snapshot(); s.paused || s.wish == Cancel {
			return errInterrupted // a step that is running ends before a pause begins
		}
	}
	if s.phase == m.cfg.Settings.Until && s.phase != Promoted {
		if err := m.await(ctx, string(Promote), func(s *state) bool { return s.goOn }); err != nil {
			return err
		}
	}
	if err := m.vetted(ctx, next); err != nil {
		return err
	}
	return m.enter(next, fact{}, "")
}

// finally runs the steps that end a migration.
func (m *Migration) finally(ctx context.Context, end Phase) error {
	for _, st := range m.of(end) {
		if err := m.runStep(ctx, st); err != nil {
			return err
		}
	}
	return m.enter(end, fact{}, farewell(end, m.snapshot()))
}

// Ending reports whether somebody asked for the end, complete or cancel, and it has not come yet: what is gone from the
// databases went because of that.
func (m *Migration) Ending() bool {
	s := m.snapshot()
	return s.wish == Cancel || s.wish == Complete
}

func farewell(end Phase, s state) string {
	switch {
	case s.bare:
		return "nothing of Ficus is left in either database, and no data was touched"
	case end == Completed && len(s.archived) > 0:
		return "the target owns the data and nothing of Ficus is left; the old tables are in " + strings.Join(s.archived, ", ")
	case end == Completed:
		return "the target owns the data and nothing of Ficus is left there; the source stays fenced until ficus cleanup"
	}
	return "the source owns the data and nothing of Ficus is left there; the copied tables stay on the target"
}

// enter journals a change of phase.
func (m *Migration) enter(p Phase, f fact, why string) error {
	err := m.emit(phaseEvent(p, why), f, func(s *state) error {
		if p != Cancelled && p != Completed && (s.wish == Cancel || s.wish == Complete) && !f.Undone && s.phase != Failed {
			return errInterrupted // the command came while the last step ended
		}
		return nil
	})
	if err == nil {
		m.update(func(l *live) { l.forget() })
	}
	return err
}

func phaseEvent(p Phase, why string) Event {
	message := string(p)
	if why != "" {
		message += ": " + why
	}
	return Event{Type: eventPhase, Phase: p, Message: message}
}

// fail journals that the migration cannot go on by itself, and returns the error for Run.
func (m *Migration) fail(cause error) error {
	s := m.snapshot()
	f := fact{FailedIn: s.phase, Bare: errors.Is(cause, errBare), Error: cause.Error(), Hint: hint.Of(cause)}
	if f.Hint == "" {
		f.Hint = fmt.Sprintf("mend the cause, then go on where it stopped: ficus resume %s while it runs, else the same command again; to give up: ficus cancel %[1]s", m.cfg.Name)
		cause = hint.Wrap(cause, "%s", f.Hint)
	}
	cause = fmt.Errorf("migration %s: %s: %w", m.cfg.Name, s.phase, cause)
	if s.phase == Failed { // it could not even wake up
		return cause
	}
	if err := m.emit(phaseEvent(Failed, f.Error), f, nil); err != nil {
		return errors.Join(cause, err)
	}
	return cause
}

// runStep runs one step outside a promotion and journals its beginning and end. What may pass by
// itself is tried again for ever, in sight.
func (m *Migration) runStep(ctx context.Context, st step) error {
	began := time.Now()
	if err := m.emit(stepEvent(st.Name, stepStarted, ""), fact{Step: st.Name, State: stepStarted}, nil); err != nil {
		return err
	}
	ctx, done, err := m.interruptible(ctx)
	if err != nil {
		return err
	}
	defer done()

	retry := pause{min: time.Second, max: 30 * time.Second}
	for {
		err = st.run(m, ctx, nil)
		if cause := context.Cause(ctx); err != nil && cause != nil {
			return cause // a command, a link that died, or the end of the process
		}
		if err == nil || errors.Is(err, errInterrupted) {
			break
		}
		err = fmt.Errorf("%s: %w", st.Name, err)
		if !m.cfg.Retryable(err) {
			break
		}
		m.trouble(err)
		if err := retry.wait(ctx); err != nil {
			return err
		}
	}
	m.trouble(nil)
	return m.stepEnded(st, began, err)
}

func (m *Migration) stepEnded(st step, began time.Time, err error) error {
	f := fact{Step: st.Name, State: stepDone, Took: time.Since(began)}
	switch {
	case errors.Is(err, errInterrupted):
		return err
	case err != nil:
		f.State, f.Error, f.Hint = stepFailed, err.Error(), hint.Of(err)
		return errors.Join(err, m.emit(stepEvent(st.Name, stepFailed, f.Error), f, nil))
	}
	m.mu.Lock()
	f.Copied, m.mu.live.copied = m.mu.live.copied, nil
	m.mu.Unlock()
	return m.emit(stepEvent(st.Name, stepDone, ""), f, nil)
}

func stepEvent(name string, state stepState, more string) Event {
	e := Event{Type: eventStep, Message: name + ": " + string(state)}
	if more != "" {
		e.Message += ": " + more
	}
	return e
}

// interruptible returns a context that commands and a dying link can end until done is called.
func (m *Migration) interruptible(ctx context.Context) (_ context.Context, done func(), err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.mu.state.wish == Cancel && m.mu.state.phase == Promoting:
		cancel(nil)
		return nil, nil, errInterrupted
	case m.mu.state.wish == Cancel:
		return ctx, func() { cancel(nil) }, nil // this is the cancelling itself
	case m.lostLinkLocked() != nil:
		cancel(nil)
		return nil, nil, m.lostLinkLocked()
	}
	m.mu.interrupt = cancel
	return ctx, func() {
		m.mu.Lock()
		m.mu.interrupt = nil
		m.mu.Unlock()
		cancel(nil)
	}, nil
}

// await rests until cond holds, with the reason shown. It ends with errInterrupted when a command
// changes what is to be done.
func (m *Migration) await(ctx context.Context, waitingFor string, cond func(*state) bool) error {
	defer m.update(func(l *live) { l.waitingFor, l.resting = "", false })
	m.update(func(l *live) { l.waitingFor, l.resting = waitingFor, true })
	return m.restUnlessInterrupted(ctx, cond)
}

func (m *Migration) restUnlessInterrupted(ctx context.Context, cond func(*state) bool) error {
	met := false
	err := m.rest(ctx, func(s *state) bool {
		met = cond(s)
		return met || s.paused || s.wish == Cancel || s.wish == Complete || m.mu.live.relink
	})
	if err == nil && !met {
		return errInterrupted
	}
	return err
}

// rest returns nil once cond, called with mu held, says so, and an error when the link that the
// phase needs is lost. Meanwhile it sees to it that the owner can write.
func (m *Migration) rest(ctx context.Context, cond func(*state) bool) error {
	for {
		m.mu.Lock()
		ok, lost, changed := cond(&m.mu.state), m.lostLinkLocked(), m.mu.changed
		m.mu.Unlock()
		if ok {
			return nil
		}
		if lost != nil {
			return lost
		}
		if time.Since(m.watched) >= m.cfg.Settings.Watch {
			m.watched = time.Now()
			if err := m.watch(ctx); err != nil {
				return err
			}
		}
		timer := time.NewTimer(time.Until(m.watched.Add(m.cfg.Settings.Watch)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// snapshot copies the state.
func (m *Migration) snapshot() state {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.state.clone()
}

// update changes what is shown and does not outlive the process.
func (m *Migration) update(change func(*live)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.mu.live)
	m.changedLocked()
}

// trouble shows an error that is being retried, or that it has passed.
func (m *Migration) trouble(err error) {
	if err != nil {
		m.cfg.Log.Warn("will try again", slog.Any("err", err))
	}
	m.update(func(l *live) { l.trouble = err })
}

func (m *Migration) changedLocked() {
	close(m.mu.changed)
	m.mu.changed = make(chan struct{})
}

func (m *Migration) database(s Side) Database {
	if s == Source {
		return driven{m.cfg.Source, m}
	}
	return driven{m.cfg.Target, m}
}

// linkFrom returns the link that starts at a side; nil when there is none.
func (m *Migration) linkFrom(s Side) Link {
	if s == Source {
		return m.cfg.Forward
	}
	if len(m.lossy()) > 0 {
		return nil
	}
	return m.cfg.Reverse
}

// lossy says why there is no way back; nothing when there is one.
func (m *Migration) lossy() []string {
	if m.cfg.Reverse == nil {
		return m.cfg.Lossy
	}
	return m.cfg.Loses()
}
