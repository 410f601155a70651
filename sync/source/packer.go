package source

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
)

const (
	// chunkBytes is how much is gathered before it is written: one write then carries hundreds of
	// small transactions, and readers get pieces that a cache holds.
	chunkBytes = 256 << 10
	// spillBytes is how much of one transaction is held in memory.
	spillBytes = 1 << 20
	// bufferBytes holds a chunk and the messages that do not belong to it any more.
	bufferBytes = chunkBytes + 32<<10
	// flushDelay bounds how long a transaction waits for others to share a write with.
	flushDelay = 2 * time.Millisecond
)

// A packer makes chunks out of messages and writes them to the stream.
//
//	buf: | framed messages of whole transactions, the last is last     | messages of the open one |
//	     0                                                          whole                    len(buf)
//
// Transactions that are streamed before they commit go beside it; see streamed.
type packer struct {
	stream *eventstore.Stream
	stored func(received change.LSN, bytes int)
	asked  string             // see eventstore.Newest
	again  *eventstore.Newest // what the server has to send before all else; nil: nothing, or it has
	// rolledBack returns those of some subtransactions of a committed transaction that were rolled back; nil:
	// the server tells of all.
	rolledBack func(subs []uint32) ([]uint32, error)

	buf     []byte
	whole   int
	last    eventstore.Newest
	idle    change.LSN // nothing of interest happened between the last transaction and here
	flushed time.Time
	pins    []pin

	open struct {
		begun    bool
		skip     bool // the stream holds it already
		spilled  bool
		messages int
		xid      uint32
		commit   change.LSN // start of its commit record
		time     uint64     // of its commit
	}

	streams map[uint32]*streamed // by their xid
	block   *streamed            // whose messages come now; nil between blocks
	piece   []byte               // of block: what was not written yet
}

// A pin is the description of a relation, see eventstore.Batch.Pin.
type pin struct {
	relation uint32
	at       change.LSN
	message  []byte
}

func newPacker(stream *eventstore.Stream, asked string, stored func(change.LSN, int)) *packer {
	return &packer{stream: stream, stored: stored, asked: asked, streams: map[uint32]*streamed{}}
}

// add takes one pgoutput message, which is not empty. Of its content only what delimits transactions
// and describes relations is looked at.
func (p *packer) add(msg []byte) error {
	kind := change.Kind(msg[0])
	switch {
	case p.block != nil:
		return p.inBlock(kind, msg)
	case kind == change.KindBegin:
		return p.begin(msg)
	case !p.open.begun:
		return p.between(kind, msg)
	case kind == change.KindCommit:
		return p.commit(msg)
	case !ofTransaction(kind):
		return malformed(msg, "inside of a transaction: the server may be newer than this program")
	case kind == change.KindRelation: // also of one that is skipped: the server does not say it again
		if len(msg) < 5 {
			return malformed(msg, "cut short")
		}
		p.pins = append(p.pins, pin{binary.BigEndian.Uint32(msg[1:]), p.open.commit, append([]byte{}, msg...)})
	}
	return p.keep(msg)
}

// between takes a message that is of no transaction.
func (p *packer) between(kind change.Kind, msg []byte) error {
	switch kind { //nolint:exhaustive // the others do not come here
	case kindStreamStart:
		return p.streamStart(msg)
	case kindStreamCommit:
		return p.streamCommit(msg)
	case kindStreamAbort:
		return p.streamAbort(msg)
	}
	return malformed(msg, "outside of a transaction")
}

// begin reads | 'B' | start of the commit record(8) | time(8) | xid(4) |.
func (p *packer) begin(msg []byte) error {
	if p.open.begun || len(msg) < 21 {
		return fmt.Errorf("%w: begin of %d bytes, inside of a transaction: %v", change.ErrMalformed, len(msg), p.open.begun)
	}
	p.open.begun, p.open.spilled, p.open.messages = true, false, 0
	p.open.commit, p.open.time = lsnAt(msg, 1), binary.BigEndian.Uint64(msg[9:])
	p.open.xid = binary.BigEndian.Uint32(msg[17:])
	p.open.skip = p.holds(p.open.commit)
	return p.keep(msg)
}

// holds reports whether the stream has, or is about to have, the transaction whose commit record
// begins there. Commit records do not overlap: one that begins before the end of another ends there
// at the latest.
func (p *packer) holds(commit change.LSN) bool { return commit < max(p.last.End, p.stream.Head()) }

// commit reads | 'C' | flags(1) | start of the commit record(8) | its end(8) | time(8) |.
func (p *packer) commit(msg []byte) error {
	if len(msg) < 26 || lsnAt(msg, 2) != p.open.commit {
		return fmt.Errorf("%w: commit of %d bytes does not belong to its begin", change.ErrMalformed, len(msg))
	}
	end := lsnAt(msg, 10)
	this := eventstore.Newest{End: end, Commit: p.open.commit, Time: p.open.time, XID: p.open.xid, Asked: p.asked}
	if err := p.recognise(this); err != nil {
		return err
	}
	if err := p.keep(msg); err != nil {
		return err
	}
	tx := p.open
	p.open.begun = false
	switch {
	case tx.spilled:
		return p.commitSpilled(this)
	case tx.skip || tx.messages == 2: // nothing between begin and commit
		p.buf = p.buf[:p.whole]
		return p.keepalive(end)
	}
	p.whole, p.last = len(p.buf), this
	if p.whole >= chunkBytes {
		return p.flush()
	}
	return nil
}

