package eventstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/ficus-migrate/ficus/change"
)

// readAhead is how much a reader takes from the database at a time. An iterator costs as much as
// reading a chunk does, and many chunks are small.
const readAhead = 1 << 20

// A Chunk is framed messages of one or many whole transactions, or a piece of one large one.
type Chunk struct {
	End  change.LSN // end of the last transaction in it
	Data []byte     // see change.NextFrame; for good, but shared: nobody changes it
	// Spilled marks a piece of a large transaction. Its pieces follow one another with the same
	// End; messages are never split between them, and the commit is the last message of the last.
	Spilled bool
}

// A Reader goes through a stream in commit order. Not safe for concurrent use.
type Reader struct {
	stream *Stream
	pos    change.LSN // End of the last whole chunk that was returned
	ahead  []Chunk    // what comes next, as far as it was read already

	// The large transaction that is being read, while next < count.
	large struct {
		spillRef
		end  change.LSN
		next uint32
	}
}

// Read returns a reader of what follows from: the position up to which the caller knows the
// stream, 0 for all of it. Chunks hold many transactions, so the first may begin before from (and,
// when from is beyond Head, whole chunks may lie before it): the caller drops transactions that
// end at or before from, and minds only the relations they announce.
func (st *Stream) Read(from change.LSN) *Reader {
	// Beyond the head nothing is known to be there, so nothing is skipped: relations that the
	// reader will need may yet arrive before from.
	return &Reader{stream: st, pos: min(from, st.Head())}
}

