package apply

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pg"
)

// mostFlights bounds how many batches are on their way at a time, besides limits.bytes twice over. The
// bytes fill a long network; many small batches would only be many commits.
const mostFlights = 8

// A lane is the fast path. It keeps several batches on their way to the destination, so that neither
// the time that a message travels is lost nor the time in which the next batch is made:
//
//	sent   | BEGIN move rows COMMIT | BEGIN move rows COMMIT | BEGIN ...
//	done             | BEGIN move rows COMMIT | BEGIN move rows COMMIT | ...
//	heard                                     |           committed              |
//
// When a batch is sent it is not known yet whether those before it were committed. Where one is not,
// none after it may be, and the server sees to it:
//
//   - What fails before its COMMIT leaves the session in a failed transaction, in which everything
//     fails that follows, up to a ROLLBACK. Nothing but [lane.recover] sends one.
//   - A batch begins by moving the progress from where the batch before it leads to, and fails where it
//     does not stand there: because that COMMIT failed, or another session has moved it.
//
// Nor is it known how many rows a statement hit, so the statements are sure ones, see shape.sql.
//
// Whatever is refused drains the lane. What was on its way behind it has failed as well, and is
// written again once the slow path has written the refused batch. The lane is then narrow, and widens
// with every batch that arrives.
//
// Two goroutines work: run sends, hear reads the answers. After drain only run does. Where there is a crew,
// batches that are worth it go out over its sessions instead.
type lane struct {
	app      *Applier
	w        *writer // the slow path; its own while hear does nothing
	progress func()  // called after each commit
	batches  handover
	crew     *crew // nil where there is none

	sender
	at   change.LSN // where the destination stands once everything sent is committed
	open bool       // a target transaction is open then
	seal bool       // which has decisions to seal, see sealDecisions

	flights chan *flight  // sent and not heard of yet
	landed  chan struct{} // has something after a flight was heard of
	refused chan struct{} // closed when the first of failed is
	failed  []*flight     // refused, and those on their way behind it

	mu struct {
		sync.Mutex
		flights, bytes int // in the air
		width          int // how many flights may be
	}
}

// A flight is a batch on its way.
type flight struct {
	batch    *batch
	commands int         // that it consists of
	from     change.LSN  // where the lane stood before it
	open     bool        // likewise
	parsed   []statement // that the server learns by it
	aside    *aside      // over a session of the crew; nil: over the lane's own

	drained chan struct{} // instead of all else: closed once everything before it was heard of
}

func newLane(a *Applier, w *writer, c *crew, batches handover, progress func()) *lane {
	l := &lane{
		app: a, w: w, progress: progress, batches: batches, crew: c, at: w.at, sender: newSender(w.session, a.cfg.copyRows),
		flights: make(chan *flight, mostFlights+1), landed: make(chan struct{}, 1), refused: make(chan struct{}),
	}
	l.mu.width = mostFlights
	return l
}

// run sends batches as they come, where the gate lets it.
func (l *lane) run(ctx context.Context) error {
	for {
		b, err := l.next(ctx)
		switch {
		case err != nil:
			return err
		case b == nil:
			if err := l.settle(ctx); err != nil {
				return err
			}
			continue
		case b.err != nil:
			if err := l.settle(ctx); err != nil {
				return err
			}
			return b.err
		}
		for b != nil {
			var now *batch
			if now, b, err = l.enter(ctx, b); err != nil {
				return err
			}
			if err := l.send(ctx, now); err != nil {
				return err
			}
		}
	}
}

// next waits for the next batch, and until there is room for it; nil: one was refused.
func (l *lane) next(ctx context.Context) (*batch, error) {
	for {
		l.mu.Lock()
		flights := l.mu.flights
		room := flights == 0 || flights < l.mu.width && l.mu.bytes < l.app.mostInTheAir()
		l.mu.Unlock()
		var full, some <-chan *batch
		if room {
			full = l.batches.full
		}
		if flights == 0 {
			some = l.batches.any
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-l.refused:
			return nil, nil
		case <-l.landed:
		case b := <-full:
			return b, nil
		case b := <-some:
			return b, nil
		}
	}
}

