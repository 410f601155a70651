package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/pg"
)

// otherRetry is how long a read-only session stays where it is when the other backend fails.
const otherRetry = 5 * time.Second

// aheadTimeout is how long a client waits for its session to get ready ahead of a move.
const aheadTimeout = time.Second

// prepared is a server session on the other backend that has the client session's state.
type prepared struct {
	srv   *server
	state *state
}

// follow brings a session at its border to where r says that it belongs.
func (s *session) follow(ctx context.Context, r *route) error {
	to := s.home(r)
	if s.srv.backend == to {
		s.discardReady()
		return s.remakeUnnamed()
	}
	if time.Now().Before(s.retryAt) {
		return nil
	}
	if done, err := s.recall(to); done || err != nil {
		return err
	}
	if s.ready == nil || s.ready.srv.backend != to {
		s.discardReady()
		var err error
		if s.ready, err = s.prepare(ctx, to, s.g.cfg.MoveTimeout); err != nil {
			return s.cannotMove(ctx, to, err)
		}
	}
	return s.swap()
}

// getAhead prepares a move that is yet to come; see [Gateway.Expect].
func (s *session) getAhead(ctx context.Context, r *route) error {
	switch {
	case s.who.door != readWrite, s.spare != nil && s.spare.srv.backend == r.coming:
		return nil
	case r.coming == "", r.coming == s.srv.backend:
		s.discardSpare()
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, aheadTimeout)
	defer cancel()
	p, err := s.prepare(ctx, r.coming, 0)
	if err != nil {
		s.g.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "session is not ready for the owner to come", s.attrs(logged(err))...)
	} else {
		s.discardSpare()
		s.spare = p
	}
	return s.remakeUnnamed()
}

// getReady prepares a move while the session is held: the owner will most likely be the other
// backend. Failing is no harm, follow tries again when it is known who owns.
func (s *session) getReady(ctx context.Context, r *route) {
	for b := range s.g.cfg.Backends {
		if b == r.owner {
			continue
		}
		p, err := s.prepare(ctx, b, 0)
		if err != nil {
			s.g.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "held session is not ready to move", s.attrs(logged(err))...)
			return
		}
		s.ready = p
	}
}

func (s *session) discardReady() {
	if s.ready != nil {
		s.ready.srv.bye()
		s.ready = nil
	}
}

