package gateway

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/ficus-migrate/ficus/buffer"
)

// upstream relays what the client says until one of the two is gone, or the session has to end:
// then the error is what the client is to be told.
func (s *session) upstream(ctx context.Context) error {
	for {
		if s.nudged.Load() && s.nudged.Swap(false) {
			if err := s.client.SetReadDeadline(time.Time{}); err != nil {
				return errLeft
			}
			if err := s.reconsider(ctx); err != nil {
				return err
			}
		}
		n, err := s.client.Read(s.in.room())
		s.in.filled(n)
		if n > 0 {
			if err := s.forward(ctx); err != nil {
				return err
			}
		}
		switch {
		case timedOut(err): // woken, or late for it
			if err := s.client.SetReadDeadline(time.Time{}); err != nil {
				return errLeft
			}
		case err != nil:
			return errLeft
		}
	}
}

// forward relays what was read, message by message, and everything in one write.
func (s *session) forward(ctx context.Context) error {
	for {
		if s.in.left == 0 {
			typ, size, ok, err := s.in.header()
			switch {
			case err != nil:
				return violation("%v", err)
			case !ok:
				return s.flush()
			case !fromClient(typ):
				return violation("invalid frontend message type %d", typ)
			case typ == msgTerminate:
				return errors.Join(errLeft, s.flush())
			}
			if err := s.admitMessage(ctx, typ); err != nil {
				return err
			}
			s.in.begin(size)
			s.typ = typ
			if !s.drop {
				s.memo.begin(typ)
				s.rec.begin(s, typ, size, s.first())
			}
		}
		piece := s.in.see()
		if s.drop {
			s.in.relayed() // what came before has been flushed
		} else {
			s.memo.observe(piece, s.in.left == 0)
			if t := s.rec.observe(piece, s.in.left == 0); t != nil {
				s.taped.Store(t)
			}
		}
		if s.in.left > 0 {
			return s.flush()
		}
		if s.drop {
			if err := s.dropped(); err != nil {
				return err
			}
		}
	}
}

// flush writes on what was looked at.
func (s *session) flush() error {
	if seen := s.in.seen(); len(seen) > 0 {
		if _, err := s.srv.conn.Write(seen); err != nil {
			return errServerGone
		}
		s.in.relayed()
	}
	s.way.over()
	return nil
}