// enter splits off what the gate lets through now. It waits with nothing in the air: who holds the
// gate waits for all of that.
func (l *lane) enter(ctx context.Context, b *batch) (now, later *batch, err error) {
	n := l.app.gate.enter(b.txns, l.open)
	if n == 0 {
		if err := l.settle(ctx); err != nil {
			return nil, nil, err
		}
		if n, err = l.app.gate.await(ctx, b.txns, l.open); err != nil {
			return nil, nil, err
		}
	}
	now, later = b.cut(n)
	return now, later, nil
}

// send puts a batch on its way. Where the order of rows matters the slow path writes it.
func (l *lane) send(ctx context.Context, b *batch) error {
	stmts, ok := planFolded(b.ops)
	if !ok || l.app.cfg.inOrder {
		if err := l.settle(ctx); err != nil {
			return err
		}
		return l.slow(ctx, b, false)
	}
	if l.crew.takes(b, stmts) {
		return l.sendAside(ctx, b, stmts)
	}
	if l.crew.out() {
		if err := l.settle(ctx); err != nil {
			return err
		}
	}
	if len(l.known) > keptStatements {
		if err := l.settle(ctx); err != nil {
			return err
		}
		if err := l.forget(ctx); err != nil {
			return err
		}
	}
	before, after := l.frame(b)
	f := &flight{batch: b, from: l.at, open: l.open, commands: len(before) + len(stmts) + len(after)}
	if err := l.fly(ctx, f); err != nil {
		return err
	}
	for i := range before {
		l.command(&before[i])
	}
	for i := range stmts {
		l.statement(&stmts[i])
	}
	if l.w.touch != nil {
		l.wire.flush() // the destination is at work meanwhile
		if err := l.w.touch(ctx, touched(stmts, b.end())); err != nil {
			return fmt.Errorf("record touched keys: %w", err)
		}
	}
	for i := range after {
		l.command(&after[i])
	}
	l.wire.sync()
	l.wire.flush()
	l.wire.shrink()
	f.parsed, l.parsed = l.parsed, nil
	if l.open = b.more; !l.open {
		l.at, l.seal = b.end(), false
	}
	if l.wire.err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return l.wire.err
}

// frame returns the commands before and after the rows of a batch. The parts of a large transaction
// have savepoints, so that the slow path can write one of them again.
func (l *lane) frame(b *batch) (before, after []command) {
	move := l.w.move(l.at, b)
	switch {
	case !b.part:
		return []command{simple("BEGIN"), move}, []command{simple("COMMIT")}
	case !l.open:
		before = []command{simple("BEGIN"), simple(lockSQL, l.w.link, l.at.String())}
	default:
		before = []command{simple("RELEASE SAVEPOINT part")}
	}
	before = append(before, simple("SAVEPOINT part"))
	if l.seal && !b.more {
		after = append(after, l.w.sealDecisions(b.end()))
	}
	if !b.more {
		after = append(after, move, simple("COMMIT"))
	}
	return before, after
}

// fly counts a flight, and has it heard of.
func (l *lane) fly(ctx context.Context, f *flight) error {
	l.mu.Lock()
	l.mu.flights++
	l.mu.bytes += f.batch.weight()
	l.mu.Unlock()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case l.flights <- f:
		return nil
	}
}

// settle waits until nothing is in the air, and writes what was refused.
func (l *lane) settle(ctx context.Context) error {
	for {
		if err := l.drain(ctx); err != nil || len(l.failed) == 0 {
			return err
		}
		if err := l.recover(ctx); err != nil {
			return err
		}
	}
}

// drain waits until everything sent was heard of.
func (l *lane) drain(ctx context.Context) error {
	f := &flight{drained: make(chan struct{})}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case l.flights <- f:
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-f.drained:
		l.crew.home()
		return nil
	}
}

