package change

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Kind is the first byte of a pgoutput message.
// Source: PostgreSQL manual, "Logical Replication Message Formats".
type Kind byte

// The messages of protocol version 1. What version 2 adds ends where the stream is stored; see
// [KindSubtransaction].
const (
	KindBegin    Kind = 'B'
	KindCommit   Kind = 'C'
	KindOrigin   Kind = 'O'
	KindRelation Kind = 'R'
	KindType     Kind = 'Y'
	KindInsert   Kind = 'I'
	KindUpdate   Kind = 'U'
	KindDelete   Kind = 'D'
	KindTruncate Kind = 'T'
	KindMessage  Kind = 'M'
)

// String returns the message's name.
func (k Kind) String() string {
	switch k {
	case KindBegin:
		return "begin"
	case KindCommit:
		return "commit"
	case KindOrigin:
		return "origin"
	case KindRelation:
		return "relation"
	case KindType:
		return "type"
	case KindInsert:
		return "insert"
	case KindUpdate:
		return "update"
	case KindDelete:
		return "delete"
	case KindTruncate:
		return "truncate"
	case KindMessage:
		return "message"
	case KindSubtransaction:
		return "subtransaction"
	}
	return fmt.Sprintf("kind %q", byte(k))
}

// ErrMalformed says that a message does not follow the protocol.
var ErrMalformed = errors.New("malformed pgoutput message")

// A Message is one decoded pgoutput message; Kind says which of the fields holds it.
type Message struct {
	Kind     Kind
	Begin    Begin     // KindBegin
	Commit   Commit    // KindCommit
	Origin   string    // KindOrigin: the name of the replication origin
	Relation *Relation // KindRelation: also kept by the decoder for the rows that follow
	Row      Row       // KindInsert, KindUpdate, KindDelete
	Truncate Truncate  // KindTruncate
	Logical  Logical   // KindMessage
}

// Begin opens a transaction. CommitLSN is where its commit record starts.
type Begin struct {
	CommitLSN  LSN
	CommitTime time.Time
	XID        uint32
}

// Commit closes a transaction. EndLSN, the position after the commit record, identifies it.
type Commit struct {
	CommitLSN, EndLSN LSN
	CommitTime        time.Time
}

// Truncate empties all its relations in one statement.
type Truncate struct {
	Relations                []*Relation
	Cascade, RestartIdentity bool
}

// Logical is a message of pg_logical_emit_message.
type Logical struct {
	Transactional bool
	LSN           LSN
	Prefix        string
	Content       []byte
}

// A Decoder turns raw messages into rows. It remembers the relations it has seen, so the messages
// of one stream go through one Decoder in order. Not safe for concurrent use.
type Decoder struct {
	relations map[uint32]*Relation
	old, new  Tuple // reused from message to message
	subs      subtransactions
}

// NewDecoder returns a decoder that knows no relation yet.
func NewDecoder() *Decoder { return &Decoder{relations: map[uint32]*Relation{}} }

// Decode reads one message. The result aliases msg and the decoder, until the next call; only a
// *Relation stays valid (and unchanged) for good. The error wraps ErrMalformed.
func (d *Decoder) Decode(msg []byte) (Message, error) {
	if len(msg) == 0 {
		return Message{}, fmt.Errorf("%w: empty", ErrMalformed)
	}
	m := Message{Kind: Kind(msg[0])}
	if d.subs.skips(m.Kind) {
		return Message{Kind: KindSubtransaction}, nil
	}
	c := cursor{b: msg[1:]}
	switch m.Kind {
	case KindBegin:
		d.subs.reset()
		m.Begin = Begin{CommitLSN: LSN(c.uint64()), CommitTime: c.time(), XID: c.uint32()}
	case KindCommit:
		c.byte() // flags, unused
		m.Commit = Commit{CommitLSN: LSN(c.uint64()), EndLSN: LSN(c.uint64()), CommitTime: c.time()}
	case KindOrigin:
		c.uint64() // the commit's LSN on the origin
		m.Origin = c.string()
	case KindRelation:
		m.Relation = c.relation()
		if c.err == nil {
			d.relations[m.Relation.ID] = m.Relation
		}
	case KindType: // names of types; we look types up where we write them
		c.b = nil
	case KindInsert:
		m.Row = Row{Op: Insert, Rel: d.relation(&c)}
		c.expect('N')
		m.Row.New = c.tuple(&d.new, m.Row.Rel)
	case KindUpdate:
		m.Row = Row{Op: Update, Rel: d.relation(&c)}
		tag := c.byte()
		if tag == 'K' || tag == 'O' {
			m.Row.OldIsKey = tag == 'K'
			m.Row.Old = c.tuple(&d.old, m.Row.Rel)
			tag = c.byte()
		}
		if tag != 'N' {
			c.fail("update without a new tuple")
		}
		m.Row.New = c.tuple(&d.new, m.Row.Rel)
	case KindDelete:
		m.Row = Row{Op: Delete, Rel: d.relation(&c)}
		tag := c.byte()
		if tag != 'K' && tag != 'O' {
			c.fail("delete without an old tuple")
		}
		m.Row.OldIsKey = tag == 'K'
		m.Row.Old = c.tuple(&d.old, m.Row.Rel)
	case KindTruncate:
		n := c.uint32()
		flags := c.byte()
		m.Truncate = Truncate{Cascade: flags&1 != 0, RestartIdentity: flags&2 != 0}
		for i := uint32(0); i < n && c.err == nil; i++ {
			m.Truncate.Relations = append(m.Truncate.Relations, d.relation(&c))
		}
	case KindMessage:
		m.Logical.Transactional = c.byte()&1 != 0
		m.Logical.LSN = LSN(c.uint64())
		m.Logical.Prefix = c.string()
		m.Logical.Content = c.bytes(int(c.uint32()))
	case KindSubtransaction:
		d.subs.mark(&c)
	default:
		return Message{}, fmt.Errorf("%w: unknown %s: the server may be newer than this program", ErrMalformed, m.Kind)
	}
	if c.err == nil && len(c.b) != 0 {
		c.fail("bytes left over")
	}
	if c.err != nil {
		return Message{}, fmt.Errorf("%s: %w", m.Kind, c.err)
	}
	return m, nil
}

