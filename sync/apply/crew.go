package apply

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"strconv"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/internal/pg"
)

// restAfter is how many batches the lane writes after the crew was refused one: what made them depend on
// each other unseen is likely to be in the next ones, too.
const restAfter = 16

// numberSQL has a flight hold its number until its transaction has ended, or waits for that of another one.
const numberSQL = `SELECT pg_catalog.pg_advisory_xact_lock($1::int4, $2::int4)`

// errTurnedBack is an answer of the server to a flight of the crew, which has been taken back.
var errTurnedBack = errors.New("turned back")

// A crew writes several batches at a time, each over a session of its own, and commits them in order:
//
//	session 1 | BEGIN lock 1 rows        move COMMIT |
//	session 2 |  BEGIN lock 2 rows        lock 1 ... held rows move COMMIT |
//	session 3 |   BEGIN lock 3 rows                   lock 2 ...            held rows move COMMIT |
//
// A flight begins by locking its number, and before it ends locks the number of the flight before, which it
// is given when that one's transaction has ended; by then it sees what was committed. Nobody here waits for
// an answer to send the next command, and where two flights stand in each other's way the server finds the
// deadlock.
//
// Rows that a flight in the air also touches are held back until then, see divide. That is an optimization,
// not what makes it right: each update and delete fails that does not find its row, an insert that finds one
// in its way, and no flight commits unless the progress stands where the one before it leads to. What is
// refused is taken back, with all behind it, and goes over the lane.
//
// Source: the idea is that of logical replication with streaming = parallel, and of MySQL's
// replica_preserve_commit_order.
type crew struct {
	class string // of the numbers' locks
	mates []*mate
	jobs  chan *flight
	least limits // a smaller batch goes over the lane, at once

	number int64             // of the last flight
	last   *aside            // the last flight, while it may be in the air
	landed atomic.Int64      // number of the last one that is committed
	newest map[uint64]int64  // which flight touched a key last, by its hash
	kept   []touchedByFlight // what to take out of newest, by number
	rest   int               // so many batches go over the lane first

	seed    maphash.Seed
	prefix  map[*table][]byte // of what is hashed
	scratch []byte
}

type touchedByFlight struct {
	number int64
	keys   []uint64
}

// An aside is what a flight over a session of the crew has besides.
type aside struct {
	number     int64
	before     *aside // nil: everything before it is committed
	free, held []stmt
	move       command

	locked   chan struct{} // closed when the server holds its number, or never will
	recorded chan struct{} // closed when the touched keys are
	outcome  chan error
}

// A mate is one session of the crew.
type mate struct {
	sender
	class string
}

// hire makes the crew; nil where there is none.
func (a *Applier) hire(ctx context.Context, fires bool) (*crew, error) {
	if a.cfg.Workers < 2 || fires || a.cfg.inOrder { // triggers may see what is not there yet
		return nil, nil
	}
	c := &crew{
		class: strconv.Itoa(int(int32(crc32.ChecksumIEEE([]byte("ficus apply " + a.cfg.Link))))), jobs: make(chan *flight),
		least:  limits{rows: a.limits.rows / 10, bytes: a.limits.bytes / 10},
		newest: map[uint64]int64{}, seed: maphash.MakeSeed(), prefix: map[*table][]byte{},
	}
	c.mates = make([]*mate, a.cfg.Workers)
	g, connecting := errgroup.WithContext(ctx)
	for i := range c.mates {
		g.Go(func() error {
			s, err := a.connect(connecting)
			if err != nil {
				return err
			}
			c.mates[i] = &mate{newSender(s, a.cfg.copyRows), c.class}
			return a.setUp(connecting, s)
		})
	}
	if err := g.Wait(); err != nil {
		c.dismiss(ctx)
		return nil, err
	}
	return c, nil
}

// dismiss ends the sessions.
func (c *crew) dismiss(ctx context.Context) {
	if c == nil {
		return
	}
	for _, m := range c.mates {
		if m != nil {
			m.close(ctx)
		}
	}
}

