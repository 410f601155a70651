package source

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
)

// The messages by which protocol version 2 brings large transactions while they are in progress.
//
//	'S' xid(4) first(1)                                          a block of xid's messages begins
//	'E'                                                          it ends
//	'c' xid(4) flags(1) start of commit record(8) end(8) time(8) xid commits
//	'A' xid(4) subxid(4)                                         subxid is rolled back; all of xid when they are equal
//
// In a block, each message but Origin has the xid(4) of its (sub)transaction behind its kind.
// Source: PostgreSQL manual, "Logical Replication Message Formats".
const (
	kindStreamStart  change.Kind = 'S'
	kindStreamStop   change.Kind = 'E'
	kindStreamCommit change.Kind = 'c'
	kindStreamAbort  change.Kind = 'A'
)

// A streamed transaction has been sent in part and not committed. It is spilled as
//
//	piece 0: begin, the subtransactions that were rolled back   written at the commit
//	pieces:  messages of protocol version 1, and marks between  see change.KindSubtransaction
//	last:    commit
//
// so that whoever reads the stream sees what version 1 would have sent.
type streamed struct {
	xid uint32
	sub uint32 // of the message before; 0: there was none
	// rolledBack takes four bytes for each subtransaction that was rolled back after some of it was
	// sent: a small part of what the server itself holds in memory for it.
	rolledBack []uint32
	pins       []subPin
	// brought names the subtransactions that brought rows, more than once where they took turns; room is how
	// long it may become before it is tidied up.
	brought []uint32
	room    int
}

// leastRoom is how many subtransactions are named before that is tidied up.
const leastRoom = 1024

// A subPin is a description of a relation that counts unless sub is rolled back. Subtransactions
// nest, so what is rolled back is always the newest: one that repeats the last is not kept.
type subPin struct {
	sub      uint32
	relation uint32
	message  []byte
}

// streamStart begins a block. What it brings goes to piece, which is written when it is full and at
// the end of the block: memory does not grow with the number of open transactions.
func (p *packer) streamStart(msg []byte) error {
	if len(msg) != 6 {
		return malformed(msg, "of %d bytes", len(msg))
	}
	xid := binary.BigEndian.Uint32(msg[1:])
	s := p.streams[xid]
	if first := msg[5] != 0; first != (s == nil) {
		return malformed(msg, "of transaction %d, the first one: %t, but open here: %t", xid, first, s != nil)
	}
	if s == nil {
		s = &streamed{xid: xid}
		p.streams[xid] = s
		if _, err := p.write(func(b *eventstore.Batch) { b.Reserve(xid) }); err != nil {
			return err
		}
	}
	p.block = s
	return nil
}

// inBlock takes a message of a block.
func (p *packer) inBlock(kind change.Kind, msg []byte) error {
	s := p.block
	switch {
	case kind == kindStreamStop:
		p.block = nil
		return p.spillPiece(s)
	case !ofTransaction(kind):
		return malformed(msg, "in a block of a streamed transaction")
	case kind == change.KindOrigin: // of the whole transaction
		p.piece = change.AppendFrame(p.piece, msg)
		return nil
	case len(msg) < 5:
		return malformed(msg, "cut short")
	}
	if sub := binary.BigEndian.Uint32(msg[1:]); sub != s.sub {
		s.sub = sub
		p.piece = change.AppendEnter(p.piece, sub)
	}
	p.piece = change.AppendFrame(p.piece, msg[4:])
	bare := p.piece[len(p.piece)-len(msg)+4:] // without the xid, whose last byte gives way to the kind
	bare[0] = msg[0]
	switch kind { //nolint:exhaustive // the others need no look
	case change.KindRelation:
		if err := s.describe(bare); err != nil {
			return err
		}
	case change.KindInsert, change.KindUpdate, change.KindDelete, change.KindTruncate:
		s.bring()
	}
	if len(p.piece) < chunkBytes {
		return nil
	}
	return p.spillPiece(s)
}

// bring notes that the subtransaction whose messages come now has rows.
func (s *streamed) bring() {
	if n := len(s.brought); n > 0 && s.brought[n-1] == s.sub {
		return
	}
	if s.brought = append(s.brought, s.sub); len(s.brought) > max(s.room, leastRoom) {
		slices.Sort(s.brought)
		s.brought = slices.Compact(s.brought)
		s.room = 2 * len(s.brought)
	}
}

// standing returns, ascending, the subtransactions that brought rows and were not rolled back as far as is known.
func (s *streamed) standing() []uint32 {
	slices.Sort(s.rolledBack)
	s.rolledBack = slices.Compact(s.rolledBack)
	slices.Sort(s.brought)
	return slices.DeleteFunc(slices.Compact(slices.Clone(s.brought)), func(sub uint32) bool {
		_, gone := slices.BinarySearch(s.rolledBack, sub)
		return gone
	})
}

// describe keeps the description of a relation until it is known whether it counts.
func (s *streamed) describe(msg []byte) error {
	if len(msg) < 5 {
		return malformed(msg, "cut short")
	}
	relation := binary.BigEndian.Uint32(msg[1:])
	for _, p := range slices.Backward(s.pins) {
		if p.relation != relation {
			continue
		}
		if bytes.Equal(p.message, msg) {
			return nil
		}
		break
	}
	s.pins = append(s.pins, subPin{s.sub, relation, bytes.Clone(msg)})
	return nil
}