// prepare reads the session's state and makes it anew in a server session on another backend. It
// tries again for the given time while the backend is out of connections or not there.
func (s *session) prepare(ctx context.Context, to Backend, patience time.Duration) (*prepared, error) {
	select {
	case s.g.moves <- struct{}{}:
		defer func() { <-s.g.moves }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	st, err := s.capture()
	if err != nil {
		return nil, err
	}
	until := time.Now().Add(patience)
	retry := backoff.Timer{Min: 20 * time.Millisecond, Max: time.Second}
	for {
		srv, err := s.g.connect(ctx, to, s.who, func(ctx context.Context, conn *pgconn.PgConn) error {
			err := st.restore(ctx, conn)
			if err != nil && !pg.Retryable(err) { // the state is to blame, not the server
				return &unmovable{keeps: "state that the other server does not take", cause: err}
			}
			return err
		})
		var u *unmovable
		if err == nil {
			return &prepared{srv, st}, nil
		}
		if errors.As(err, &u) || !mayRetry(err) || time.Now().After(until) {
			return nil, err
		}
		if werr := retry.Wait(ctx); werr != nil {
			return nil, werr
		}
	}
}

// mayRetry reports whether connecting may succeed a little later.
func mayRetry(err error) bool {
	var own *refusal
	return errors.As(err, &own) || pg.Retryable(err)
}

// capture reads the session's state off its server. The server forgets the unnamed statement over it.
func (s *session) capture() (*state, error) {
	if err := s.park(); err != nil {
		return nil, err
	}
	defer s.unpark()
	st := &state{}
	var bad error
	s.lost = true
	aside, err := s.srv.exchange(captureQuery(&s.memo), s.g.cfg.MoveTimeout, func(row [][]byte) {
		if err := st.add(row, s.who.user); err != nil && bad == nil {
			bad = err
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read the session's state: %w", err)
	}
	if len(aside) > 0 {
		if err := s.tellClient(aside); err != nil {
			return nil, err
		}
	}
	if s.memo.opaque {
		bad = errors.Join(bad, &unmovable{keeps: "custom settings under names that only the server knows"})
	}
	st.sort()
	return st, bad
}

// cannotMove decides what becomes of a session that did not get to another backend.
func (s *session) cannotMove(ctx context.Context, to Backend, err error) error {
	if ctx.Err() != nil || errors.Is(err, errLeft) || errors.Is(err, errServerGone) {
		return err
	}
	var u *unmovable
	if s.who.door == readOnly && !errors.As(err, &u) {
		s.retryAt = time.Now().Add(otherRetry)
		s.g.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "reads stay on their backend", s.attrs(logged(err))...)
		return s.remakeUnnamed()
	}
	s.g.count.ended.Add(1)
	s.g.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "session ended, its state cannot move", s.attrs(logged(err))...)
	r := &refusal{
		fatal: true, code: "57P01",
		message: fmt.Sprintf("terminating connection: this session cannot move to the %s database", to),
		hint:    "Connect again. Nothing of what was sent last was executed.",
	}
	if u != nil {
		r.detail = "It keeps " + u.keeps + "."
	} else {
		r.detail = err.Error()
	}
	return r
}

// logged takes from an error what a log may hold: a server's message can quote values of the
// client's statements.
func logged(err error) error {
	var u *unmovable
	switch code := pg.Code(err); {
	case errors.As(err, &u) && code != "":
		return fmt.Errorf("%s (SQLSTATE %s)", u.keeps, code)
	case code != "":
		return fmt.Errorf("SQLSTATE %s", code)
	}
	return err
}

// swap puts the prepared server session in the place of the present one.
func (s *session) swap() error {
	if err := s.park(); err != nil {
		return err
	}
	old, st := s.srv, s.ready.state
	s.srv, s.ready = s.ready.srv, nil
	s.mu.Lock()
	s.mu.srv = s.srv
	s.mu.Unlock()
	s.lost = true
	err := s.tellClient(appendParams(nil, s.srv.params))
	s.unpark()
	if s.choice.each {
		s.keep(old, st)
	} else {
		old.bye()
	}
	s.g.count.moved.Add(1)
	if err != nil {
		return err
	}
	return s.remakeUnnamed()
}

// remakeUnnamed parses the unnamed statement again if the server lost it through us.
func (s *session) remakeUnnamed() error {
	if !s.lost {
		return nil
	}
	s.lost = false
	if len(s.memo.unnamed) == 0 {
		return nil
	}
	if err := s.park(); err != nil {
		return err
	}
	defer s.unpark()
	msgs := []byte{msgParse}
	msgs = binary.BigEndian.AppendUint32(msgs, uint32(len(s.memo.unnamed)+4))
	msgs = append(msgs, s.memo.unnamed...)
	msgs = appendMessage(msgs, &pgproto3.Sync{})
	aside, err := s.srv.exchange(msgs, s.g.cfg.MoveTimeout, func([][]byte) {})
	if err != nil && pg.Code(err) == "" {
		return errServerGone
	}
	if len(aside) > 0 { // an error is none of the client's business: it had one when it sent the Parse
		return s.tellClient(aside)
	}
	return nil
}

// inject sends the client messages of our own.
func (s *session) inject(out []byte) error {
	if err := s.park(); err != nil {
		return err
	}
	defer s.unpark()
	return s.tellClient(out)
}

// errNotReading ends a session whose client does not take what it asked for.
var errNotReading = errors.New("the client does not read")

// park makes downstream stand still between two messages; srv and out are upstream's then.
func (s *session) park() error {
	timer := time.NewTimer(s.g.cfg.MoveTimeout)
	defer timer.Stop()
	s.parkReq.Store(true)
	_ = s.srv.conn.SetReadDeadline(time.Unix(1, 0))
	select {
	case <-s.parked:
		s.parkReq.Store(false)
		_ = s.srv.conn.SetReadDeadline(time.Time{})
		return nil
	case <-s.gone:
		return errServerGone
	case <-timer.C:
		_ = s.client.Close()
		return errNotReading
	}
}

// unpark lets downstream go on, on the present srv.
func (s *session) unpark() { s.resume <- struct{}{} }
