package gateway

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"time"
)

// This file is the way back under pooling of transactions: what a lent server session says.

// Messages of the server that tell what became of the client's.
const (
	msgParseComplete = '1'
	msgCloseComplete = '3'
	msgComplete      = 'C'
)

// downstream passes on what the server says until the transaction is over or one side is gone.
func (s *borrower) downstream(ctx context.Context, srv *shared) {
	for {
		n, err := srv.conn.Read(srv.out.room())
		srv.out.filled(n)
		bad := s.listen(srv)
		if bad == nil {
			bad = s.tellClient(srv)
		}
		switch {
		case errors.Is(bad, errLeft):
			s.lose(srv, false)
			return
		case bad != nil:
			s.g.cfg.Log.LogAttrs(ctx, slog.LevelError, "server broke the protocol", slog.String("user", s.who.user), slog.Any("err", bad))
			s.lose(srv, true)
			return
		}
		if err != nil {
			s.lose(srv, srv.out.left > 0 || srv.said != msgError)
			return
		}
		if s.over(ctx, srv) {
			return
		}
	}
}

func (s *borrower) tellClient(srv *shared) error {
	if seen := srv.out.seen(); len(seen) > 0 {
		if _, err := s.client.Write(seen); err != nil {
			return errors.Join(errLeft, err)
		}
		srv.out.relayed()
	}
	return nil
}

// over gives the server session back when the transaction has ended.
func (s *borrower) over(ctx context.Context, srv *shared) bool {
	s.mu.Lock()
	if !s.mu.track.border() || srv.out.left > 0 || srv.out.pos != srv.out.end || len(s.mu.expect) > 0 {
		s.mu.Unlock()
		return false
	}
	s.mu.srv = nil
	parted := s.mu.parted
	s.mu.Unlock()
	if parted {
		s.g.pool.discard(srv)
		return true
	}
	s.g.pool.give(ctx, srv)
	if s.g.stopping.Load() {
		s.wake()
	}
	return true
}

// lose ends a server session that broke, and the client with it.
func (s *borrower) lose(srv *shared, say bool) {
	s.mu.Lock()
	ending := s.mu.ending
	s.mu.broken, s.mu.srv = true, nil
	s.leaveHoldLocked()
	s.mu.Unlock()
	if ending { // run has the last word
		s.g.pool.discard(srv)
		return
	}
	if say {
		r := refusal{fatal: true, code: "08006", message: "the server closed the connection unexpectedly"}
		_ = s.client.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = s.client.Write(r.appendTo(nil))
	}
	_ = s.client.Close()
	s.g.pool.discard(srv)
}

// listen walks over what the server said.
func (s *borrower) listen(srv *shared) error {
	w := &srv.out
	for {
		if w.left == 0 {
			typ, size, ok, err := w.header()
			if err != nil || !ok {
				return err
			}
			need := headerLen // of the message, to decide about it
			switch typ {
			case msgReady:
				need++
			case msgComplete:
				need = min(size, headerLen+len("DEALLOCATE ALL"))
			}
			if w.end-w.pos < need {
				return nil
			}
			srv.said = typ
			drop, err := s.hear(srv, typ)
			if err != nil {
				return err
			}
			if drop { // what came before it goes out, it does not
				if err := s.tellClient(srv); err != nil {
					return err
				}
				w.begin(size)
				w.see()
				w.relayed()
				continue
			}
			w.begin(size)
		}
		w.see()
		if w.left > 0 {
			return nil
		}
	}
}

// hear notes a message of the server. drop says that it is not for the client.
func (s *borrower) hear(srv *shared, typ byte) (drop bool, err error) {
	body := srv.out.buf[srv.out.pos+headerLen : srv.out.end]
	s.mu.Lock()
	defer s.mu.Unlock()
	switch typ {
	case msgParseComplete, msgCloseComplete:
		what, ok := s.answeredLocked(typ)
		if !ok {
			return false, errors.New("an answer to nothing")
		}
		if what == tellAs1 {
			srv.out.buf[srv.out.pos] = msgParseComplete
		}
		return what == swallow, nil
	case msgComplete:
		if bytes.HasPrefix(body, []byte("DEALLOCATE ALL")) || bytes.HasPrefix(body, []byte("DISCARD ALL")) {
			s.forgottenLocked()
		}
	case msgReady:
		s.undoLocked() // after an error; else nothing is left
		if len(s.mu.expect) > 0 {
			s.mu.expect = s.mu.expect[1:]
		}
		s.mu.track.ready(body[0])
		if body[0] == statusIdle {
			s.g.count.transactions.Add(1)
		}
		if s.mu.track.border() {
			s.leaveHoldLocked()
		}
	}
	return false, nil
}
