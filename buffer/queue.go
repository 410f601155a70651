package buffer

import (
	"cmp"
	"container/list"
	"context"
	"sync"
	"time"
)

// Defaults of Config.
const (
	DefaultMaxHeld = 10_000
	DefaultMaxWait = 30 * time.Second
	DefaultGrace   = time.Second
)

// Config sets the bounds of a Queue. The zero value means the defaults.
type Config struct {
	// MaxHeld is how many tickets may be in the queue; one more is refused (default 10,000).
	MaxHeld int
	// MaxWait is how long one ticket waits for a release (default 30 s).
	MaxWait time.Duration
	// Grace is how long after the release a ticket may keep those behind it from going (default 1 s).
	Grace time.Duration
}

// A Queue lets everyone pass while open, and keeps them in order while held and while draining.
type Queue struct {
	cfg Config

	mu struct {
		sync.Mutex
		held, closed bool
		changed      chan struct{} // closed and replaced when held or closed changes
		released     time.Time     // when held last became false
		tickets      list.List     // of *Ticket, oldest first
		empty        chan struct{} // closed while nothing is held and no ticket is left
	}
}

// New returns an open queue.
func New(cfg Config) *Queue {
	q := &Queue{cfg: Config{
		MaxHeld: cmp.Or(cfg.MaxHeld, DefaultMaxHeld),
		MaxWait: cmp.Or(cfg.MaxWait, DefaultMaxWait),
		Grace:   cmp.Or(cfg.Grace, DefaultGrace),
	}}
	q.mu.changed = make(chan struct{})
	q.mu.empty = make(chan struct{})
	close(q.mu.empty)
	return q
}

// Hold makes everyone who comes from now on wait. Tickets that were released and are not done keep
// their place: their next Wait blocks again.
func (q *Queue) Hold() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.held || q.mu.closed {
		return
	}
	if q.mu.tickets.Len() == 0 {
		q.mu.empty = make(chan struct{})
	}
	q.mu.held = true
	q.changeLocked()
}

// Release lets the held tickets go, in order.
func (q *Queue) Release() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.mu.held {
		return
	}
	q.mu.held = false
	q.mu.released = time.Now()
	if q.mu.tickets.Len() == 0 {
		close(q.mu.empty)
	}
	q.changeLocked()
}

// Close answers everyone who waits, now and later, with reason Closed.
func (q *Queue) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.closed {
		return
	}
	q.mu.closed = true
	q.changeLocked()
}

// Open lets a closed queue take tickets again.
func (q *Queue) Open() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mu.closed = false
}

// Len returns how many tickets are in the queue.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.mu.tickets.Len()
}

// Drained is closed while nothing is held and every ticket is done. Ask again after each Hold.
func (q *Queue) Drained() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.mu.empty
}

// Join takes the next place. It returns a nil Ticket, which needs neither Wait nor Done, when
// nothing is held and nobody is in front, and an *Error when the queue is full or closed.
func (q *Queue) Join() (*Ticket, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.mu.tickets.Len()
	switch {
	case q.mu.closed:
		return nil, &Error{Reason: Closed, Held: n}
	case !q.mu.held && n == 0:
		return nil, nil
	case n >= q.cfg.MaxHeld:
		return nil, &Error{Reason: Full, Held: n}
	}
	t := &Ticket{q: q, joined: time.Now(), first: make(chan struct{})}
	t.at = q.mu.tickets.PushBack(t)
	if n == 0 {
		close(t.first)
	}
	return t, nil
}

func (q *Queue) changeLocked() {
	close(q.mu.changed)
	q.mu.changed = make(chan struct{})
}

// A Ticket is one caller's place in a Queue. Its methods are for one goroutine at a time.
type Ticket struct {
	q      *Queue
	at     *list.Element // nil once the ticket has left; guarded by q.mu
	joined time.Time
	first  chan struct{} // closed when no older ticket is left
}

// Wait blocks while the queue is held. On an error the ticket has left the queue. It may be called
// again, when a new Hold came before the ticket's turn was used.
func (t *Ticket) Wait(ctx context.Context) error {
	timer := time.NewTimer(time.Until(t.joined.Add(t.q.cfg.MaxWait)))
	defer timer.Stop()
	for {
		held, closed, changed, _ := t.q.state()
		switch {
		case closed:
			return t.leave(Closed)
		case !held:
			return nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return t.leave(Expired)
		case <-ctx.Done():
			t.Done()
			return context.Cause(ctx)
		}
	}
}

// Turn blocks until every older ticket is done, or until the grace is over. The caller then acts
// and calls Done. On an error the ticket has left the queue.
func (t *Ticket) Turn(ctx context.Context) error {
	_, _, _, released := t.q.state()
	timer := time.NewTimer(time.Until(released.Add(t.q.cfg.Grace)))
	defer timer.Stop()
	for {
		_, closed, changed, _ := t.q.state()
		if closed {
			return t.leave(Closed)
		}
		select {
		case <-t.first:
			return nil
		case <-timer.C:
			return nil
		case <-changed:
		case <-ctx.Done():
			t.Done()
			return context.Cause(ctx)
		}
	}
}

// Done gives the turn to the next ticket. It must be called once the caller has acted or given up;
// calling it again does nothing.
func (t *Ticket) Done() {
	q := t.q
	q.mu.Lock()
	defer q.mu.Unlock()
	if t.at == nil {
		return
	}
	next := t.at.Next()
	wasFirst := t.at.Prev() == nil
	q.mu.tickets.Remove(t.at)
	t.at = nil
	if next == nil {
		if q.mu.tickets.Len() == 0 && !q.mu.held {
			close(q.mu.empty)
		}
		return
	}
	if n, ok := next.Value.(*Ticket); ok && wasFirst {
		close(n.first)
	}
}

func (t *Ticket) leave(why Reason) error {
	held := t.q.Len()
	t.Done()
	return &Error{Reason: why, Waited: time.Since(t.joined), Held: held}
}

func (q *Queue) state() (held, closed bool, changed <-chan struct{}, released time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.mu.held, q.mu.closed, q.mu.changed, q.mu.released
}
