package gateway

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	rnd "math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/ficus-migrate/ficus/buffer"
)

// Codes in the place of a protocol version.
// Source: PostgreSQL manual, Message Formats: CancelRequest, SSLRequest, GSSENCRequest.
const (
	codeCancel = 80877102
	codeSSL    = 80877103
	codeGSS    = 80877104
	protocol3  = 3 << 16 // major version 3, minor version 0

	maxStartup = 10_000 // bytes of a startup packet, as in PostgreSQL
)

// A startup is what a client says first.
type startup struct {
	code   uint32
	body   []byte // after the code
	params map[string]string
}

// A cancelKey is what a client must know to cancel: it got it as BackendKeyData.
type cancelKey struct{ pid, secret uint32 }

// wants returns the name of the database that a client asks for: that of its user, if it names none.
func (s *startup) wants() string { return cmp.Or(s.params["database"], s.params["user"]) }

// serve takes one client from its first byte to its last. ctx ends what has not begun to work.
func (h *Hall) serve(ctx, life context.Context, conn net.Conn, d door) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	hello, err := h.receive(ctx, &conn)
	if err != nil {
		h.tell(ctx, conn, err)
		return
	}
	if hello == nil {
		return // it was a cancel request
	}
	g := h.lead(hello)
	s, err := g.start(ctx, conn, hello, d)
	if err != nil {
		h.leave() // who is only told has no place
		h.tell(ctx, conn, err)
		return
	}
	defer h.leave()
	defer g.clientGone()
	if !stop() { // too late: the connection is closed already
		s.refused()
		g.limits.leave(s.user())
		return
	}
	g.register(s)
	defer g.unregister(s)
	s.run(life)
}

// tell sends the client the reason why it cannot come in, when it is one that clients understand.
func (h *Hall) tell(ctx context.Context, conn net.Conn, err error) {
	var (
		own    *refusal
		theirs *serverError
		out    []byte
	)
	switch {
	case errors.As(err, &theirs):
		m := errorResponse(theirs.err)
		out = appendMessage(nil, &m)
	case errors.As(err, &own):
		own.fatal = true
		out = own.appendTo(nil)
	default:
		h.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "client did not get in", slog.Any("err", err))
		return
	}
	h.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "client refused", slog.String("client", conn.RemoteAddr().String()), slog.Any("err", logged(err)))
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write(out); err == nil {
		drain(conn)
	}
}

// receive reads what a client wants. It returns nil for a cancel request, which has been carried out. A
// client that asks for TLS gets it: conn changes. Who is received has been counted.
func (h *Hall) receive(ctx context.Context, conn *net.Conn) (*startup, error) {
	if err := (*conn).SetDeadline(time.Now().Add(h.cfg.StartupTimeout)); err != nil {
		return nil, err
	}
	hello, err := readStartup(*conn, h.upgrade(ctx, conn))
	if err != nil {
		return nil, err
	}
	if hello.code == codeCancel {
		h.cancel(ctx, hello.body)
		return nil, nil
	}
	if err := h.encrypted(*conn); err != nil {
		return nil, err
	}
	if !h.enter() {
		return nil, tooMany()
	}
	return hello, nil
}

func tooMany() *refusal {
	return &refusal{fatal: true, code: "53300", message: "sorry, too many clients already"}
}

// start brings a client to the point where it may send its first query.
func (g *Gateway) start(ctx context.Context, conn net.Conn, hello *startup, d door) (client, error) {
	if !g.admitClient() {
		return nil, tooMany()
	}
	s, err := g.admit(ctx, conn, hello, d)
	if err != nil {
		g.clientGone()
		return nil, err
	}
	return s, nil
}