// Pins returns, in no particular order, the newest pinned value of each key before the first chunk
// that Next has not returned yet. Decoding that chunk needs them: read them first.
func (r *Reader) Pins() (values [][]byte, err error) {
	st := r.stream
	if err := st.enter(); err != nil {
		return nil, err
	}
	defer st.store.leave()

	// Not r.pos: the next chunk may begin before it, and its transactions are decoded from the
	// first, each with the relations of its own time.
	before, err := last(st.store.db, &pebble.IterOptions{
		LowerBound: st.keys.key(tagCommitted), UpperBound: st.keys.at(tagCommitted, r.pos+1),
	})
	if err != nil {
		return nil, fmt.Errorf("read stream %q: %w", st.name, err)
	}
	st.mu.Lock()
	start := max(st.mu.tail, tailLSN(before))
	st.mu.Unlock()

	var newest []byte // key of the last of values, less its position
	err = scan(st.store.db, within(st.keys.key(tagPin)), func(k, v []byte) error {
		if len(k) < len(st.keys)+9 {
			return fmt.Errorf("malformed key %x", k)
		}
		key, at := k[:len(k)-8], tailLSN(k)
		if at >= start {
			return nil
		}
		if newest != nil && string(newest) == string(key) {
			values = values[:len(values)-1]
		}
		newest = append(newest[:0], key...)
		values = append(values, append([]byte{}, v...))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read stream %q: %w", st.name, err)
	}
	return values, nil
}

// Next returns the next chunk, for which it waits until there is one or ctx is done. The error is
// ErrTrimmed when what should come next is gone, ErrDropped or ErrClosed when nothing more comes.
func (r *Reader) Next(ctx context.Context) (Chunk, error) {
	st := r.stream
	for {
		st.mu.Lock()
		head, tail, wake, stopped := st.mu.head, st.mu.tail, st.mu.wake, st.mu.stopped
		newest, ok := st.mu.recent.next(r.pos)
		st.mu.Unlock()
		switch {
		case stopped != nil:
			return Chunk{}, fmt.Errorf("read stream %q: %w", st.name, stopped)
		case ctx.Err() != nil:
			return Chunk{}, context.Cause(ctx)
		case r.pos < tail: // whatever was read, something before it is gone
			return Chunk{}, errTrimmed(st.name, r.pos, tail)
		case len(r.ahead) > 0:
			return r.take(), nil
		case r.inLarge():
			if err := r.load(r.pieces); err != nil {
				return Chunk{}, err
			}
		case ok && newest.large.count == 0:
			r.pos = newest.end
			return Chunk{End: newest.end, Data: newest.chunk}, nil
		case ok:
			r.enter(newest)
		case head > r.pos:
			if err := r.load(r.records); err != nil {
				return Chunk{}, err
			}
		default:
			select {
			case <-ctx.Done():
			case <-wake:
			}
		}
	}
}

// Position returns the end of the last chunk that was returned, of a large transaction only with its last
// piece: from there on the reader needs the stream.
func (r *Reader) Position() change.LSN { return r.pos }

// Close ends the reader. A reader holds nothing open between calls, so that one which stands still
// keeps neither memory nor files from being freed.
func (r *Reader) Close() error {
	r.ahead = nil
	return nil
}

func (r *Reader) inLarge() bool { return r.large.next < r.large.count }

// take returns the first chunk of ahead.
func (r *Reader) take() Chunk {
	c := r.ahead[0]
	r.ahead[0] = Chunk{} // lest the array keeps the data
	r.ahead = r.ahead[1:]
	if !c.Spilled || len(r.ahead) == 0 && !r.inLarge() {
		r.pos = c.End
	}
	return c
}

// enter begins with the pieces of a large transaction.
func (r *Reader) enter(rec record) {
	r.large.end, r.large.spillRef, r.large.next = rec.end, rec.large, 0
}

// load fills ahead from the database. What was read before an error counts; who comes back meets the
// error again.
func (r *Reader) load(read func(*pebble.DB) error) error {
	st := r.stream
	if err := st.enter(); err != nil {
		return err
	}
	defer st.store.leave()
	err := read(st.store.db)
	if err == nil || len(r.ahead) > 0 {
		return nil
	}
	st.mu.Lock()
	tail := st.mu.tail
	st.mu.Unlock()
	if r.pos < tail {
		return errTrimmed(st.name, r.pos, tail)
	}
	return fmt.Errorf("read stream %q after %s: %w", st.name, r.pos, err)
}

// records reads what comes after pos, up to the next large transaction.
func (r *Reader) records(db *pebble.DB) error {
	_, end := span(r.stream.keys.key(tagCommitted))
	size := 0
	err := scan(db, &pebble.IterOptions{LowerBound: r.stream.keys.at(tagCommitted, r.pos+1), UpperBound: end}, func(k, v []byte) error {
		rec, err := r.record(k, v)
		if err != nil {
			return err
		}
		if rec.large.count > 0 {
			r.enter(rec)
			return errStop
		}
		r.ahead = append(r.ahead, Chunk{End: rec.end, Data: rec.chunk})
		if size += len(v) + recordOverhead; size >= readAhead {
			return errStop
		}
		return nil
	})
	if err == nil && len(r.ahead) == 0 && !r.inLarge() {
		return errMissing
	}
	return err
}

// errMissing says that something is not where the stream has it.
var errMissing = errors.New("record is missing")

// record reads what stands under a key of tagCommitted. The chunk is a copy.
func (r *Reader) record(key, value []byte) (record, error) {
	rec := record{end: tailLSN(key)}
	switch {
	case len(key) != len(r.stream.keys)+9:
		return record{}, fmt.Errorf("malformed key %x", key)
	case len(value) > 0 && value[0] == valueChunk:
		rec.chunk = append([]byte{}, value[1:]...)
	case len(value) == 13 && value[0] == valueSpill:
		rec.large = spillRef{binary.BigEndian.Uint64(value[1:]), binary.BigEndian.Uint32(value[9:])}
		if rec.large.count == 0 {
			return record{}, fmt.Errorf("malformed record at %s: a large transaction without a piece", rec.end)
		}
	default:
		return record{}, fmt.Errorf("malformed record at %s", rec.end)
	}
	return rec, nil
}

// pieces reads on in the large transaction.
func (r *Reader) pieces(db *pebble.DB) error {
	l, keys := &r.large, r.stream.keys
	_, end := span(keys.key(tagSpill, u64(l.id)))
	size, before := 0, l.next
	err := scan(db, &pebble.IterOptions{LowerBound: keys.spill(l.id, l.next), UpperBound: end}, func(k, v []byte) error {
		if !bytes.Equal(k, keys.spill(l.id, l.next)) {
			return errMissing
		}
		r.ahead = append(r.ahead, Chunk{End: l.end, Data: append([]byte{}, v...), Spilled: true})
		l.next++
		if size += len(v) + recordOverhead; size >= readAhead || !r.inLarge() {
			return errStop
		}
		return nil
	})
	if err == nil && l.next == before {
		err = errMissing
	}
	if err != nil {
		err = fmt.Errorf("piece %d of %d of the transaction that ends at %s: %w", l.next+1, l.count, l.end, err)
	}
	return err
}
