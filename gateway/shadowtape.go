package gateway

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// A tape is one read as it went over the wire. Upstream fills it and hands it to downstream before the last
// message is sent; downstream adds the answer and hands it to the workers.
type tape struct {
	who     *identity
	backend Backend  // that answers it
	sets    []string // SET statements of the session

	sql    string
	query  []byte // simple protocol: the Query
	parse  []byte // otherwise: the statement's Parse,
	bind   []byte // the only Bind of the unit
	run    bool   // and its Execute was seen
	answer []byte // up to the ReadyForQuery

	spoiled bool // it cannot be run again, or is too long
}

// A taper watches what a client of the read-only door sends. It is upstream's.
type taper struct {
	sh     *shadow // nil: nothing is recorded
	off    bool    // the session has state that another one would not have
	sets   []string
	parsed map[string][]byte // Parse messages by statement, that later units refer to
	kept   int               // bytes of parsed

	typ   byte
	whole bool   // the present message is kept in msg
	msg   []byte // as far as it has come
	tape  *tape  // of the present unit, nil when it is not taken
}

// maxParsed is how many bytes of statements a session remembers.
const maxParsed = 1 << 20

func (g *Gateway) newTaper(who *identity) taper {
	if g.cfg.Shadow.Share == 0 || who.door != readOnly {
		return taper{}
	}
	return taper{sh: g.shadow, parsed: map[string][]byte{}}
}

// begin starts a message of the given size. first says that it begins a transaction.
func (r *taper) begin(s *session, typ byte, size int, first bool) {
	if r.sh == nil {
		return
	}
	if first {
		r.tape = nil
		if owner := s.g.route.Load().owner; !r.off && s.srv.backend == owner && r.sh.draws() {
			r.tape = &tape{who: s.who, backend: owner, sets: r.sets}
		}
	}
	r.typ, r.msg = typ, r.msg[:0]
	r.whole = size <= maxTape && (typ == msgParse || typ == msgQuery || r.tape != nil)
	if size > maxTape && r.tape != nil {
		r.tape.spoiled = true
	}
}

// observe takes the next piece of the message. It returns the tape once the unit is complete.
func (r *taper) observe(piece []byte, last bool) *tape {
	if r.sh == nil {
		return nil
	}
	if r.whole {
		r.msg = append(r.msg, piece...)
	}
	if !last {
		return nil
	}
	if r.whole {
		r.message(r.msg)
	}
	if cap(r.msg) > 16<<10 {
		r.msg = nil
	}
	if r.tape == nil || r.typ != msgQuery && r.typ != msgSync {
		return nil
	}
	t := r.tape
	r.tape = nil
	if t.query == nil && (t.parse == nil || t.bind == nil || !t.run) {
		return nil // nothing that is compared
	}
	return t
}

// message looks at a whole message.
func (r *taper) message(msg []byte) {
	body := msg[headerLen:]
	switch r.typ {
	case msgQuery:
		text := string(bytes.TrimSuffix(body, []byte{0}))
		r.learn(text)
		if r.tape != nil && readable(text) {
			r.tape.sql, r.tape.query = text, bytes.Clone(msg)
		}
	case msgParse:
		name, rest, ok := cutString(body)
		text, _, ok2 := cutString(rest)
		if ok && ok2 {
			r.learn(text)
			r.remember(name, msg)
		}
	case msgBind:
		r.bound(msg, body)
	case msgExecute:
		if r.tape != nil {
			_, limit, _ := cutString(body)
			r.tape.spoiled = r.tape.spoiled || r.tape.run || len(limit) != 4 || binary.BigEndian.Uint32(limit) != 0
			r.tape.run = true
		}
	case msgFlush, msgFunctionCall, msgCopyData, msgCopyDone, msgCopyFail:
		r.tape = nil // the answer begins before the unit is complete, or it is no read
	}
}

// remember keeps a Parse for the units that bind its statement.
func (r *taper) remember(name string, msg []byte) {
	r.kept += len(msg) - len(r.parsed[name])
	r.parsed[name] = bytes.Clone(msg)
	if r.kept > maxParsed {
		clear(r.parsed)
		r.kept = 0
	}
}

