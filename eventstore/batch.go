package eventstore

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/ficus-migrate/ficus/change"
)

// A Batch gathers additions to a stream and makes them visible in one step. A stream has one
// writer: one batch at a time, used by one goroutine, from NewBatch to Commit. The writer that
// abandons a batch with spills in it calls DropSpilled for each in the next.
//
// The methods but Append copy what they are given. The first mistake is kept, and returned by Commit.
type Batch struct {
	stream  *Stream
	b       *pebble.Batch
	records []record   // that readers will see
	head    change.LSN // that the stream will have
	err     error
}

// NewBatch returns an empty batch.
func (st *Stream) NewBatch() *Batch {
	b := &Batch{stream: st, head: st.Head()}
	if b.err = st.enter(); b.err == nil {
		b.b = st.store.db.NewBatch()
		st.store.leave()
	}
	return b
}

// Append adds a chunk of whole transactions, the last of which ends at end. Ends only grow. The chunk
// is given away: readers get it as it is, and nobody may change it any more.
func (b *Batch) Append(end change.LSN, chunk []byte) {
	if !b.advance(end) {
		return
	}
	op := b.b.SetDeferred(len(b.stream.keys)+9, 1+len(chunk)) // spares a copy of the chunk
	copy(op.Key, b.stream.keys.at(tagCommitted, end))
	op.Value[0] = valueChunk
	copy(op.Value[1:], chunk)
	b.fail(op.Finish())
	b.records = append(b.records, record{end: end, chunk: chunk})
}

// Spill adds the next chunk of a large transaction that has not committed yet. Any number may be
// open at a time.
func (b *Batch) Spill(xid uint32, chunk []byte) {
	if b.err != nil {
		return
	}
	id, n := b.nextPiece(xid)
	b.fail(b.b.Set(b.stream.keys.spill(id, n), chunk, nil))
}

// Reserve begins a large transaction whose first chunk is not known before its commit, which is
// CommitReserved.
func (b *Batch) Reserve(xid uint32) {
	if b.err != nil {
		return
	}
	if _, n := b.nextPiece(xid); n != 0 {
		b.fail(fmt.Errorf("transaction %d was spilled before", xid))
		return
	}
	b.stream.mu.Lock()
	defer b.stream.mu.Unlock()
	b.stream.mu.spills[xid].reserved = true
}

// nextPiece takes the number of the next chunk of a large transaction, which it begins.
func (b *Batch) nextPiece(xid uint32) (id uint64, n uint32) {
	st := b.stream
	st.mu.Lock()
	sp := st.mu.spills[xid]
	if sp == nil {
		sp = &spill{id: st.mu.nextSpill}
		st.mu.nextSpill++
		st.mu.spills[xid] = sp
	}
	n = sp.chunks
	sp.chunks++
	st.mu.Unlock()
	if n == 0 {
		b.fail(b.b.Set(st.keys.key(tagOpen, u64(sp.id)), u32(xid), nil))
	}
	return sp.id, n
}

// CommitSpilled makes a large transaction, which ends at end, visible after all before it.
func (b *Batch) CommitSpilled(xid uint32, end change.LSN) { b.commitSpill(xid, end, false, nil) }

// CommitReserved is CommitSpilled for a large transaction that began with Reserve; first becomes its
// first chunk.
func (b *Batch) CommitReserved(xid uint32, end change.LSN, first []byte) {
	b.commitSpill(xid, end, true, first)
}

func (b *Batch) commitSpill(xid uint32, end change.LSN, reserved bool, first []byte) {
	sp := b.takeSpill(xid)
	if sp == nil || sp.reserved != reserved {
		b.fail(fmt.Errorf("commit of transaction %d: it was not spilled so", xid))
		return
	}
	if !b.advance(end) {
		return
	}
	if reserved {
		b.fail(b.b.Set(b.stream.keys.spill(sp.id, 0), first, nil))
	}
	keys := b.stream.keys
	ref := append([]byte{valueSpill}, u64(sp.id)...)
	b.fail(b.b.Set(keys.at(tagCommitted, end), append(ref, u32(sp.chunks)...), nil))
	b.fail(b.b.Set(keys.at(tagLarge, end), u64(sp.id), nil))
	b.fail(b.b.Delete(keys.key(tagOpen, u64(sp.id)), nil))
	b.records = append(b.records, record{end: end, large: spillRef{sp.id, sp.chunks}})
}

// DropSpilled removes what was spilled of a transaction that will not commit here; nothing happens
// when there is none.
func (b *Batch) DropSpilled(xid uint32) {
	sp := b.takeSpill(xid)
	if sp == nil {
		return
	}
	lower, upper := span(b.stream.keys.key(tagSpill, u64(sp.id)))
	b.fail(b.b.DeleteRange(lower, upper, nil))
	b.fail(b.b.Delete(b.stream.keys.key(tagOpen, u64(sp.id)), nil))
}

// Pin keeps a value that a reader needs to understand what follows, such as the last description
// of a relation. at is where the commit record of the transaction that carried it begins
// ([change.Begin].CommitLSN); the newest value of a key counts. Keys have at most 65535 bytes.
func (b *Batch) Pin(key string, at change.LSN, value []byte) {
	if b.err == nil {
		b.fail(b.b.Set(b.stream.keys.key(tagPin, sized(key), u64(uint64(at))), value, nil))
	}
}

// Newest says which transaction the last one of the batch is: its end is the head that the stream will
// have. Without it nothing is known of that transaction.
func (b *Batch) Newest(n Newest) {
	if b.err == nil && n.End != b.head {
		b.err = fmt.Errorf("newest transaction ends at %s, the batch at %s", n.End, b.head)
	}
	if b.err == nil {
		b.fail(b.b.Set(b.stream.keys.key(tagNewest), n.encode(), nil))
	}
}

// Bytes returns the size of what was gathered.
func (b *Batch) Bytes() int {
	if b.b == nil {
		return 0
	}
	return b.b.Len()
}

// Commit makes the batch visible to readers, all at once; Sync makes it durable. The batch is
// spent afterwards.
func (b *Batch) Commit() error {
	st := b.stream
	if b.err == nil {
		b.err = st.enter()
		if b.err == nil {
			defer st.store.leave()
			b.commit()
		}
	}
	if b.err != nil {
		return fmt.Errorf("write to stream %q: %w", st.name, b.err)
	}
	b.err = errors.New("batch was committed before")
	return nil
}

func (b *Batch) commit() {
	st := b.stream
	st.write.Lock()
	defer st.write.Unlock()
	if b.err = st.alive(); b.err != nil { // dropped while we waited
		return
	}
	b.fail(b.b.Commit(pebble.NoSync))
	b.fail(b.b.Close())
	if b.err != nil {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if b.head > st.mu.head {
		st.mu.head = b.head
		st.mu.recent.add(b.records)
		st.wakeLocked()
	}
}

// advance checks that end is beyond everything before it, and reports whether the batch is sound.
func (b *Batch) advance(end change.LSN) bool {
	if b.err == nil && end <= b.head {
		b.err = fmt.Errorf("transaction that ends at %s comes after one that ends at %s", end, b.head)
	}
	if b.err != nil {
		return false
	}
	b.head = end
	return true
}

func (b *Batch) takeSpill(xid uint32) *spill {
	if b.err != nil {
		return nil
	}
	b.stream.mu.Lock()
	defer b.stream.mu.Unlock()
	sp := b.stream.mu.spills[xid]
	delete(b.stream.mu.spills, xid)
	return sp
}

func (b *Batch) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}