// run has the crew write what it is given.
func (c *crew) run(ctx context.Context, a *Applier, g *errgroup.Group, lead *session) {
	if c == nil {
		return
	}
	pids := []uint32{lead.conn.PgConn().PID()}
	for _, m := range c.mates {
		pids = append(pids, m.conn.PgConn().PID())
	}
	for _, m := range c.mates {
		g.Go(func() error { return a.watch(ctx, m.session, pids...) })
		g.Go(func() error {
			defer m.interrupt(ctx)()
			return m.run(ctx, c.jobs)
		})
	}
}

// takes reports whether a batch goes over the crew's sessions.
func (c *crew) takes(b *batch, stmts []stmt) bool {
	if c == nil || b.part || len(b.ops) < c.least.rows && b.weight() < c.least.bytes {
		return false
	}
	for i := range stmts {
		if stmts[i].shape.verb == verbTruncate {
			return false
		}
	}
	if c.rest > 0 {
		c.rest--
		return false
	}
	return true
}

// out reports whether a flight may be in the air.
func (c *crew) out() bool { return c != nil && c.last != nil }

// home takes note that none is.
func (c *crew) home() {
	if c == nil {
		return
	}
	c.last, c.kept = nil, nil
	clear(c.newest)
	clear(c.prefix) // tables are bound anew when they change
}

// aside makes the next flight's.
func (c *crew) aside(stmts []stmt, move command) *aside {
	c.number++
	a := &aside{
		number: c.number, before: c.last, move: move,
		locked: make(chan struct{}), recorded: make(chan struct{}), outcome: make(chan error, 1),
	}
	a.free, a.held = c.divide(stmts)
	c.last = a
	return a
}

// divide tells the rows that no flight in the air touches from those that have to wait for it. Keys are
// compared as the stream writes them; two keys of one hash only wait in vain.
func (c *crew) divide(stmts []stmt) (free, held []stmt) {
	landed := c.landed.Load()
	for len(c.kept) > 0 && c.kept[0].number <= landed {
		for _, k := range c.kept[0].keys {
			if c.newest[k] <= landed {
				delete(c.newest, k)
			}
		}
		c.kept = c.kept[1:]
	}
	mine := touchedByFlight{number: c.number}
	for i := range stmts {
		s := &stmts[i]
		var waits []bool // made when the first row does
		for j := range s.rows {
			first := len(mine.keys)
			mine.keys = c.hash(mine.keys, s.shape.table, &s.rows[j])
			for _, k := range mine.keys[first:] {
				if c.newest[k] > landed {
					if waits == nil {
						waits = make([]bool, len(s.rows))
					}
					waits[j] = true
				}
			}
		}
		if waits == nil {
			free = append(free, *s)
			continue
		}
		now, later := stmt{shape: s.shape}, stmt{shape: s.shape}
		for j, r := range s.rows {
			if waits[j] {
				later.rows = append(later.rows, r)
			} else {
				now.rows = append(now.rows, r)
			}
		}
		if len(now.rows) > 0 {
			free = append(free, now)
		}
		held = append(held, later)
	}
	for _, k := range mine.keys {
		c.newest[k] = c.number
	}
	c.kept = append(c.kept, mine)
	return free, held
}

// hash appends what a row touches: its keys, before and after. A table without key is one thing, and so is
// one of which only some rows are at the destination, where a row that is not found is no error.
func (c *crew) hash(keys []uint64, t *table, r *imagePair) []uint64 {
	prefix := c.prefix[t]
	if prefix == nil {
		prefix = []byte(t.target.name.String() + "\x00")
		c.prefix[t] = prefix
	}
	c.scratch = append(c.scratch[:0], prefix...)
	b := c.scratch
	if !t.whole && t.mapping.Where == "" {
		if r.key != nil {
			for _, v := range r.key {
				b = appendValue(b, v)
			}
			keys = append(keys, maphash.Bytes(c.seed, b))
		}
		if r.row == nil || r.key != nil && !t.moves(r.key, r.row) {
			c.scratch = b
			return keys
		}
		b = b[:len(prefix)]
		for _, k := range t.key {
			b = appendValue(b, r.row[k.param])
		}
	}
	c.scratch = b
	return append(keys, maphash.Bytes(c.seed, b))
}

