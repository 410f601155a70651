package gateway

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"unique"

	"github.com/jackc/pgx/v5/pgproto3"
)

// This file keeps prepared statements alive while a client changes server sessions from transaction to
// transaction. On a server a statement has a name made of its text, so that clients share it. Each
// message of the client becomes exactly one of the same kind of answer, and answers are told apart by
// their order:
//
//	client says            server is sent                     answer
//	Parse s, new here      Parse ficus_…                      1, passed on
//	Parse s, known here    Close of a name that is not there  3, told as 1
//	Bind, Describe s       the same with ficus_…; before it,  1, kept from the client
//	                       when needed, Parse ficus_…
//	Close s                Close of a name that is not there  3, passed on: others use the statement
//
// After an error the server ignores all up to the Sync, so that what was expected until then is undone.

// What becomes of an answer to Parse or Close.
const (
	pass    = iota
	swallow // it answers a message of ours
	tellAs1 // it answers a Parse that the server did not get
	border  // no answer: a ReadyForQuery stands here
)

// An expected answer.
type expected struct {
	what    int
	typ     byte   // of the answer
	made    string // statement on the server that is made, "" for none
	evicted string // statement on the server that is closed, "" for none
	client  string // the client's name that is given with it, "" for none
	closed  *known // what that name stood for, if it is taken away
}

// A known statement is what a client prepared.
type known struct {
	name string                // on servers
	body unique.Handle[string] // of its Parse, after the name
}

// Bounds of what one client may keep prepared.
const (
	maxStatement  = 4 << 20  // bytes of one
	maxStatements = 32 << 20 // of all of them
)

// nowhere is a statement that is never there: closing it is no error.
const nowhere = "ficus_nowhere"

func newKnown(body []byte) known {
	sum := sha256.Sum256(body)
	return known{name: "ficus_" + hex.EncodeToString(sum[:16]), body: unique.Make(string(body))}
}

// names splits the first n strings off body; ok is false when they are not all there.
func names(body []byte, n int) (found []string, rest []byte, ok bool) {
	for range n {
		i := bytes.IndexByte(body, 0)
		if i < 0 {
			return nil, nil, false
		}
		found = append(found, string(body[:i]))
		body = body[i+1:]
	}
	return found, body, true
}

// appendParse appends a Parse under another name.
func appendParse(b []byte, name, body string) []byte {
	b = append(b, msgParse)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(name)+1+len(body)))
	b = append(b, name...)
	b = append(b, 0)
	return append(b, body...)
}

func appendClose(b []byte, name string) []byte {
	return appendMessage(b, &pgproto3.Close{ObjectType: 'S', Name: name})
}

// ensure makes a statement on the present server unless it is there. Call it under mu.
func (s *borrower) ensureLocked(k known) {
	srv := s.mu.srv
	srv.uses++
	if _, there := srv.made[k.name]; !there {
		s.evictLocked()
		s.say = appendParse(s.say, k.name, k.body.Value())
		s.expectLocked(expected{what: swallow, typ: '1', made: k.name})
	}
	srv.made[k.name] = srv.uses
}

// evictLocked makes room for one more statement: the one used longest ago goes.
func (s *borrower) evictLocked() {
	srv := s.mu.srv
	if len(srv.made) < maxMade {
		return
	}
	var oldest string
	for name, used := range srv.made {
		if oldest == "" || used < srv.made[oldest] {
			oldest = name
		}
	}
	delete(srv.made, oldest)
	s.say = appendClose(s.say, oldest)
	s.expectLocked(expected{what: swallow, typ: '3', evicted: oldest})
}

func (s *borrower) expectLocked(e expected) { s.mu.expect = append(s.mu.expect, e) }