// recover has the slow path write the refused batch, and sends those behind it again, one at a time. What
// the crew was refused the lane tries first.
func (l *lane) recover(ctx context.Context) error {
	failed := l.failed
	l.failed, l.refused = nil, make(chan struct{})
	for _, f := range failed {
		l.unlearn(f.parsed) // it may not have come that far
		f.parsed = nil
	}
	if failed[0].aside != nil {
		l.crew.rest, l.at = restAfter, failed[0].from
	} else {
		if err := l.slow(ctx, failed[0].batch, true); err != nil {
			return err
		}
		failed = failed[1:]
	}
	for i, f := range failed {
		if err := l.send(ctx, f.batch); err != nil {
			return err
		}
		if err := l.drain(ctx); err != nil {
			return err
		}
		if len(l.failed) > 0 { // those after it are on no way
			l.failed = append(l.failed, failed[i+1:]...)
			return nil
		}
	}
	return nil
}

// slow has the slow path write a batch, with nothing in the air.
func (l *lane) slow(ctx context.Context, b *batch, again bool) error {
	if err := l.w.write(ctx, b, again); err != nil {
		return l.app.writeBefore(ctx, l.w, b, err)
	}
	l.at, l.open, l.seal = l.w.at, l.w.open, l.w.open && l.w.decided > 0
	if !b.more {
		l.app.committed(ctx, l.w, b)
		l.progress()
	}
	return nil
}

// hear reads the answers to what was sent.
func (l *lane) hear(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case f := <-l.flights:
			if f.drained != nil {
				close(f.drained)
				continue
			}
			if err := l.land(ctx, f); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return err
			}
		}
	}
}

// land takes note of how a flight ended.
func (l *lane) land(ctx context.Context, f *flight) error {
	done, err := l.outcome(ctx, f)
	if err != nil && !refused(err) && !errors.Is(err, errTurnedBack) {
		return err
	}
	arrived, own := err == nil, f.aside == nil
	switch first := len(l.failed) == 0; {
	case arrived && !first:
		return fmt.Errorf("batch up to %s was committed after one before it was refused", f.batch.end())
	case arrived && f.batch.more:
		l.w.open = true
		l.w.rows += len(f.batch.ops)
	case arrived:
		l.w.at, l.w.open, l.w.parallel = f.batch.end(), false, !own
		if !own {
			l.crew.landed.Store(f.aside.number)
		}
		l.app.committed(ctx, l.w, f.batch)
		l.progress()
	case first && own && !f.open && done == 1 && pg.Code(err) == codeDivisionByZero:
		return fmt.Errorf("progress of %s at %s: %w", l.w.link, f.from, errMoved)
	case first && own && done == f.commands-1 && !f.batch.more:
		return fmt.Errorf("commit everything up to %s: %w", f.batch.end(), withoutValues(err))
	default:
		if first {
			close(l.refused)
		}
		l.failed = append(l.failed, f)
	}
	l.mu.Lock()
	l.mu.flights--
	l.mu.bytes -= f.batch.weight()
	if arrived {
		l.mu.width = min(l.mu.width+1, mostFlights)
	} else {
		l.mu.width = 1
	}
	l.mu.Unlock()
	select {
	case l.landed <- struct{}{}:
	default: // it is known already
	}
	return nil
}

// outcome waits for the answers to a flight: how many of its commands the server has done, and why no more.
func (l *lane) outcome(ctx context.Context, f *flight) (done int, refusal error) {
	if f.aside != nil {
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case err := <-f.aside.outcome:
			return 0, err
		}
	}
	done, tag, err := l.answer(nil)
	if err == nil && (done != f.commands || !f.batch.more && tag != "COMMIT") {
		return done, fmt.Errorf("batch up to %s ended with %s, after %d of %d commands", f.batch.end(), tag, done, f.commands)
	}
	return done, err
}
