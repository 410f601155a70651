package gateway

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/ficus-migrate/ficus/buffer"
)

// A borrower is one client under pooling of transactions: it has a server session from the first
// message of a transaction to the ReadyForQuery that ends it. One goroutine serves the client, and
// another one, as long as a server session is lent, what that says.
type borrower struct {
	g      *Gateway
	who    *identity
	number float64
	key    cancelKey
	client net.Conn

	// Of the client's goroutine.
	in        window
	say       []byte // to be sent to the server
	typ       byte
	drop      bool    // the present message is not sent
	skip      bool    // a refused unit: drop its messages until the Sync
	way       passage // of the message that is to be sent
	unnamed   known
	unnamedOn *shared

	nudged atomic.Bool
	work   sync.WaitGroup // the server's goroutine

	mu struct {
		sync.Mutex
		track   tracker
		srv     *shared // nil between transactions
		expect  []expected
		known   map[string]known
		kept    int  // bytes of known
		broken  bool // the server is gone; the client has been told
		ending  bool // the client's goroutine ends, and tells the client why
		parted  bool // the server session was told to end: it is for nobody else
		hold    *hold
		waiting context.CancelCauseFunc
	}
}

func (g *Gateway) newBorrower(conn net.Conn, who *identity, number float64, pid uint32) *borrower {
	b := &borrower{g: g, who: who, number: number, client: conn, key: newKey(pid), in: newWindow(clientWindow)}
	b.mu.track.status = statusIdle
	b.mu.known = map[string]known{}
	return b
}

// run serves the client until either side ends it; life ends it at once.
func (s *borrower) run(life context.Context) {
	stop := context.AfterFunc(life, func() {
		_ = s.client.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.mu.srv != nil {
			_ = s.mu.srv.conn.Close()
		}
	})
	defer stop()
	if s.g.stopping.Load() {
		s.wake()
	}
	err := s.upstream(life)
	s.way.over()
	s.hangUp()
	s.work.Wait()
	if own, ok := errors.AsType[*refusal](err); ok {
		own.fatal = true
		_ = s.client.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := s.client.Write(own.appendTo(nil)); err == nil {
			drain(s.client)
		}
	}
}

// hangUp ends a server session in the middle of a transaction: what was sent last is still carried out,
// then the server rolls back. One that is about to be given back stays as it is.
func (s *borrower) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.ending = true
	if s.mu.srv == nil || s.mu.track.border() && len(s.mu.expect) == 0 {
		return
	}
	s.mu.parted = true
	_ = s.mu.srv.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = s.mu.srv.conn.Write(appendMessage(nil, &pgproto3.Terminate{}))
	_ = s.mu.srv.conn.SetReadDeadline(time.Now().Add(s.g.cfg.MoveTimeout))
	_ = s.client.SetWriteDeadline(time.Now().Add(time.Second)) // one that does not read keeps nobody
}

func (s *borrower) upstream(ctx context.Context) error {
	for {
		if s.nudged.Load() && s.nudged.Swap(false) {
			if err := s.client.SetReadDeadline(time.Time{}); err != nil {
				return errLeft
			}
			if s.g.stopping.Load() && s.idle() {
				return stopped()
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
		case timedOut(err):
			if err := s.client.SetReadDeadline(time.Time{}); err != nil {
				return errLeft
			}
		case err != nil:
			return errLeft
		}
	}
}

func (s *borrower) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.track.border()
}

