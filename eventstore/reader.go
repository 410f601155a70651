package eventstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/ficus-migrate/ficus/change"
)

// A Chunk is framed messages of one or many whole transactions, or a piece of one large one.
type Chunk struct {
	End  change.LSN // end of the last transaction in it
	Data []byte     // see change.NextFrame; valid until the next call of Next
	// Spilled marks a piece of a large transaction. Its pieces follow one another with the same
	// End; messages are never split between them, and the commit is the last message of the last.
	Spilled bool
}

// A Reader goes through a stream in commit order. Not safe for concurrent use.
type Reader struct {
	stream *Stream
	pos    change.LSN // End of the last whole chunk that was returned
	buf    []byte

	// The large transaction that is being returned, while next < count.
	large struct {
		end         change.LSN
		id          uint64
		next, count uint32
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
		head, wake, stopped := st.mu.head, st.mu.wake, st.mu.stopped
		st.mu.Unlock()
		if stopped != nil {
			return Chunk{}, fmt.Errorf("read stream %q: %w", st.name, stopped)
		}
		if ctx.Err() != nil {
			return Chunk{}, context.Cause(ctx)
		}
		if r.large.next < r.large.count || head > r.pos {
			return r.fetch()
		}
		select {
		case <-ctx.Done():
		case <-wake:
		}
	}
}

// Close ends the reader. A reader holds nothing open between calls, so that one which stands still
// keeps neither memory nor files from being freed.
func (r *Reader) Close() error {
	r.buf = nil
	return nil
}

func (r *Reader) fetch() (Chunk, error) {
	st := r.stream
	if err := st.enter(); err != nil {
		return Chunk{}, err
	}
	defer st.store.leave()

	c, err := r.read(st.store.db)
	st.mu.Lock()
	tail := st.mu.tail
	st.mu.Unlock()
	switch {
	case r.pos < tail: // whatever was read, something before it is gone
		return Chunk{}, errTrimmed(st.name, r.pos, tail)
	case err != nil:
		return Chunk{}, fmt.Errorf("read stream %q after %s: %w", st.name, r.pos, err)
	case r.large.next == r.large.count:
		r.pos = c.End
	}
	return c, nil
}

// read returns what comes after pos, or the next piece of the large transaction under way.
func (r *Reader) read(db *pebble.DB) (Chunk, error) {
	if r.large.next < r.large.count {
		return r.piece(db)
	}
	_, end := span(r.stream.keys.key(tagCommitted))
	key, value, err := r.first(db, &pebble.IterOptions{
		LowerBound: r.stream.keys.at(tagCommitted, r.pos+1), UpperBound: end,
	})
	if err != nil {
		return Chunk{}, err
	}
	switch at := tailLSN(key); {
	case len(key) != len(r.stream.keys)+9:
		return Chunk{}, fmt.Errorf("malformed key %x", key)
	case len(value) > 0 && value[0] == valueChunk:
		return Chunk{End: at, Data: value[1:]}, nil
	case len(value) == 13 && value[0] == valueSpill:
		r.large.end, r.large.id = at, binary.BigEndian.Uint64(value[1:])
		r.large.next, r.large.count = 0, binary.BigEndian.Uint32(value[9:])
		if r.large.count == 0 {
			return Chunk{}, fmt.Errorf("malformed record at %s: a large transaction without a piece", at)
		}
		return r.piece(db)
	default:
		return Chunk{}, fmt.Errorf("malformed record at %s", at)
	}
}

func (r *Reader) piece(db *pebble.DB) (Chunk, error) {
	key := r.stream.keys.spill(r.large.id, r.large.next)
	_, value, err := r.first(db, within(key))
	if err != nil {
		return Chunk{}, fmt.Errorf("piece %d of %d of the transaction that ends at %s: %w",
			r.large.next+1, r.large.count, r.large.end, err)
	}
	r.large.next++
	return Chunk{End: r.large.end, Data: value, Spilled: true}, nil
}

// first returns the first key in the range and its value, copied to the reader's buffer.
func (r *Reader) first(db *pebble.DB, o *pebble.IterOptions) (key, value []byte, err error) {
	it, err := db.NewIter(o)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.First() {
		return nil, nil, errors.Join(errors.New("record is missing"), it.Error())
	}
	v, err := it.ValueAndErr()
	if err != nil {
		return nil, nil, err
	}
	if cap(r.buf) > 8*max(len(v), 1<<20) { // one giant must not stay in memory for ever
		r.buf = nil
	}
	r.buf = append(r.buf[:0], v...)
	return append([]byte{}, it.Key()...), r.buf, nil
}