// sendAside gives a batch to the crew. Nothing of the lane's own is in the air with what the crew has.
func (l *lane) sendAside(ctx context.Context, b *batch, stmts []stmt) error {
	if !l.crew.out() {
		if err := l.settle(ctx); err != nil {
			return err
		}
	}
	f := &flight{batch: b, from: l.at, aside: l.crew.aside(stmts, l.w.move(l.at, b))}
	if err := l.fly(ctx, f); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case l.crew.jobs <- f:
	}
	if l.w.touch != nil { // in order: the last to touch a key says when
		if err := l.w.touch(ctx, touched(stmts, b.end())); err != nil {
			return fmt.Errorf("record touched keys: %w", err)
		}
	}
	close(f.aside.recorded)
	l.at = b.end()
	return nil
}

// run writes flights as they come. Those that the server refuses are told so; what it returns is the end
// of the session.
func (m *mate) run(ctx context.Context, jobs <-chan *flight) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case f := <-jobs:
			if err := m.fly(ctx, f.aside); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return err
			}
		}
	}
}

// fly writes one batch and commits it.
func (m *mate) fly(ctx context.Context, a *aside) error {
	if err := m.forget(ctx); err != nil {
		return err
	}
	type answer struct {
		done int
		tag  string
		err  error
	}
	heard := make(chan answer, 1)
	go func() {
		done, tag, err := m.answer(func(done int) {
			if done == 2 {
				close(a.locked)
			}
		})
		heard <- answer{done, tag, err}
	}()
	commands, err := m.send(ctx, a)
	if err != nil && ctx.Err() == nil { // the server has no reason to answer: nothing that ends is on its way
		_ = m.conn.PgConn().Conn().Close()
	}
	got := <-heard
	if got.done < 2 {
		close(a.locked)
	}
	switch {
	case err != nil:
		return err
	case got.err == nil && (got.done != commands || got.tag != "COMMIT"):
		return fmt.Errorf("flight %d ended with %s, after %d of %d commands", a.number, got.tag, got.done, commands)
	case got.err != nil:
		if pg.Code(got.err) == "" {
			return got.err
		}
		m.unlearn(m.parsed)
		if _, err := m.conn.PgConn().Exec(ctx, "ROLLBACK").ReadAll(); err != nil {
			return err
		}
		got.err = fmt.Errorf("%w: %w", errTurnedBack, got.err)
	}
	m.parsed = nil
	a.outcome <- got.err
	return nil
}

// send sends all that a flight consists of, and returns how many commands that were.
func (m *mate) send(ctx context.Context, a *aside) (commands int, err error) {
	number := func(of *aside) command {
		return simple(numberSQL, m.class, strconv.Itoa(int(int32(of.number))))
	}
	before := []command{simple("BEGIN"), number(a)}
	after := []command{a.move, simple("COMMIT")}
	for i := range before {
		m.command(&before[i])
	}
	m.wire.flushAnswers()
	m.wire.flush()
	for i := range a.free {
		m.statement(&a.free[i])
	}
	m.wire.flush()
	if a.before != nil {
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-a.before.locked:
		}
		turn := number(a.before)
		m.command(&turn)
		commands++
	}
	for i := range a.held {
		m.statement(&a.held[i])
	}
	select {
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-a.recorded:
	}
	for i := range after {
		m.command(&after[i])
	}
	m.wire.sync()
	m.wire.flush()
	m.wire.shrink()
	return commands + len(before) + len(a.free) + len(a.held) + len(after), m.wire.err
}