func (r *taper) bound(msg, body []byte) {
	if r.tape == nil {
		return
	}
	_, rest, _ := cutString(body)
	name, _, _ := cutString(rest)
	parse := r.parsed[name]
	if parse == nil || r.tape.bind != nil {
		r.tape = nil
		return
	}
	var p pgproto3.Parse
	if p.Decode(parse[headerLen:]) != nil || !readable(p.Query) || slices.ContainsFunc(p.ParameterOIDs, func(o uint32) bool { return o >= firstUserOID }) {
		r.tape = nil // an OID that a database gave itself means another type elsewhere
		return
	}
	r.tape.sql, r.tape.parse, r.tape.bind = p.Query, parse, bytes.Clone(msg)
}

// learn notes what a text does to its session.
func (r *taper) learn(text string) {
	word, rest := firstWord(text)
	switch {
	case strings.Contains(strings.ToLower(text), "set_config"):
		r.off = true
	case word == "set":
		switch next, _ := firstWord(rest); next {
		case "local", "transaction":
		case "role", "session", "constraints":
			r.off = true
		default:
			if len(r.sets) < 32 && len(text) < 1024 && !manyStatements(text) {
				r.sets = append(slices.Clip(r.sets), text)
			} else {
				r.off = true
			}
		}
	case !slices.Contains(harmless(), word), manyStatements(text):
		r.off = true
	}
}

// harmless are the words that statements begin with which leave nothing in their session, or nothing that a
// read would notice.
func harmless() []string {
	return []string{
		"", "select", "with", "values", "table", "show", "explain", "begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release",
		"declare", "fetch", "move", "close", "prepare", "deallocate", "execute", "listen", "unlisten", "notify", "analyze", "copy",
	}
}

// record adds a piece of the server's answer to the tape.
func (t *tape) record(piece []byte) {
	if len(t.answer)+len(piece) > maxTape {
		t.spoiled, t.answer = true, nil
	}
	if !t.spoiled {
		t.answer = append(t.answer, piece...)
	}
}

// read parses the recorded answer.
func (t *tape) read() (*answer, error) {
	ready := appendMessage(nil, &pgproto3.ReadyForQuery{TxStatus: statusIdle})
	return readAnswer(pgproto3.NewFrontend(io.MultiReader(bytes.NewReader(t.answer), bytes.NewReader(ready)), io.Discard))
}

// again returns the messages that run the read once more and leave nothing behind.
func (t *tape) again() []byte {
	if t.query != nil {
		return t.query
	}
	var p pgproto3.Parse
	var b pgproto3.Bind
	if err := errors.Join(p.Decode(t.parse[headerLen:]), b.Decode(t.bind[headerLen:])); err != nil {
		return nil // both were decoded, or copied from the wire, before
	}
	p.Name, b.PreparedStatement, b.DestinationPortal = "", "", ""
	out := appendMessage(nil, &p)
	out = appendMessage(out, &b)
	out = appendMessage(out, &pgproto3.Describe{ObjectType: 'P'})
	out = appendMessage(out, &pgproto3.Execute{})
	return appendMessage(out, &pgproto3.Sync{})
}

func cutString(b []byte) (string, []byte, bool) {
	text, rest, ok := bytes.Cut(b, []byte{0})
	return string(text), rest, ok
}

// An answer is what a server said to one read.
type answer struct {
	columns []column
	rows    [][][]byte
	code    string // SQLSTATE of its error
	took    time.Duration
}

// A column is one of a result.
type column struct {
	name   string
	oid    uint32
	binary bool
}

// readAnswer reads up to the ReadyForQuery.
func readAnswer(front *pgproto3.Frontend) (*answer, error) {
	a := &answer{}
	for {
		m, err := front.Receive()
		if err != nil {
			return nil, err
		}
		switch m := m.(type) {
		case *pgproto3.RowDescription:
			for _, f := range m.Fields {
				a.columns = append(a.columns, column{string(f.Name), f.DataTypeOID, f.Format == 1})
			}
		case *pgproto3.DataRow:
			row := make([][]byte, len(m.Values))
			for i, v := range m.Values {
				if v != nil {
					row[i] = append([]byte{}, v...)
				}
			}
			a.rows = append(a.rows, row)
		case *pgproto3.ErrorResponse:
			a.code = m.Code
		case *pgproto3.ReadyForQuery:
			return a, nil
		}
	}
}
