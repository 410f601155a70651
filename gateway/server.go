package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// An identity is whom a client session speaks for. It does not change while the session lives.
type identity struct {
	user, password string
	keys           *scramKeys        // of the client's login, nil without one
	params         map[string]string // run-time parameters of the startup message
	door           door
}

// A server is one server session behind a client session.
type server struct {
	backend Backend
	conn    net.Conn
	pgc     *pgconn.PgConn    // conn was taken from it; only CancelRequest is used
	params  map[string]string // what the server reported, after setup
	notices []byte            // NoticeResponses that came while connecting
	free    func()            // gives the place among the backend's sessions back
}

// connect opens a server session for who and lets setup work on it.
func (g *Gateway) connect(
	ctx context.Context, to Backend, who *identity, setup func(context.Context, *pgconn.PgConn) error,
) (*server, error) {
	free, err := g.limits.place(ctx, to)
	if err != nil {
		return nil, err
	}
	srv, err := g.connectNow(ctx, to, who, setup)
	if err != nil {
		free()
		return nil, err
	}
	srv.free = free
	return srv, nil
}

func (g *Gateway) connectNow(
	ctx context.Context, to Backend, who *identity, setup func(context.Context, *pgconn.PgConn) error,
) (*server, error) {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.MoveTimeout)
	defer cancel()
	dsn := g.cfg.Backends[to]
	srv := &server{backend: to}
	cfg := &dsn.Config().Config
	cfg.Password = who.password
	if cfg.Password == "" && who.user == cfg.User {
		cfg.Password = dsn.Password()
	}
	if cfg.Password == "" && who.keys != nil {
		who.keys.use(cfg)
	}
	cfg.User = who.user
	cfg.RuntimeParams = maps.Clone(cfg.RuntimeParams)
	maps.Copy(cfg.RuntimeParams, who.params)
	if who.door == readOnly {
		cfg.RuntimeParams["default_transaction_read_only"] = "on"
	}
	if g.dial != nil {
		cfg.DialFunc = g.dial
	}
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		notice := pgproto3.NoticeResponse(errorResponse((*pgconn.PgError)(n)))
		srv.notices = appendMessage(srv.notices, &notice)
	}
	pgc, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, g.connectRefusal(ctx, to, err)
	}
	if setup != nil {
		if err := setup(ctx, pgc); err != nil {
			_ = pgc.Close(ctx)
			return nil, err
		}
	}
	err = pgc.SyncConn(ctx)
	var taken *pgconn.HijackedConn
	if err == nil {
		taken, err = pgc.Hijack()
	}
	if err != nil {
		_ = pgc.Close(ctx)
		return nil, g.connectRefusal(ctx, to, err)
	}
	srv.conn, srv.pgc, srv.params = taken.Conn, pgc, taken.ParameterStatuses
	if k, ok := srv.conn.(*keyedConn); ok { // logged in; pgconn reads whole messages, so nothing is left in it
		srv.conn = k.Conn
	}
	return srv, srv.conn.SetDeadline(time.Time{})
}

// A serverError is the server's own error, to be told to the client as it is.
type serverError struct{ err *pgconn.PgError }

func (s *serverError) Error() string { return s.err.Error() }
func (s *serverError) Unwrap() error { return s.err }

func (g *Gateway) connectRefusal(ctx context.Context, to Backend, err error) error {
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		return &serverError{pe}
	}
	g.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "backend does not answer",
		slog.String("backend", string(to)), slog.String("dsn", g.cfg.Backends[to].String()), slog.Any("err", err))
	return &refusal{
		fatal: true, code: "08006",
		message: fmt.Sprintf("the %s database does not answer", to),
		hint:    "Try again in a moment; the gateway's log tells the cause.",
	}
}

// errorResponse turns pgconn's error back into the message it was.
func errorResponse(e *pgconn.PgError) pgproto3.ErrorResponse {
	return pgproto3.ErrorResponse{
		Severity: e.Severity, SeverityUnlocalized: e.SeverityUnlocalized, Code: e.Code, Message: e.Message,
		Detail: e.Detail, Hint: e.Hint, Position: e.Position, InternalPosition: e.InternalPosition,
		InternalQuery: e.InternalQuery, Where: e.Where, SchemaName: e.SchemaName, TableName: e.TableName,
		ColumnName: e.ColumnName, DataTypeName: e.DataTypeName, ConstraintName: e.ConstraintName,
		File: e.File, Line: e.Line, Routine: e.Routine,
	}
}

// exchange sends messages of ours, the last of which makes the server say ReadyForQuery, and reads
// until it did. Nobody else may read from or write to the connection meanwhile. It returns the
// server's first error and, encoded, what came for the client in between.
func (s *server) exchange(msgs []byte, within time.Duration, row func([][]byte)) (aside []byte, err error) {
	if err := s.conn.SetDeadline(time.Now().Add(within)); err != nil {
		return nil, err
	}
	if _, err := s.conn.Write(msgs); err != nil {
		return nil, err
	}
	front := pgproto3.NewFrontend(s.conn, s.conn)
	var failed error
	for done := false; !done || front.ReadBufferLen() > 0; {
		m, err := front.Receive()
		if err != nil {
			return nil, errors.Join(failed, err)
		}
		switch m := m.(type) {
		case *pgproto3.DataRow:
			row(m.Values)
		case *pgproto3.ErrorResponse:
			if failed == nil {
				failed = pgconn.ErrorResponseToPgError(m)
			}
		case *pgproto3.ReadyForQuery:
			done = true
		case *pgproto3.NotificationResponse, *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
			aside = appendMessage(aside, m)
		}
	}
	if err := s.conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return aside, failed
}

// bye ends the server session.
func (s *server) bye() {
	_ = s.conn.SetDeadline(time.Now().Add(time.Second))
	_, _ = s.conn.Write(appendMessage(nil, &pgproto3.Terminate{}))
	s.close()
}

// close ends the connection and gives its place back.
func (s *server) close() {
	_ = s.conn.Close()
	s.free()
}