// keepalive takes the server's word that it has sent everything that committed before end.
//
// It does not count while a transaction or a block is being sent: what is under way may have committed
// before end. It does count, and may be acknowledged, while streamed transactions are open between
// blocks: they have not committed, so they end later, and until then the server keeps their WAL from
// its beginning and sends them anew after a reconnect, whatever was acknowledged.
func (p *packer) keepalive(end change.LSN) error {
	if p.open.begun || p.block != nil {
		return nil
	}
	if p.again != nil { // nothing is believed that it says
		return p.passed(end)
	}
	p.idle = max(p.idle, end)
	p.settle(0)
	return nil
}

// drained is called when nothing more has arrived. It writes what is due, or returns when it will
// be; zero: there is nothing to write.
func (p *packer) drained(now time.Time) (due time.Time, err error) {
	if p.whole == 0 {
		return time.Time{}, nil
	}
	if due := p.flushed.Add(flushDelay); now.Before(due) {
		return due, nil
	}
	return time.Time{}, p.flush()
}

// flush writes the whole transactions.
func (p *packer) flush() error {
	if p.whole == 0 {
		return nil
	}
	chunk := p.takeWhole()
	n, err := p.write(func(b *eventstore.Batch) {
		b.Append(p.last.End, chunk)
		b.Newest(p.last)
	})
	if err != nil {
		return err
	}
	p.last = eventstore.Newest{}
	p.flushed = time.Now()
	p.settle(n)
	return nil
}

// takeWhole removes the whole transactions from buf and returns them, to be given away: the buffer itself
// where they fill it, and else a copy, so that what is kept of them takes no more room than they do.
func (p *packer) takeWhole() []byte {
	n := p.whole
	p.whole = 0
	if n < cap(p.buf)/2 {
		chunk := bytes.Clone(p.buf[:n])
		p.cut(n)
		return chunk
	}
	chunk, rest := p.buf[:n:n], p.buf[n:]
	p.buf = append(make([]byte, 0, max(bufferBytes, len(rest))), rest...)
	return chunk
}

// keep appends a message of the open transaction, and spills when it becomes too large.
func (p *packer) keep(msg []byte) error {
	if p.open.skip {
		return nil
	}
	p.open.messages++
	p.buf = change.AppendFrame(p.buf, msg)
	limit := spillBytes
	if p.open.spilled {
		limit = chunkBytes
	}
	if len(p.buf)-p.whole < limit {
		return nil
	}
	if err := p.flush(); err != nil { // what committed before
		return err
	}
	p.open.spilled = true
	_, err := p.write(func(b *eventstore.Batch) { b.Spill(p.open.xid, p.buf) })
	p.cut(len(p.buf))
	return err
}

func (p *packer) commitSpilled(this eventstore.Newest) error {
	n, err := p.write(func(b *eventstore.Batch) {
		if len(p.buf) > 0 {
			b.Spill(this.XID, p.buf)
		}
		b.CommitSpilled(this.XID, this.End)
		b.Newest(this)
	})
	if err != nil {
		return err
	}
	p.cut(len(p.buf))
	p.settle(n)
	return nil
}

// abandon forgets what has not committed, when the connection ends: it will come again.
func (p *packer) abandon() error {
	open := slices.Collect(maps.Keys(p.streams))
	if p.open.spilled && p.open.begun {
		open = append(open, p.open.xid)
	}
	if len(open) == 0 {
		return nil
	}
	p.pins = nil
	return p.drop(open...)
}

// write commits one batch, with the descriptions of relations since the last, and returns its size.
func (p *packer) write(fill func(*eventstore.Batch)) (int, error) {
	b := p.stream.NewBatch()
	for _, pin := range p.pins {
		b.Pin(fmt.Sprintf("r/%d", pin.relation), pin.at, pin.message)
	}
	fill(b)
	n := b.Bytes()
	if err := b.Commit(); err != nil {
		return 0, err
	}
	p.pins = p.pins[:0]
	return n, nil
}

// settle tells how far everything received is visible in the stream.
func (p *packer) settle(bytes int) {
	received := p.stream.Head()
	if p.whole == 0 {
		received = max(received, p.idle)
	}
	p.stored(received, bytes)
}

// cut removes n bytes from the front of buf, and gives up a buffer that one giant message made.
func (p *packer) cut(n int) {
	rest := p.buf[n:]
	if cap(p.buf) > 4*spillBytes && len(rest) < spillBytes {
		p.buf = append([]byte{}, rest...)
		return
	}
	p.buf = p.buf[:copy(p.buf, rest)]
}