// forward sends on what was read, message by message, and everything in one write.
func (s *borrower) forward(ctx context.Context) error {
	for {
		if s.in.left == 0 {
			more, err := s.begin(ctx)
			if err != nil || !more {
				return errors.Join(err, s.flush())
			}
		}
		piece := s.in.see()
		if !s.drop {
			s.say = append(s.say, piece...)
		}
		s.in.relayed()
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

// begin looks at the message that comes next. more is false when too little of it is there.
func (s *borrower) begin(ctx context.Context) (more bool, err error) {
	typ, size, ok, err := s.in.header()
	switch {
	case err != nil:
		return false, violation("%v", err)
	case !ok:
		return false, nil
	case !fromClient(typ):
		return false, violation("invalid frontend message type %d", typ)
	case typ == msgTerminate:
		return false, errLeft
	}
	there := s.in.buf[s.in.pos+headerLen : min(s.in.end, s.in.pos+size)]
	whole := len(there) == size-headerLen
	switch typ {
	case msgParse:
		if size > maxStatement {
			return false, &refusal{fatal: true, code: "54000", message: "statement too long for pooling of transactions"}
		}
		if !whole {
			return false, nil
		}
	case msgBind, msgDescribe, msgClose:
		if _, _, ok := names(there, 1); !ok && !whole && len(there) < maxWindow || !whole && len(there) < 2 {
			return false, nil
		}
		if typ == msgBind {
			if _, _, ok := names(there, 2); !ok && !whole && len(there) < maxWindow {
				return false, nil
			}
		}
	}
	if err := s.admit(ctx, typ); err != nil {
		return false, err
	}
	s.typ = typ
	there = s.in.buf[s.in.pos+headerLen : min(s.in.end, s.in.pos+size)] // a wait reads on, and moves it
	return true, s.convert(typ, there, size)
}

// convert starts the message, under the names that the server knows.
func (s *borrower) convert(typ byte, there []byte, size int) error {
	s.in.begin(size)
	if s.drop {
		return nil
	}
	s.soil(typ, there)
	switch typ {
	case msgParse:
		s.takeWhole(size)
		return s.parse(there)
	case msgBind, msgDescribe, msgClose:
		used, ok := s.rename(typ, there, size)
		if !ok {
			return violation("invalid message format")
		}
		s.takeWhole(headerLen + used)
	case msgQuery, msgFunctionCall, msgSync:
		if typ == msgQuery {
			s.unnamedOn = nil
		}
		s.mu.Lock()
		s.expectLocked(expected{what: border})
		s.mu.Unlock()
	}
	return nil
}

// takeWhole passes over bytes that went to the server in another form.
func (s *borrower) takeWhole(n int) {
	s.in.pos += n
	s.in.left -= n
	s.in.relayed()
}

// flush sends what there is to say.
func (s *borrower) flush() error {
	if len(s.say) > 0 {
		s.mu.Lock()
		srv := s.mu.srv
		s.mu.Unlock()
		if srv == nil {
			return errServerGone
		}
		if _, err := srv.conn.Write(s.say); err != nil {
			return errServerGone
		}
		if s.say = s.say[:0]; cap(s.say) > maxWindow {
			s.say = nil
		}
	}
	s.way.over()
	return nil
}

// admit decides about the message that comes next; it may block, and it may set drop.
func (s *borrower) admit(ctx context.Context, typ byte) error {
	s.drop = s.skip
	if s.skip {
		return nil
	}
	s.mu.Lock()
	switch {
	case s.mu.broken:
		s.mu.Unlock()
		return errServerGone
	case s.mu.srv != nil:
		s.sentLocked(typ)
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	if typ == msgCopyData || typ == msgCopyDone || typ == msgCopyFail { // the end of a COPY that failed
		s.drop = true
		return nil
	}
	err := s.borrow(ctx, typ)
	no, ok := errors.AsType[*refusal](err)
	if !ok || no.fatal {
		return err
	}
	s.drop = true
	s.skip = typ != msgQuery && typ != msgFunctionCall && typ != msgSync
	return send(s.client, (*errorMessage)(no))
}

// sentLocked notes a message that goes to the server.
func (s *borrower) sentLocked(typ byte) {
	if t := &s.mu.track; (typ == msgCopyDone || typ == msgCopyFail) && t.executed {
		for range t.syncs { // the server ignored these, see tracker
			for i, e := range slices.Backward(s.mu.expect) {
				if e.what == border {
					s.mu.expect = append(s.mu.expect[:i], s.mu.expect[i+1:]...)
					break
				}
			}
		}
	}
	if typ != msgCopyData {
		s.mu.track.sent(typ)
	}
}

// dropped answers the end of a refused unit.
func (s *borrower) dropped() error {
	if s.skip && s.typ != msgSync || s.typ == msgCopyData || s.typ == msgCopyDone || s.typ == msgCopyFail {
		return nil
	}
	s.skip = false
	return send(s.client, &pgproto3.ReadyForQuery{TxStatus: statusIdle})
}

// borrow begins a transaction: through the queue, and with a server session of the owner.
func (s *borrower) borrow(ctx context.Context, typ byte) error {
	p := s.g.passage()
	for {
		if err := p.join(s.who.door); err != nil {
			return err
		}
		if p.ticket != nil {
			if err := s.wait(ctx, p.ticket); err != nil {
				return p.failed(err)
			}
			if err := p.turn(ctx); err != nil {
				return p.failed(err)
			}
		}
		r, ok := s.start(typ)
		if !ok {
			continue
		}
		if p.ticket != nil {
			s.way = p
		}
		if err := s.lend(ctx, s.g.backend(r, s.who.door, s.number)); err != nil {
			s.stay()
			return err
		}
		return nil
	}
}

// start counts the transaction, unless the route has changed: a Hold that comes afterwards waits for it.
func (s *borrower) start(typ byte) (*route, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.g.route.Load()
	if s.who.door == readWrite && r.holding {
		return nil, false
	}
	if r.counting && s.who.door == readWrite {
		s.g.count.wouldHold.Add(1)
	}
	s.mu.track.sent(typ)
	return r, true
}

// stay takes back what start did.
func (s *borrower) stay() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.track = tracker{status: statusIdle}
	s.leaveHoldLocked()
}

func (s *borrower) leaveHoldLocked() {
	if s.mu.hold != nil {
		s.mu.hold.leave()
		s.mu.hold = nil
	}
}

// lend gets a server session and starts listening to it.
func (s *borrower) lend(ctx context.Context, to Backend) error {
	srv, err := s.g.pool.take(ctx, to, s.who)
	if theirs, ok := errors.AsType[*serverError](err); ok {
		return &refusal{fatal: true, code: theirs.err.Code, message: theirs.err.Message, detail: theirs.err.Detail, hint: theirs.err.Hint}
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.mu.srv = srv
	s.mu.Unlock()
	s.unnamedOn = nil // others may have used it meanwhile
	s.work.Wait()     // the one before has given its session back, and is about to end
	s.work.Go(func() { s.downstream(ctx, srv) })
	return nil
}

// wait waits in the queue, and listens to cancel requests.
func (s *borrower) wait(ctx context.Context, t *buffer.Ticket) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.setWaiting(cancel)
	defer s.setWaiting(nil)
	defer s.g.watch(s.client, &s.in, cancel)()
	err := t.Wait(ctx)
	if errors.Is(err, errCanceled) {
		return &refusal{code: "57014", message: "canceling statement due to user request"}
	}
	return s.g.heldRefusal(err, false)
}

func (s *borrower) setWaiting(cancel context.CancelCauseFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.waiting = cancel
}

func (s *borrower) wake() {
	s.nudged.Store(true)
	_ = s.client.SetReadDeadline(time.Unix(1, 0))
}

// astray is always false: between transactions a borrower is nowhere.
func (s *borrower) astray() bool { return false }

func (s *borrower) joinHold(h *hold) {
	if s.who.door != readWrite {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.hold = nil
	if !s.mu.track.border() {
		h.left.Add(1)
		s.mu.hold = h
	}
}

func (s *borrower) leaveHold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaveHoldLocked()
}

func (s *borrower) cancelQuery(ctx context.Context) error {
	s.mu.Lock()
	waiting, srv := s.mu.waiting, s.mu.srv
	if srv != nil {
		srv.cancels.Add(1)
		defer srv.cancels.Done()
	}
	s.mu.Unlock()
	switch {
	case waiting != nil:
		waiting(errCanceled)
		return nil
	case srv == nil:
		return nil
	}
	return srv.pgc.CancelRequest(ctx)
}

func (s *borrower) cancelKey() cancelKey { return s.key }
func (s *borrower) refused()             {}
func (s *borrower) user() string         { return s.who.user }

// errorMessage lets send take a refusal.
type errorMessage refusal

func (e *errorMessage) Decode([]byte) error { return errors.ErrUnsupported }
func (e *errorMessage) Encode(b []byte) ([]byte, error) {
	return (*refusal)(e).appendTo(b), nil
}
