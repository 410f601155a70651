package gateway

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// errServerGone says that the server's connection ended; downstream has told the client.
var errServerGone = errors.New("the server is gone")

// downstream relays what the server says until the server is gone or the client takes no more.
// Then it closes the client's connection, so that upstream ends too.
func (s *session) downstream(ctx context.Context) {
	defer s.client.Close()
	for {
		n, err := s.srv.conn.Read(s.out.room())
		s.out.filled(n)
		stray, bad := s.listen()
		if seen := s.out.seen(); len(seen) > 0 {
			if _, err := s.client.Write(seen); err != nil {
				return
			}
			s.out.relayed()
		}
		switch {
		case bad != nil:
			s.g.cfg.Log.LogAttrs(ctx, slog.LevelError, "server broke the protocol", s.attrs(bad)...)
			return
		case err != nil && !timedOut(err):
			s.serverGone()
			return
		case stray:
			s.wake()
		}
		if !s.interrupted(err) {
			return
		}
	}
}

// listen walks over what the server said. stray says that upstream should look at the route.
func (s *session) listen() (stray bool, err error) {
	for {
		if s.out.left == 0 {
			typ, size, ok, err := s.out.header()
			if err != nil || !ok {
				return stray, err
			}
			if typ == msgReady {
				if s.out.end-s.out.pos < headerLen+1 {
					return stray, nil
				}
				stray = s.becameReady(s.out.buf[s.out.pos+headerLen])
			}
			s.said = typ
			s.failed = s.failed || typ == msgError
			s.out.begin(size)
		}
		piece := s.out.see()
		if t := s.taped.Load(); t != nil {
			t.record(piece)
		}
		if s.out.left > 0 {
			return stray, nil
		}
	}
}

// becameReady notes a ReadyForQuery. It is called before the client gets it, so that a slow client
// does not keep a hold waiting.
func (s *session) becameReady(status byte) (stray bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.track.ready(status)
	s.endedLocked(status)
	if s.mu.settling && s.mu.track.pending == 0 {
		s.mu.settling = false
		select {
		case s.settled <- struct{}{}:
		default:
		}
	}
	if status == statusIdle {
		s.g.count.transactions.Add(1)
	}
	if !s.mu.track.border() {
		return false
	}
	if s.mu.hold != nil {
		s.mu.hold.leave()
		s.mu.hold = nil
	}
	r := s.g.route.Load()
	return s.mu.route != r && r.free(s.who.door) || s.g.stopping.Load()
}

// interrupted parks downstream if upstream asks for it and no message is half relayed. It returns
// false when the session is over. err is the timeout that interrupted the read, if it was.
func (s *session) interrupted(err error) bool {
	if s.parkReq.Load() && s.out.left == 0 && s.out.pos == s.out.end {
		select {
		case s.parked <- struct{}{}:
			<-s.resume
			return true
		case <-s.over:
			return false
		}
	}
	if err == nil {
		return true
	}
	select {
	case <-s.over:
		return false
	default:
		return s.srv.conn.SetReadDeadline(time.Time{}) == nil
	}
}

// serverGone gives the client a reason when the server left without one.
func (s *session) serverGone() {
	select {
	case <-s.over:
		return
	default:
	}
	if s.said == msgError || s.out.left > 0 {
		return
	}
	r := refusal{fatal: true, code: "08006", message: "the server closed the connection unexpectedly"}
	_ = s.tellClient(r.appendTo(nil))
}

// tellClient writes messages of our own to the client. Only downstream may call it, or upstream
// while downstream is parked.
func (s *session) tellClient(out []byte) error {
	if err := s.client.SetWriteDeadline(time.Now().Add(s.g.cfg.MoveTimeout)); err != nil {
		return err
	}
	if _, err := s.client.Write(out); err != nil {
		return errors.Join(errLeft, err)
	}
	return s.client.SetWriteDeadline(time.Time{})
}
