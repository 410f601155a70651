package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Sizes of the buffers of a session that has little to do.
const (
	clientWindow = 8 << 10
	serverWindow = 16 << 10
)

// A session is one client and its server session. Two goroutines serve it: upstream, which also
// decides everything, and downstream. To have the server connection to itself upstream parks
// downstream (move.go).
type session struct {
	g      *Gateway
	who    *identity
	number float64 // uniform in [0, 100): which reads go to the backend that does not own
	key    cancelKey
	client net.Conn

	// Of upstream alone.
	in      window
	typ     byte // of the present message
	memo    memo
	way     passage   // of the message that is to be sent
	skip    bool      // a refused unit: drop its messages until the Sync
	drop    bool      // drop the present message
	ready   *prepared // made while held
	spare   *prepared // on the backend where the session is not now: to come back to, or ahead of a move
	lost    bool      // the server forgot the unnamed statement because we asked it something
	retryAt time.Time // read-only door: when to try the other backend again
	choice  choice    // read-only door: where transactions go; mark is everybody's
	rec     taper     // read-only door: of reads that are run twice

	// Of downstream, or of upstream while downstream is parked.
	srv    *server
	out    window
	said   byte // type of the last message that the server began
	failed bool // the present unit met an error

	nudged  atomic.Bool          // look at the route before reading on
	taped   atomic.Pointer[tape] // the present unit, complete and not answered
	parkReq atomic.Bool
	parked  chan struct{}
	resume  chan struct{}
	gone    chan struct{} // closed when downstream has ended
	over    chan struct{} // closed when upstream has
	settled chan struct{} // one token when pending became 0 while settling

	mu struct {
		sync.Mutex
		track    tracker
		route    *route  // the last one that the session follows
		srv      *server // for cancel requests
		hold     *hold   // counts this session's transaction
		settling bool
		began    time.Time               // of the present unit, on the read-only door
		first    bool                    // upstream has not looked at the message that began it
		waiting  context.CancelCauseFunc // ends the wait in the queue, nil when not held
	}
}

func (g *Gateway) newSession(conn net.Conn, who *identity, number float64, r *route, srv *server) *session {
	s := &session{
		g: g, who: who, number: number, client: conn, srv: srv, key: newKey(srv.pgc.PID()),
		in: newWindow(clientWindow), out: newWindow(serverWindow),
		parked: make(chan struct{}), resume: make(chan struct{}),
		gone: make(chan struct{}), over: make(chan struct{}), settled: make(chan struct{}, 1),
	}
	s.choice, s.rec = g.newChoice(who), g.newTaper(who)
	s.mu.track.status = statusIdle
	s.mu.srv = srv
	if srv.backend == g.backend(r, who.door, number) {
		s.mu.route = r
	}
	return s
}

func (g *Gateway) register(c client) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.sessions[c] = struct{}{}
	g.mu.keys[c.cancelKey()] = c
}

func (g *Gateway) unregister(c client) {
	g.limits.leave(c.user())
	g.mu.Lock()
	delete(g.mu.sessions, c)
	delete(g.mu.keys, c.cancelKey())
	g.mu.Unlock()
	c.leaveHold()
}

func (s *session) cancelKey() cancelKey { return s.key }
func (s *session) user() string         { return s.who.user }
func (s *session) refused()             { s.srv.bye() }

func (s *session) leaveHold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.hold != nil {
		s.mu.hold.leave()
		s.mu.hold = nil
	}
}

// run serves the session until either side ends it; life ends it at once.
func (s *session) run(life context.Context) {
	stop := context.AfterFunc(life, func() {
		_ = s.client.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = s.mu.srv.conn.Close()
	})
	defer stop()
	go func() { // the other direction; awaited through gone
		defer close(s.gone)
		s.downstream(life)
	}()
	if s.g.stopping.Load() {
		s.wake() // registered too late to be woken by Run
	}
	err := s.upstream(life)
	s.finish(err)
}

// finish ends both sides after upstream did.
func (s *session) finish(err error) {
	s.way.over()
	s.discardReady()
	s.discardSpare()
	var (
		own    *refusal
		theirs *serverError
		out    []byte
	)
	switch {
	case errors.As(err, &own):
		out = own.appendTo(nil)
	case errors.As(err, &theirs):
		m := errorResponse(theirs.err)
		m.Severity, m.SeverityUnlocalized = "FATAL", "FATAL"
		out = appendMessage(nil, &m)
	}
	if out == nil {
		s.leave()
		return
	}
	if s.park() == nil {
		_ = s.tellClient(out)
		drain(s.client)
		s.srv.bye()
		close(s.over)
		s.unpark()
	} else {
		close(s.over)
		_ = s.client.Close()
		s.srv.bye()
	}
	<-s.gone
}

// leave ends the server session after the client left or the server's connection broke. What the
// client sent last is still carried out, as when it had been connected directly: the server closes
// when it is done, and downstream ends.
func (s *session) leave() {
	s.mu.Lock()
	idle := s.mu.track.border()
	s.mu.Unlock()
	close(s.over)
	_ = s.srv.conn.SetWriteDeadline(time.Now().Add(s.g.cfg.MoveTimeout))
	_, err := s.srv.conn.Write(appendMessage(nil, &pgproto3.Terminate{}))
	if idle || err != nil {
		_ = s.srv.conn.SetReadDeadline(time.Now().Add(time.Second))
	}
	<-s.gone
	s.srv.close()
}

// drain lets the client read our last words: closing while there is unread input resets the
// connection and may lose them.
func drain(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, _ = io.CopyN(io.Discard, conn, 64<<10)
	}
}

// wake makes upstream look at the route, also when it waits for the client.
func (s *session) wake() {
	s.nudged.Store(true)
	_ = s.client.SetReadDeadline(time.Unix(1, 0))
}

// astray reports whether the session does not follow the present route.
func (s *session) astray() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.route != s.g.route.Load()
}

// joinHold makes h count the session if it is inside a transaction on the read-write door.
func (s *session) joinHold(h *hold) {
	if s.who.door != readWrite {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mu.track.border() {
		h.left.Add(1)
		s.mu.hold = h
	} else {
		s.mu.hold = nil
	}
}

// home returns the backend where the session belongs.
func (s *session) home(r *route) Backend {
	if s.choice.behind {
		return r.owner
	}
	return s.g.backend(r, s.who.door, s.number)
}

// cancelQuery cancels what the session does: its wait in the queue, or its query on the server.
func (s *session) cancelQuery(ctx context.Context) error {
	s.mu.Lock()
	waiting, srv := s.mu.waiting, s.mu.srv
	s.mu.Unlock()
	if waiting != nil {
		waiting(errCanceled)
		return nil
	}
	return srv.pgc.CancelRequest(ctx)
}

// errCanceled ends a wait by a cancel request.
var errCanceled = errors.New("canceled by the user")

// attrs says in a log line which session met which error.
func (s *session) attrs(err error) []slog.Attr {
	return []slog.Attr{
		slog.String("user", s.who.user), slog.String("application", s.who.params["application_name"]), slog.Any("err", err),
	}
}

// timedOut reports whether a read ended only because of a deadline that we set to interrupt it.
func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
