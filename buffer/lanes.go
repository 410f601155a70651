package buffer

import (
	"container/heap"
	"context"
	"slices"
	"time"
)

// A lane holds the commands of one Order, by number. Its first is sent, and nothing behind it before
// that is over.
type lane struct {
	name    string
	entries []*entry
	queued  bool      // among the ready ones
	after   time.Time // nothing is sent before
	at      int       // place in the heap of delayed lanes, -1 when not there
}

// first returns the command whose turn it is, or nil.
func (n *lane) first() *entry {
	if len(n.entries) == 0 {
		return nil
	}
	return n.entries[0]
}

// appendLocked puts an entry into its lane, at its place by number.
func (l *Commands) appendLocked(e *entry) {
	if e.rec.State == Dead && l.cfg.OnDead == DeadSkips {
		return
	}
	name := "o" + e.rec.Order
	if e.rec.Order == "" {
		name = "n" + hex64(e.rec.Seq) // a lane of its own
	}
	n := l.mu.lanes[name]
	if n == nil {
		n = &lane{name: name, at: -1}
		l.mu.lanes[name] = n
	}
	e.lane = n
	i := len(n.entries)
	for i > 0 && n.entries[i-1].rec.Seq > e.rec.Seq { // one that was dead goes in front
		i--
	}
	if i == 0 && len(n.entries) > 0 && n.entries[0].busy {
		i = 1 // behind the one that is on its way
	}
	n.entries = slices.Insert(n.entries, i, e)
}

// removeLocked takes an entry out of its lane.
func (l *Commands) removeLocked(e *entry) {
	n := e.lane
	if n == nil {
		return
	}
	e.lane = nil
	if n.first() == e {
		n.entries[0] = nil
		n.entries = n.entries[1:]
		n.after = time.Time{}
	} else if i := slices.Index(n.entries, e); i >= 0 {
		n.entries = slices.Delete(n.entries, i, i+1)
	}
	if len(n.entries) == 0 {
		l.undelayLocked(n)
		delete(l.mu.lanes, n.name)
	}
}

// leaveLocked forgets an entry that takes room no more.
func (l *Commands) leaveLocked(e *entry) {
	n := e.lane
	l.removeLocked(e)
	l.mu.active--
	l.mu.bytes -= e.size()
	if n != nil {
		l.offerLocked(n)
	}
}

// offerLocked makes a lane ready, if its first command may be sent, or delays it.
func (l *Commands) offerLocked(n *lane) {
	if n == nil {
		return
	}
	e := n.first()
	if e == nil || !e.durable || e.busy || e.rec.State == Dead || n.queued {
		return
	}
	l.undelayLocked(n)
	if time.Now().Before(n.after) {
		heap.Push(&l.mu.delayed, n)
	} else {
		n.queued = true
		l.mu.ready = append(l.mu.ready, n)
	}
	l.wakeLocked()
}

func (l *Commands) undelayLocked(n *lane) {
	if n.at >= 0 {
		heap.Remove(&l.mu.delayed, n.at)
	}
}

func (l *Commands) wakeLocked() {
	close(l.mu.wake)
	l.mu.wake = make(chan struct{})
}

// take waits for a command that may be sent, and counts it in flight.
func (l *Commands) take(ctx context.Context) (*entry, error) {
	for {
		e, next, wake := l.tryTake()
		if e != nil {
			return e, nil
		}
		if err := pause(ctx, next, wake); err != nil {
			return nil, err
		}
	}
}

// pause returns when next has come, unless it is zero, or wake is closed.
func pause(ctx context.Context, next time.Time, wake <-chan struct{}) error {
	var due <-chan time.Time
	if !next.IsZero() {
		timer := time.NewTimer(time.Until(next))
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-wake:
	case <-due:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// tryTake returns a command, or when the first delayed lane is due and what tells of a change before.
func (l *Commands) tryTake() (e *entry, next time.Time, wake <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.mu.held.IsZero() {
		return nil, time.Time{}, l.mu.wake
	}
	now := time.Now()
	for len(l.mu.delayed) > 0 && !now.Before(l.mu.delayed[0].after) {
		if n, ok := heap.Pop(&l.mu.delayed).(*lane); ok {
			l.offerLocked(n)
		}
	}
	for len(l.mu.ready) > 0 {
		n := l.mu.ready[0]
		l.mu.ready[0] = nil
		l.mu.ready = l.mu.ready[1:]
		n.queued = false
		e := n.first()
		if e == nil || !e.durable || e.busy || e.rec.State == Dead { // dropped meanwhile
			continue
		}
		e.busy, e.sending = true, true
		if l.mu.inFlight == 0 {
			l.mu.idle = make(chan struct{})
		}
		l.mu.inFlight++
		return e, time.Time{}, nil
	}
	if len(l.mu.delayed) > 0 {
		next = l.mu.delayed[0].after
	}
	return nil, next, l.mu.wake
}

// landLocked says that a command is at the data server no more.
func (l *Commands) landLocked(e *entry) {
	e.busy, e.sending = false, false
	l.mu.inFlight--
	if l.mu.inFlight == 0 {
		close(l.mu.idle)
	}
}

// lanesByTime is a heap of delayed lanes, the first due in front.
type lanesByTime []*lane

func (h *lanesByTime) Len() int           { return len(*h) }
func (h *lanesByTime) Less(i, j int) bool { return (*h)[i].after.Before((*h)[j].after) }
func (h *lanesByTime) Swap(i, j int) {
	s := *h
	s[i], s[j] = s[j], s[i]
	s[i].at, s[j].at = i, j
}

// Push implements [heap.Interface].
func (h *lanesByTime) Push(x any) {
	if n, ok := x.(*lane); ok {
		n.at = len(*h)
		*h = append(*h, n)
	}
}

// Pop implements [heap.Interface].
func (h *lanesByTime) Pop() any {
	old := *h
	n := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	n.at = -1
	return n
}