func (d *Decoder) relation(c *cursor) *Relation {
	id := c.uint32()
	rel := d.relations[id]
	if rel == nil && c.err == nil {
		c.fail("relation was not announced")
	}
	return rel
}

// A cursor reads big-endian fields and keeps the first error; after one, everything reads as zero.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) fail(why string) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: %s", ErrMalformed, why)
	}
	c.b = nil
}

func (c *cursor) bytes(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.fail("cut short")
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) byte() byte {
	if v := c.bytes(1); v != nil {
		return v[0]
	}
	return 0
}

func (c *cursor) expect(tag byte) {
	if got := c.byte(); got != tag {
		c.fail(fmt.Sprintf("want tag %q, got %q", tag, got))
	}
}

func (c *cursor) uint16() uint16 {
	if v := c.bytes(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if v := c.bytes(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (c *cursor) uint64() uint64 {
	if v := c.bytes(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// time reads microseconds since 2000-01-01 UTC, PostgreSQL's epoch.
func (c *cursor) time() time.Time {
	const postgresEpoch = 946684800 // seconds, Unix
	us := int64(c.uint64())
	return time.Unix(postgresEpoch+us/1e6, us%1e6*1e3).UTC()
}

func (c *cursor) string() string {
	i := bytes.IndexByte(c.b, 0)
	if i < 0 {
		c.fail("string without an end")
		return ""
	}
	s := string(c.b[:i])
	c.b = c.b[i+1:]
	return s
}

func (c *cursor) relation() *Relation {
	r := &Relation{ID: c.uint32(), Namespace: c.string(), Name: c.string(), ReplicaIdentity: c.byte()}
	if r.Namespace == "" {
		r.Namespace = "pg_catalog" // pgoutput sends it as the empty string
	}
	n := c.uint16()
	for i := uint16(0); i < n && c.err == nil; i++ {
		r.Columns = append(r.Columns, Column{
			Identity: c.byte()&1 != 0,
			Name:     c.string(),
			TypeOID:  c.uint32(),
			TypeMod:  int32(c.uint32()),
		})
	}
	return r
}

// tuple reads a row image into *buf, which it grows as needed. Most of the time that decoding takes is
// spent here, so it walks the bytes itself.
func (c *cursor) tuple(buf *Tuple, rel *Relation) Tuple {
	n := int(c.uint16())
	if c.err != nil {
		return nil
	}
	if n != len(rel.Columns) {
		c.fail(fmt.Sprintf("tuple of %d columns for a relation of %d", n, len(rel.Columns)))
		return nil
	}
	t := slices.Grow((*buf)[:0], n)[:n]
	*buf = t
	b := c.b
	for i := range t {
		if len(b) == 0 {
			c.fail("cut short")
			return nil
		}
		tag := b[0]
		if tag == 'n' || tag == 'u' {
			t[i] = Value{}
			if tag == 'u' {
				t[i].Kind = Unchanged
			}
			b = b[1:]
			continue
		}
		if tag != 't' && tag != 'b' {
			c.fail(fmt.Sprintf("unknown value tag %q", tag))
			return nil
		}
		if len(b) < 5 {
			c.fail("cut short")
			return nil
		}
		size := uint64(binary.BigEndian.Uint32(b[1:]))
		if b = b[5:]; size > uint64(len(b)) {
			c.fail("cut short")
			return nil
		}
		kind := Text
		if tag == 'b' {
			kind = Binary
		}
		t[i] = Value{kind, b[:size:size]}
		b = b[size:]
	}
	c.b = b
	return t
}
