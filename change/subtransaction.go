package change

import (
	"encoding/binary"
	"slices"
)

// KindSubtransaction is a kind of our own, never on PostgreSQL's wire. Whoever stores a transaction
// that was streamed before it committed (protocol version 2) puts marks into it, because parts of it
// may have been rolled back after they were sent:
//
//	| '/' | '-' | xid(4) ... |   behind Begin: these subtransactions were rolled back; ascending
//	| '/' | '>' | xid(4) |       what follows belongs to this subtransaction, up to the next mark
//
// The messages between are those of protocol version 1. A [Decoder] acts on the marks, and returns
// KindSubtransaction for them and for every message that was rolled back: the caller passes it over.
const KindSubtransaction Kind = '/'

// What a mark says.
const (
	markRolledBack = '-'
	markEnter      = '>'
)

// AppendEnter appends a frame that says of which (sub)transaction the messages after it are.
func AppendEnter(chunk []byte, xid uint32) []byte {
	return AppendFrame(chunk, binary.BigEndian.AppendUint32([]byte{byte(KindSubtransaction), markEnter}, xid))
}

// AppendRolledBack appends a frame that names the subtransactions of a transaction that do not
// count, in ascending order.
func AppendRolledBack(chunk []byte, xids []uint32) []byte {
	msg := make([]byte, 2, 2+4*len(xids))
	msg[0], msg[1] = byte(KindSubtransaction), markRolledBack
	for _, xid := range xids {
		msg = binary.BigEndian.AppendUint32(msg, xid)
	}
	return AppendFrame(chunk, msg)
}

// subtransactions is what a decoder knows about those of the open transaction.
type subtransactions struct {
	rolledBack []uint32 // ascending
	skip       bool     // the messages now are of one of these
}

func (s *subtransactions) reset() { s.rolledBack, s.skip = s.rolledBack[:0], false }

// mark takes a mark.
func (s *subtransactions) mark(c *cursor) {
	switch tag := c.byte(); {
	case c.err != nil:
	case tag == markEnter:
		_, s.skip = slices.BinarySearch(s.rolledBack, c.uint32())
	case tag == markRolledBack:
		for len(c.b) > 0 {
			xid := c.uint32()
			if n := len(s.rolledBack); n > 0 && xid <= s.rolledBack[n-1] {
				c.fail("subtransactions out of order")
			}
			if c.err == nil {
				s.rolledBack = append(s.rolledBack, xid)
			}
		}
	default:
		c.fail("unknown mark")
	}
}

// skips reports whether a message was rolled back. Begin, Commit and Origin are of the whole
// transaction.
func (s *subtransactions) skips(k Kind) bool {
	switch k {
	case KindRelation, KindType, KindInsert, KindUpdate, KindDelete, KindTruncate, KindMessage:
		return s.skip
	case KindBegin, KindCommit, KindOrigin, KindSubtransaction:
	}
	return false
}