// admitMessage decides about the message that comes next. It may block; it sets drop.
func (s *session) admitMessage(ctx context.Context, typ byte) error {
	s.drop = s.skip
	if s.skip || typ == msgCopyData {
		return nil
	}
	s.mu.Lock()
	r := s.g.route.Load() // under the lock: a Hold that changes it afterwards finds us begun
	free := s.mu.track.open || s.mu.route == r && r.free(s.who.door) && !s.choosesLocked(r)
	if free || typ == msgCopyDone || typ == msgCopyFail {
		s.beginsReadLocked()
		s.mu.track.sent(typ)
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	return s.admitSlowly(ctx, typ)
}

// admitSlowly is admitMessage while something is held or the session is not where it belongs.
func (s *session) admitSlowly(ctx context.Context, typ byte) error {
	if err := s.flush(); err != nil {
		return err
	}
	if err := s.settle(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.mu.track.status != statusIdle { // a transaction block goes on
		s.mu.track.sent(typ)
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	err := s.pass(ctx, typ)
	var no *refusal
	if !errors.As(err, &no) || no.fatal {
		return err
	}
	s.drop = true
	s.skip = typ != msgQuery && typ != msgFunctionCall && typ != msgSync
	s.discardReady()
	if err := s.remakeUnnamed(); err != nil {
		return err
	}
	return s.inject(no.appendTo(nil))
}

// dropped answers the end of a refused unit.
func (s *session) dropped() error {
	if s.skip && s.typ != msgSync {
		return nil
	}
	s.skip = false
	s.nudged.Store(true) // look at the route: nobody could wake us meanwhile
	return s.inject(appendMessage(nil, &pgproto3.ReadyForQuery{TxStatus: statusIdle}))
}

// settle waits until the server has answered everything.
func (s *session) settle() error {
	for {
		s.mu.Lock()
		if s.mu.track.pending == 0 {
			s.mu.Unlock()
			return nil
		}
		s.mu.settling = true
		s.mu.Unlock()
		select {
		case <-s.settled:
		case <-s.gone:
			return errServerGone
		}
	}
}

// pass brings a session at its border through the queue and to where it belongs, and begins its
// next unit with a message of that type. A refusal that is not fatal refuses that unit only.
func (s *session) pass(ctx context.Context, typ byte) error {
	p, from := s.g.passage(), s.srv
	for {
		if err := p.join(s.who.door); err != nil {
			return err
		}
		if p.ticket != nil {
			if err := s.wait(ctx, p.ticket); err != nil {
				return p.failed(err)
			}
		}
		r := s.g.route.Load()
		s.choose(ctx, r)
		if err := s.follow(ctx, r); err != nil {
			return p.failed(err)
		}
		if err := s.getAhead(ctx, r); err != nil {
			return p.failed(err)
		}
		if err := p.turn(ctx); err != nil {
			return p.failed(err)
		}
		if s.begins(typ) {
			if s.who.door == readWrite && (p.ticket != nil || from != s.srv) {
				s.way = p
			}
			return nil
		}
	}
}

// begins starts a unit, unless the route has changed again.
func (s *session) begins(typ byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.g.route.Load()
	switch {
	case s.who.door == readWrite && r.holding:
		return false
	case s.home(r) == s.srv.backend:
		s.mu.route = r
		if r.counting && s.who.door == readWrite {
			s.g.count.wouldHold.Add(1)
		}
	case s.who.door == readOnly && time.Now().Before(s.retryAt): // stays where it can read
	default:
		return false
	}
	s.beginsReadLocked()
	s.mu.track.sent(typ)
	return true
}

// wait waits in the queue. Meanwhile it gets ready to move to the other backend, notices when the
// client leaves, and listens to cancel requests.
func (s *session) wait(ctx context.Context, t *buffer.Ticket) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.setWaiting(cancel)
	defer s.setWaiting(nil)
	defer s.g.watch(s.client, &s.in, cancel)()

	if r := s.g.route.Load(); r.holding && s.ready == nil && s.spare == nil {
		s.getReady(ctx, r)
	}
	err := t.Wait(ctx)
	if errors.Is(err, errCanceled) {
		return &refusal{code: "57014", message: "canceling statement due to user request"}
	}
	return s.g.heldRefusal(err, false)
}

func (s *session) setWaiting(cancel context.CancelCauseFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.waiting = cancel
}

// watch reads on from a held client, into its window, so that its leaving is noticed; stop ends that.
// It stops by itself when the client, or all those held together, have said too much.
func (g *Gateway) watch(client net.Conn, in *window, leave context.CancelCauseFunc) (stop func()) {
	var stopping atomic.Bool
	var ahead int64 // bytes read; they count against what all held clients may say
	done := make(chan struct{})
	go func() { // waited for by stop
		defer close(done)
		for in.end-in.sent < maxWindow/2 && g.count.ahead.Load() < g.cfg.MaxHeldBytes {
			n, err := client.Read(in.room())
			in.filled(n)
			ahead += int64(n)
			g.count.ahead.Add(int64(n))
			if timedOut(err) { // stop, or a nudge that has to wait
				_ = client.SetReadDeadline(time.Time{})
				if stopping.Load() {
					return
				}
				continue
			}
			if err != nil {
				leave(errLeft)
				return
			}
		}
	}()
	return func() {
		stopping.Store(true)
		_ = client.SetReadDeadline(time.Unix(1, 0))
		<-done
		g.count.ahead.Add(-ahead)
		_ = client.SetReadDeadline(time.Time{})
	}
}

// reconsider is called between messages when the route may have changed or the gateway stops.
func (s *session) reconsider(ctx context.Context) error {
	s.mu.Lock()
	border, route := s.mu.track.border(), s.mu.route
	s.mu.Unlock()
	if !border || s.skip || s.in.left > 0 {
		return nil // downstream, or dropped, wakes us again
	}
	if s.g.stopping.Load() {
		return stopped()
	}
	r := s.g.route.Load()
	if r == route || !r.free(s.who.door) {
		return nil
	}
	if err := s.follow(ctx, r); err != nil {
		return err
	}
	if r.coming == "" && s.who.door == readWrite { // what was expected does not come
		s.discardSpare()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.home(r) == s.srv.backend {
		s.mu.route = r
	}
	return nil
}