// admit authenticates the client and opens its server session.
func (g *Gateway) admit(ctx context.Context, conn net.Conn, hello *startup, d door) (c client, err error) {
	who, database, err := g.identify(hello, d)
	if err != nil {
		return nil, err
	}
	if err := negotiate(conn, hello); err != nil {
		return nil, err
	}
	if err := g.authenticate(ctx, conn, who); err != nil {
		return nil, err
	}
	if g.name != "" {
		database = hello.wants()
	}
	if !g.knows(database) {
		return nil, &refusal{
			fatal: true, code: "3D000", message: fmt.Sprintf("database %q does not exist", database),
			hint: "This gateway leads to " + g.databases() + ".",
		}
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	if err := g.limits.enter(who.user); err != nil {
		return nil, err
	}
	defer func() {
		if c == nil {
			g.limits.leave(who.user)
		}
	}()
	number := rnd.Float64() * 100
	r, srv, err := g.firstServer(ctx, who, number)
	if err != nil {
		return nil, err
	}
	if g.pool != nil {
		c = g.newBorrower(conn, who, number, srv.pgc.PID())
	} else {
		c = g.newSession(conn, who, number, r, srv)
	}
	key := c.cancelKey()
	out := appendMessage(nil, &pgproto3.AuthenticationOk{})
	out = appendParams(out, srv.params)
	out = append(out, srv.notices...)
	out = appendMessage(out, &pgproto3.BackendKeyData{
		ProcessID: key.pid, SecretKey: binary.BigEndian.AppendUint32(nil, key.secret),
	})
	out = appendMessage(out, &pgproto3.ReadyForQuery{TxStatus: statusIdle})
	if _, err := conn.Write(out); err != nil {
		c.refused()
		return nil, errors.Join(errLeft, err)
	}
	return c, nil
}

// firstServer waits out a hold and opens the first server session. A read-only client whose
// backend does not answer gets the other one.
func (g *Gateway) firstServer(ctx context.Context, who *identity, number float64) (*route, *server, error) {
	if who.door == readWrite {
		t, err := g.queue.Join()
		if err == nil && t != nil {
			came := time.Now()
			err = t.Wait(ctx)
			t.Done() // connecting needs no order
			g.stalls.add(time.Since(came))
		}
		if err != nil {
			return nil, nil, g.heldRefusal(err, true)
		}
	}
	r := g.route.Load()
	to := g.backend(r, who.door, number)
	connect := g.connect
	if g.pool != nil {
		connect = g.pool.first
	}
	srv, err := connect(ctx, to, who, nil)
	if err != nil && who.door == readOnly && to != r.owner {
		srv, err = connect(ctx, r.owner, who, nil)
	}
	return r, srv, err
}

// heldRefusal turns the end of a wait without a decision into what the client is told.
func (g *Gateway) heldRefusal(err error, fatal bool) error {
	var e *buffer.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Reason {
	case buffer.Full:
		g.count.refused.Add(1)
		return &refusal{
			fatal: fatal, code: "53300", message: "too many clients wait for the database to change over",
			hint: "Nothing was executed. Try again.",
		}
	case buffer.Expired:
		g.count.refused.Add(1)
		code := "40001"
		if fatal {
			code = "57P03"
		}
		return &refusal{
			fatal: fatal, code: code, message: "the database is changing over, and it takes too long",
			hint: "Nothing was executed. Try again.",
		}
	case buffer.Closed:
		return stopped()
	}
	return err
}

func stopped() *refusal {
	return &refusal{fatal: true, code: "57P01", message: "terminating connection due to administrator command"}
}

// readStartup reads startup packets until one is neither SSLRequest nor GSSENCRequest. It takes no
// byte beyond. secure puts the connection under TLS, once; nil declines that. What a client sends
// between SSLRequest and its answer is read as TLS, so nobody can slip something in ahead of it.
func readStartup(conn io.ReadWriter, secure func(already []byte) (io.ReadWriter, error)) (*startup, error) {
	for range 4 { // each request at most once, and TLS without one
		head := make([]byte, 8)
		if _, err := io.ReadFull(conn, head); err != nil {
			return nil, errors.Join(errLeft, err)
		}
		if head[0] == recordHandshake && secure != nil {
			var err error
			if conn, err = secure(head); err != nil {
				return nil, err
			}
			secure = nil
			continue
		}
		n := binary.BigEndian.Uint32(head)
		if n < 8 || n > maxStartup {
			return nil, violation("invalid length of startup packet")
		}
		hello := &startup{code: binary.BigEndian.Uint32(head[4:]), body: make([]byte, n-8)}
		if _, err := io.ReadFull(conn, hello.body); err != nil {
			return nil, errors.Join(errLeft, err)
		}
		switch {
		case hello.code == codeSSL && secure != nil:
			if _, err := conn.Write([]byte{'S'}); err != nil {
				return nil, errors.Join(errLeft, err)
			}
			var err error
			if conn, err = secure(nil); err != nil {
				return nil, err
			}
			secure = nil
		case hello.code == codeSSL || hello.code == codeGSS:
			if _, err := conn.Write([]byte{'N'}); err != nil {
				return nil, errors.Join(errLeft, err)
			}
		case hello.code == codeCancel:
			return hello, nil
		case hello.code>>16 != 3:
			return nil, &refusal{fatal: true, code: "0A000", message: fmt.Sprintf(
				"unsupported frontend protocol %d.%d: server supports 3.0 to 3.0", hello.code>>16, hello.code&0xffff)}
		default:
			var err error
			hello.params, err = parseParams(hello.body)
			return hello, err
		}
	}
	return nil, violation("too many encryption requests")
}

// parseParams reads name and value pairs, each ended by a zero byte, and a last zero byte.
func parseParams(b []byte) (map[string]string, error) {
	bad := violation("invalid startup packet layout: expected terminator as last byte")
	params := map[string]string{}
	rest := string(b)
	for {
		name, tail, ok := strings.Cut(rest, "\x00")
		if !ok {
			return nil, bad
		}
		if name == "" {
			if tail != "" {
				return nil, bad
			}
			return params, nil
		}
		value, tail, ok := strings.Cut(tail, "\x00")
		if !ok {
			return nil, bad
		}
		params[name], rest = value, tail
	}
}

// identify takes from the startup packet who the client is and which database it wants.
func (g *Gateway) identify(hello *startup, d door) (who *identity, database string, err error) {
	who = &identity{params: map[string]string{}, door: d}
	for name, value := range hello.params {
		switch {
		case name == "user":
			who.user = value
		case name == "database":
			database = value
		case name == "replication":
			if v := strings.ToLower(value); v != "false" && v != "off" && v != "no" && v != "0" {
				return nil, "", &refusal{
					fatal: true, code: "0A000", message: "replication connections cannot go through the gateway",
					hint: "Connect to the database itself.",
				}
			}
		case !strings.HasPrefix(name, "_pq_."):
			who.params[name] = value
		}
	}
	who.door = g.cfg.Reads.door(d, who)
	if who.user == "" {
		return nil, "", &refusal{fatal: true, code: "28000", message: "no PostgreSQL user name specified in startup packet"}
	}
	return who, database, nil
}

// negotiate tells a client that asks for a newer minor version or for extensions what it gets.
// Source: PostgreSQL manual, NegotiateProtocolVersion.
func negotiate(conn net.Conn, hello *startup) error {
	var unknown []string
	for name := range hello.params {
		if strings.HasPrefix(name, "_pq_.") {
			unknown = append(unknown, name)
		}
	}
	if hello.code == protocol3 && unknown == nil {
		return nil
	}
	return send(conn, &pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: protocol3, UnrecognizedOptions: unknown})
}