// parse forwards a Parse whose message is all there.
func (s *borrower) parse(body []byte) error {
	found, rest, ok := names(body, 1)
	if !ok {
		return violation("invalid message format")
	}
	k := newKnown(rest)
	s.mu.Lock()
	defer s.mu.Unlock()
	if found[0] == "" {
		s.unnamed, s.unnamedOn = k, s.mu.srv
		s.say = appendParse(s.say, "", k.body.Value())
		s.expectLocked(expected{typ: '1'})
		return nil
	}
	if _, twice := s.mu.known[found[0]]; twice { // let the server say so
		s.ensureLocked(k)
		s.say = appendParse(s.say, k.name, k.body.Value())
		s.expectLocked(expected{typ: '1'})
		return nil
	}
	if s.mu.kept += len(rest); s.mu.kept > maxStatements {
		return &refusal{fatal: true, code: "53400", message: "too many prepared statements", hint: "Close those that are not needed, or do without pooling of transactions."}
	}
	s.mu.known[found[0]] = k
	srv := s.mu.srv
	if _, there := srv.made[k.name]; there {
		s.say = appendClose(s.say, nowhere)
		s.expectLocked(expected{what: tellAs1, typ: '3', client: found[0]})
		return nil
	}
	s.evictLocked()
	srv.uses++
	srv.made[k.name] = srv.uses
	s.say = appendParse(s.say, k.name, k.body.Value())
	s.expectLocked(expected{typ: '1', made: k.name, client: found[0]})
	return nil
}

// rename forwards the beginning of a Bind, Describe or Close; what follows of it goes as it is. head
// holds the names, size is the message's; it returns how much of head was used.
func (s *borrower) rename(typ byte, head []byte, size int) (used int, ok bool) {
	var found []string
	var rest []byte
	lead := 0
	if typ == msgBind {
		found, rest, ok = names(head, 2)
	} else if len(head) > 0 {
		lead = 1
		found, rest, ok = names(head[1:], 1)
	}
	if !ok {
		return 0, false
	}
	used = len(head) - len(rest)
	name := found[len(found)-1]
	s.mu.Lock()
	defer s.mu.Unlock()
	statement := typ == msgBind || head[0] == 'S'
	if typ == msgClose {
		e := expected{typ: '3'}
		if statement && name != "" {
			if k, ok := s.mu.known[name]; ok {
				e.client, e.closed = name, &k
			}
			s.forgetLocked(name)
			name = nowhere
		}
		s.expectLocked(e)
	} else if statement {
		name = s.onServerLocked(name)
	}
	renamed := size - headerLen - used + lead + len(name) + 1
	if typ == msgBind {
		renamed += len(found[0]) + 1
	}
	s.say = append(s.say, typ)
	s.say = binary.BigEndian.AppendUint32(s.say, uint32(renamed+4))
	if typ == msgBind {
		s.say = append(append(s.say, found[0]...), 0)
	} else {
		s.say = append(s.say, head[0])
	}
	s.say = append(append(s.say, name...), 0)
	return used, true
}

// onServerLocked returns the server's name of a statement, after it was made there if need be.
func (s *borrower) onServerLocked(name string) string {
	if name == "" {
		if s.unnamed.name != "" && s.unnamedOn != s.mu.srv {
			s.say = appendParse(s.say, "", s.unnamed.body.Value())
			s.expectLocked(expected{what: swallow, typ: '1'})
			s.unnamedOn = s.mu.srv
		}
		return ""
	}
	k, ok := s.mu.known[name]
	if !ok {
		return name // the server says that there is none
	}
	s.ensureLocked(k)
	return k.name
}

func (s *borrower) forgetLocked(name string) {
	if k, ok := s.mu.known[name]; ok {
		s.mu.kept -= len(k.body.Value())
		delete(s.mu.known, name)
	}
}

// answeredLocked takes the answer to a Parse or Close off the list and says what becomes of it.
func (s *borrower) answeredLocked(typ byte) (what int, ok bool) {
	if len(s.mu.expect) == 0 || s.mu.expect[0].what == border || s.mu.expect[0].typ != typ {
		return 0, false
	}
	what = s.mu.expect[0].what
	s.mu.expect = s.mu.expect[1:]
	return what, true
}

// undoLocked drops what was expected before the next ReadyForQuery: the server does not do it.
func (s *borrower) undoLocked() {
	for len(s.mu.expect) > 0 && s.mu.expect[0].what != border {
		e := s.mu.expect[0]
		switch {
		case e.closed != nil:
			s.mu.known[e.client] = *e.closed
			s.mu.kept += len(e.closed.body.Value())
		case e.client != "":
			s.forgetLocked(e.client)
		}
		if e.made != "" {
			delete(s.mu.srv.made, e.made)
		}
		if e.evicted != "" {
			s.mu.srv.made[e.evicted] = 0
		}
		s.mu.expect = s.mu.expect[1:]
	}
}

// forgottenLocked notes that the client had everything prepared thrown away, by SQL.
func (s *borrower) forgottenLocked() {
	clear(s.mu.srv.made)
	clear(s.mu.known)
	s.mu.kept = 0
}
