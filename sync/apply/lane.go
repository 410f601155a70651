package apply

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

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
// Two goroutines work: run sends, hear reads the answers. After drain only run does.
type lane struct {
	app      *Applier
	w        *writer // the slow path; its own while hear does nothing
	progress func()  // called after each commit
	batches  handover

	wire wire
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

	drained chan struct{} // instead of all else: closed once everything before it was heard of
}

func newLane(a *Applier, w *writer, batches handover, progress func()) *lane {
	l := &lane{
		app: a, w: w, progress: progress, batches: batches, at: w.at,
		flights: make(chan *flight, mostFlights+1), landed: make(chan struct{}, 1), refused: make(chan struct{}),
	}
	l.wire.out = w.conn.PgConn().Conn()
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
		room := flights == 0 || flights < l.mu.width && l.mu.bytes < 2*l.app.limits.bytes
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
	n := l.app.gate.enter(b.txns)
	if n == 0 {
		if err := l.settle(ctx); err != nil {
			return nil, nil, err
		}
		if n, err = l.app.gate.await(ctx, b.txns); err != nil {
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
	if len(l.w.known) > keptStatements {
		if err := l.settle(ctx); err != nil {
			return err
		}
		if err := l.w.forget(ctx); err != nil {
			return err
		}
	}
	before, after := l.frame(b)
	f := &flight{batch: b, from: l.at, open: l.open, commands: len(before) + len(stmts) + len(after)}
	if err := l.fly(ctx, f); err != nil {
		return err
	}
	for i := range before {
		l.command(f, &before[i])
	}
	for i := range stmts {
		l.statement(f, &stmts[i])
	}
	if l.w.touch != nil {
		l.wire.flush() // the destination is at work meanwhile
		if err := l.w.touch(ctx, touched(stmts, b.end())); err != nil {
			return fmt.Errorf("record touched keys: %w", err)
		}
	}
	for i := range after {
		l.command(f, &after[i])
	}
	l.wire.sync()
	l.wire.flush()
	l.wire.shrink()
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

func (l *lane) command(f *flight, c *command) {
	p := l.prepare(f, statement{text: c.text})
	l.wire.texts(p.name, c.params)
}

func (l *lane) statement(f *flight, s *stmt) {
	if s.shape.verb == verbTruncate {
		text, _ := s.shape.sql(viaText, false)
		l.wire.parse("", text)
		l.wire.texts("", nil)
		return
	}
	// As a replica the session inserts every row or fails: nothing can leave one out.
	sure := s.shape.verb != verbInsert || l.w.fires
	if !sure && len(s.rows) >= l.app.cfg.copyRows && s.shape.table.copies() {
		p := l.prepare(f, statement{shape: s.shape, via: viaCopy})
		l.wire.copy(p.name, p.args, s.rows)
		return
	}
	p := l.prepare(f, statement{shape: s.shape, via: viaTyped, sure: sure})
	if !l.wire.arrays(p.name, p.args, s.rows, sure) { // a value has no form but text
		p = l.prepare(f, statement{shape: s.shape, via: viaText, sure: sure})
		l.wire.arrays(p.name, p.args, s.rows, sure)
	}
}

// prepare makes the server know a statement, on the way.
func (l *lane) prepare(f *flight, s statement) *prepared {
	if p := l.w.known[s]; p != nil {
		return p
	}
	p := l.w.named()
	if p.text = s.text; p.text == "" {
		p.text, p.args = s.shape.sql(s.via, s.sure)
	}
	l.w.known[s] = p
	f.parsed = append(f.parsed, s)
	l.wire.parse(p.name, p.text)
	return p
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
		return nil
	}
}

// recover has the slow path write the refused batch, and sends those behind it again, one at a time.
func (l *lane) recover(ctx context.Context) error {
	failed := l.failed
	l.failed, l.refused = nil, make(chan struct{})
	for _, f := range failed {
		for _, s := range f.parsed {
			delete(l.w.known, s) // it may not have come that far
		}
		f.parsed = nil
	}
	if err := l.slow(ctx, failed[0].batch, true); err != nil {
		return err
	}
	for i, f := range failed[1:] {
		if err := l.send(ctx, f.batch); err != nil {
			return err
		}
		if err := l.drain(ctx); err != nil {
			return err
		}
		if len(l.failed) > 0 { // those after it are on no way
			l.failed = append(l.failed, failed[i+2:]...)
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
	done, err := l.answer(f)
	if err != nil && !refused(err) {
		return err
	}
	arrived := err == nil
	switch first := len(l.failed) == 0; {
	case arrived && !first:
		return fmt.Errorf("batch up to %s was committed after one before it was refused", f.batch.end())
	case arrived && f.batch.more:
		l.w.open = true
		l.w.rows += len(f.batch.ops)
	case arrived:
		l.w.at, l.w.open = f.batch.end(), false
		l.app.committed(ctx, l.w, f.batch)
		l.progress()
	case first && !f.open && done == 1 && pg.Code(err) == codeDivisionByZero:
		return fmt.Errorf("progress of %s at %s: %w", l.w.link, f.from, errMoved)
	case first && done == f.commands-1 && !f.batch.more:
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

// answer reads what the server says to a flight: how many of its commands it has done, and why no more.
func (l *lane) answer(f *flight) (done int, refusal error) {
	frontend := l.w.conn.PgConn().Frontend()
	tag := ""
	for {
		message, err := frontend.Receive()
		if err != nil {
			if refusal != nil { // the last that it said
				return done, refusal
			}
			return done, err
		}
		switch m := message.(type) {
		case *pgproto3.CommandComplete:
			done++
			tag = string(m.CommandTag)
		case *pgproto3.ErrorResponse:
			refusal = pgconn.ErrorResponseToPgError(m)
		case *pgproto3.ReadyForQuery:
			if refusal == nil && (done != f.commands || !f.batch.more && tag != "COMMIT") {
				return done, fmt.Errorf("batch up to %s ended with %s, after %d of %d commands", f.batch.end(), tag, done, f.commands)
			}
			return done, refusal
		}
	}
}

// interrupt ends what blocks on the connection when ctx is done; release undoes it.
func interrupt(ctx context.Context, conn net.Conn) (release func()) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	return func() {
		stop()
		_ = conn.SetDeadline(time.Time{})
	}
}