// spillPiece writes what has arrived of a streamed transaction.
func (p *packer) spillPiece(s *streamed) error {
	if len(p.piece) == 0 {
		return nil
	}
	_, err := p.write(func(b *eventstore.Batch) { b.Spill(s.xid, p.piece) })
	if p.piece = p.piece[:0]; cap(p.piece) > 4*chunkBytes { // one giant message made it so
		p.piece = nil
	}
	return err
}

// streamCommit makes a streamed transaction visible, at its place: after what committed before.
func (p *packer) streamCommit(msg []byte) error {
	if len(msg) != 30 {
		return malformed(msg, "of %d bytes", len(msg))
	}
	xid, commit, end := binary.BigEndian.Uint32(msg[1:]), lsnAt(msg, 6), lsnAt(msg, 14)
	this := eventstore.Newest{End: end, Commit: commit, Time: binary.BigEndian.Uint64(msg[22:]), XID: xid, Asked: p.asked}
	s := p.streams[xid]
	if s == nil {
		return malformed(msg, "of transaction %d, of which nothing was sent", xid)
	}
	delete(p.streams, xid)
	if err := p.recognise(this); err != nil {
		return errors.Join(err, p.drop(xid))
	}
	standing, err := p.askOf(s)
	if err != nil {
		return errors.Join(err, p.drop(xid))
	}
	if err := p.flush(); err != nil {
		return err
	}
	for _, d := range s.pins {
		p.pins = append(p.pins, pin{d.relation, commit, d.message})
	}
	if p.holds(commit) || len(s.brought) == 0 { // of one without rows a server that did not stream it would send nothing
		if err := p.drop(xid); err != nil {
			return err
		}
		return p.keepalive(end)
	}
	n, err := p.write(func(b *eventstore.Batch) {
		b.Spill(xid, change.AppendFrame(nil, append([]byte{byte(change.KindCommit)}, msg[5:]...)))
		b.CommitReserved(xid, end, s.first(msg))
		if len(standing) > 0 { // or else all is rolled back, and not sent again
			b.Newest(this)
		}
	})
	if err != nil {
		return err
	}
	p.settle(n)
	return nil
}

// first returns piece 0 of a transaction that commits with msg.
func (s *streamed) first(msg []byte) []byte {
	begin := append([]byte{byte(change.KindBegin)}, msg[6:14]...) // start of the commit record
	begin = append(begin, msg[22:30]...)                          // time
	begin = append(begin, msg[1:5]...)                            // xid
	piece := change.AppendFrame(nil, begin)
	if len(s.rolledBack) == 0 {
		return piece
	}
	return change.AppendRolledBack(piece, s.rolledBack)
}

// askOf returns the subtransactions of a transaction that commits which brought rows and were not rolled back.
// Of those the server told nothing of it is asked, see inquiry.
func (p *packer) askOf(s *streamed) (standing []uint32, err error) {
	standing = s.standing()
	subs := slices.DeleteFunc(slices.Clone(standing), func(sub uint32) bool { return sub == s.xid })
	if len(subs) == 0 || p.rolledBack == nil {
		return standing, nil
	}
	gone, err := p.rolledBack(subs)
	if err != nil || len(gone) == 0 {
		return standing, err
	}
	for _, sub := range gone {
		s.rollBack(sub)
	}
	return s.standing(), nil
}

// rollBack takes note that a subtransaction does not count.
func (s *streamed) rollBack(sub uint32) {
	s.rolledBack = append(s.rolledBack, sub)
	s.pins = slices.DeleteFunc(s.pins, func(d subPin) bool { return d.sub == sub })
}

// streamAbort forgets a streamed transaction, or notes which part of it does not count.
func (p *packer) streamAbort(msg []byte) error {
	if len(msg) != 9 {
		return malformed(msg, "of %d bytes", len(msg))
	}
	xid, sub := binary.BigEndian.Uint32(msg[1:]), binary.BigEndian.Uint32(msg[5:])
	s := p.streams[xid]
	switch {
	case s == nil: // nothing of it came over this connection
		return nil
	case sub == xid:
		delete(p.streams, xid)
		return p.drop(xid)
	}
	s.rollBack(sub)
	return nil
}

// drop removes what was spilled of transactions that will not commit here.
func (p *packer) drop(xids ...uint32) error {
	_, err := p.write(func(b *eventstore.Batch) {
		for _, xid := range xids {
			b.DropSpilled(xid)
		}
	})
	return err
}

// ofTransaction reports whether messages of a kind come between the begin and the end of a
// transaction.
func ofTransaction(kind change.Kind) bool {
	switch kind {
	case change.KindOrigin, change.KindRelation, change.KindType, change.KindInsert, change.KindUpdate,
		change.KindDelete, change.KindTruncate, change.KindMessage:
		return true
	case change.KindBegin, change.KindCommit, change.KindSubtransaction:
	}
	return false
}

// malformed names the message that does not belong where it came, or not there as it is.
func malformed(msg []byte, format string, args ...any) error {
	return fmt.Errorf("%w: %s %s", change.ErrMalformed, kindName(change.Kind(msg[0])), fmt.Sprintf(format, args...))
}

func kindName(kind change.Kind) string {
	switch kind { //nolint:exhaustive // the rest have names of their own
	case kindStreamStart:
		return "stream start"
	case kindStreamStop:
		return "stream stop"
	case kindStreamCommit:
		return "stream commit"
	case kindStreamAbort:
		return "stream abort"
	}
	return kind.String()
}
