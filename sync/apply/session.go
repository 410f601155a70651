package apply

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
)

const (
	// closeTimeout bounds the goodbye to the destination.
	closeTimeout = 5 * time.Second

	// keptStatements bounds the prepared statements: a table with many large columns can have as
	// many shapes as there are sets of unchanged ones.
	keptStatements = 500
)

// settings of a session. Row triggers and foreign keys do not fire; see setUp.
//
// Plans are generic: planning a statement again for every batch costs more than running it, and
// PostgreSQL expects ten rows of an array it does not know, for which it picks the index. Without
// sequential scans it picks it also while the table was never analyzed.
const settings = `
SET synchronous_commit = on;
SET row_security = off;
SET jit = off;
SET xmloption = content;
SET plan_cache_mode = force_generic_plan;
SET enable_seqscan = off`

// A session is a connection to the destination, and what its server knows by it.
type session struct {
	conn  *pgx.Conn
	heard *listener // the connection below
	fires bool      // triggers of the destination fire
	known map[statement]*prepared
	names int // of statements, given so far
}

// A statement is one that the server may know.
type statement struct {
	shape shape
	via   via
	sure  bool   // see shape.sql
	text  string // instead of the others
}

// prepared is a statement that the server knows.
type prepared struct {
	name string // "" for a statement that is sent as text
	text string
	args []arg
}

// connect opens a session whose silence can be measured.
func (a *Applier) connect(ctx context.Context) (*session, error) {
	s := &session{heard: &listener{}, known: map[statement]*prepared{}}
	var err error
	s.conn, err = a.cfg.DSN.Connect(ctx, "apply", func(cfg *pgx.ConnConfig) {
		cfg.AfterNetConnect = func(_ context.Context, _ *pgconn.Config, c net.Conn) (net.Conn, error) {
			s.heard = &listener{Conn: c} // of the attempt that succeeds
			return s.heard, nil
		}
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// setUp makes the session ready to write. As a replica, it fires neither triggers nor foreign keys; a role
// that may not say so is given a destination without them, until it is promoted.
func (a *Applier) setUp(ctx context.Context, s *session) error {
	if _, err := s.conn.PgConn().Exec(ctx, settings).ReadAll(); err != nil {
		return fmt.Errorf("set up the session: %w", err)
	}
	_, err := s.conn.Exec(ctx, `SET session_replication_role = replica`)
	switch {
	case pg.Code(err) == pg.CodeInsufficientPrivilege:
		s.fires = true
		a.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "role may not act as a replica: triggers of the destination will fire",
			slog.String("link", a.cfg.Link))
	case err != nil:
		return hint.Wrap(err, "the destination must be a PostgreSQL server")
	}
	if a.cfg.Check == nil {
		return nil
	}
	return a.cfg.Check(ctx, s.conn)
}

// close ends the session; what was not committed is not wanted.
func (s *session) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = s.conn.Close(ctx)
}

// interrupt ends what blocks on the session when ctx is done; release undoes it.
func (s *session) interrupt(ctx context.Context) (release func()) {
	conn := s.conn.PgConn().Conn()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	return func() {
		stop()
		_ = conn.SetDeadline(time.Time{})
	}
}

// forget drops the prepared statements when there are many.
func (s *session) forget(ctx context.Context) error {
	if len(s.known) <= keptStatements {
		return nil
	}
	if _, err := s.conn.PgConn().Exec(ctx, "DEALLOCATE ALL").ReadAll(); err != nil {
		return err
	}
	clear(s.known)
	return nil
}

// named returns a statement with a name that was never used: of a statement that was sent it may not be
// known whether the server has it.
func (s *session) named() *prepared {
	s.names++
	return &prepared{name: "s" + strconv.Itoa(s.names)}
}

// A sender puts statements on their way over a session, and reads what came of them later.
type sender struct {
	*session
	wire     wire
	copyRows int         // from how many on rows are inserted by COPY
	parsed   []statement // that the server learns by what was sent since somebody has emptied it
}

func newSender(s *session, copyRows int) sender {
	return sender{session: s, wire: wire{out: s.conn.PgConn().Conn()}, copyRows: copyRows}
}

func (s *sender) command(c *command) {
	p := s.prepare(statement{text: c.text})
	s.wire.texts(p.name, c.params)
}

func (s *sender) statement(m *stmt) {
	if m.shape.verb == verbTruncate {
		text, _ := m.shape.sql(viaText, false)
		s.wire.parse("", text)
		s.wire.texts("", nil)
		return
	}
	// As a replica the session inserts every row or fails: nothing can leave one out.
	sure := m.shape.verb != verbInsert || s.fires
	if !sure && len(m.rows) >= s.copyRows && m.shape.table.copies() {
		p := s.prepare(statement{shape: m.shape, via: viaCopy})
		s.wire.copy(p.name, p.args, m.rows)
		return
	}
	p := s.prepare(statement{shape: m.shape, via: viaTyped, sure: sure})
	if !s.wire.arrays(p.name, p.args, m.rows, sure) { // a value has no form but text
		p = s.prepare(statement{shape: m.shape, via: viaText, sure: sure})
		s.wire.arrays(p.name, p.args, m.rows, sure)
	}
}

// prepare makes the server know a statement, on the way.
func (s *sender) prepare(m statement) *prepared {
	if p := s.known[m]; p != nil {
		return p
	}
	p := s.named()
	if p.text = m.text; p.text == "" {
		p.text, p.args = m.shape.sql(m.via, m.sure)
	}
	s.known[m] = p
	s.parsed = append(s.parsed, m)
	s.wire.parse(p.name, p.text)
	return p
}

// unlearn takes back what the server may not have learned, because it refused something before.
func (s *session) unlearn(parsed []statement) {
	for _, m := range parsed {
		delete(s.known, m)
	}
}

// answer reads what the server says to so many commands up to a Sync, calling each with the number of those
// that it has done: how many in the end, the tag of the last, and why no more.
func (s *session) answer(each func(done int)) (done int, tag string, refusal error) {
	frontend := s.conn.PgConn().Frontend()
	for {
		message, err := frontend.Receive()
		if err != nil {
			if refusal != nil { // the last that it said
				return done, tag, refusal
			}
			return done, tag, err
		}
		switch m := message.(type) {
		case *pgproto3.CommandComplete:
			done++
			tag = string(m.CommandTag)
			if each != nil {
				each(done)
			}
		case *pgproto3.ErrorResponse:
			refusal = pgconn.ErrorResponseToPgError(m)
		case *pgproto3.ReadyForQuery:
			return done, tag, refusal
		}
	}
}