func (g *Gateway) knows(database string) bool {
	if g.name != "" || database == "" {
		return database == g.name
	}
	for _, dsn := range g.cfg.Backends {
		if dsn.Database() == database {
			return true
		}
	}
	return false
}

func (g *Gateway) databases() string {
	if g.name != "" {
		return g.hall.names()
	}
	var names []string
	for _, dsn := range g.cfg.Backends {
		if name := fmt.Sprintf("%q", dsn.Database()); len(names) == 0 || names[0] != name {
			names = append(names, name)
		}
	}
	return strings.Join(names, " and ")
}

func appendParams(b []byte, params map[string]string) []byte {
	for name, value := range params {
		b = appendMessage(b, &pgproto3.ParameterStatus{Name: name, Value: value})
	}
	return b
}

// cancel passes a cancel request on to where the session is now.
func (h *Hall) cancel(ctx context.Context, body []byte) {
	if len(body) == 8 {
		h.Cancel(ctx, binary.BigEndian.Uint32(body), binary.BigEndian.Uint32(body[4:]))
	}
}

// Cancel is a cancel request with the key data of a session, here or elsewhere.
func (h *Hall) Cancel(ctx context.Context, pid, secret uint32) {
	for _, g := range h.gateways {
		if s := g.keyed(cancelKey{pid, secret}); s != nil {
			ctx, done := context.WithTimeout(ctx, g.cfg.MoveTimeout)
			defer done()
			if err := s.cancelQuery(ctx); err != nil {
				g.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "cancel request did not reach the backend", slog.Any("err", err))
			}
			return
		}
	}
	if h.cfg.Elsewhere != nil {
		h.cfg.Elsewhere(ctx, pid, secret)
	}
}

// keyed returns the client with that key data, nil for none.
func (g *Gateway) keyed(key cancelKey) client {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.keys[key]
}

// newKey makes the key data of a session. The process id is that of the first server session, so
// that it can be found in pg_stat_activity; only the secret has to be hard to guess.
func newKey(pid uint32) cancelKey {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return cancelKey{pid, binary.BigEndian.Uint32(b[:])}
}
