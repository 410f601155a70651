package eventstore

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/ficus-migrate/ficus/change"
)

// forgetStep bounds how many entries Forget looks at before it lets Add go on.
const forgetStep = 4096

// A Touched is a row that a change hit. Key is the caller's encoding of the row's key.
type Touched struct {
	Table string
	Key   []byte
	At    change.LSN // end of the transaction, or of one that was applied together with it
}

// Touches is the set of rows that a stream's changes have hit, with the last time each was hit. It
// is on disk: its size is bounded by the number of rows, not by memory.
type Touches struct{ stream *Stream }

// Touches returns the stream's set of touched rows.
func (st *Stream) Touches() *Touches { return &Touches{st} }

// Add records entries, in stream order for one row. It does not sync: an entry that must not be
// lost is made durable by Stream.Sync, before the change that it belongs to commits elsewhere.
// Tables have at most 65535 bytes.
func (t *Touches) Add(entries []Touched) error {
	st := t.stream
	if len(entries) == 0 {
		return nil
	}
	if err := st.enter(); err != nil {
		return err
	}
	defer st.store.leave()

	b := st.store.db.NewBatch()
	own := st.keys.key(tagTouch)
	for i := range entries {
		e := &entries[i]
		set := b.SetDeferred(len(own)+2+len(e.Table)+len(e.Key), 8)
		n := copy(set.Key, own)
		binary.BigEndian.PutUint16(set.Key[n:], uint16(len(e.Table)))
		n += 2
		n += copy(set.Key[n:], e.Table)
		copy(set.Key[n:], e.Key)
		binary.BigEndian.PutUint64(set.Value, uint64(e.At))
		if err := set.Finish(); err != nil {
			return fmt.Errorf("stream %q: record touched rows: %w", st.name, errors.Join(err, b.Close()))
		}
	}
	st.write.Lock()
	defer st.write.Unlock()
	if err := st.alive(); err != nil {
		return errors.Join(err, b.Close())
	}
	if err := errors.Join(b.Commit(pebble.NoSync), b.Close()); err != nil {
		return fmt.Errorf("stream %q: record touched rows: %w", st.name, err)
	}
	return nil
}

// Scan calls fn once for each row whose last touch is after the given position, ordered by table,
// until fn returns an error, which Scan returns. key lives until fn returns. Rows that are touched
// meanwhile may be missing.
func (t *Touches) Scan(after change.LSN, fn func(table string, key []byte) error) error {
	st := t.stream
	if err := st.enter(); err != nil {
		return err
	}
	defer st.store.leave()

	own := st.keys.key(tagTouch)
	var table string
	return scan(st.store.db, within(own), func(k, v []byte) error {
		if tailLSN(v) <= after {
			return nil
		}
		k = k[len(own):]
		if len(k) < 2 || len(k) < 2+int(binary.BigEndian.Uint16(k)) {
			return fmt.Errorf("stream %q: malformed key %x%x", st.name, own, k)
		}
		n := 2 + int(binary.BigEndian.Uint16(k))
		if name := k[2:n]; string(name) != table { // the comparison does not allocate
			table = string(name)
		}
		return fn(table, k[n:])
	})
}

// ScanTable is Scan over one table's rows alone.
func (t *Touches) ScanTable(table string, after change.LSN, fn func(key []byte) error) error {
	st := t.stream
	if err := st.enter(); err != nil {
		return err
	}
	defer st.store.leave()

	own := st.keys.key(tagTouch, sized(table))
	return scan(st.store.db, within(own), func(k, v []byte) error {
		if tailLSN(v) <= after {
			return nil
		}
		return fn(k[len(own):])
	})
}

// Forget removes the rows whose last touch is at or before upTo.
func (t *Touches) Forget(upTo change.LSN) error {
	st := t.stream
	if err := st.enter(); err != nil {
		return err
	}
	defer st.store.leave()

	from, end := span(st.keys.key(tagTouch))
	for from != nil {
		var err error
		if from, err = t.forgetStep(from, end, upTo); err != nil {
			return fmt.Errorf("stream %q: forget touched rows: %w", st.name, err)
		}
	}
	return nil
}

// forgetStep looks at some entries from a key on and returns where to go on, nil at the end. It
// holds the write lock, lest it removes what Add records at this moment.
func (t *Touches) forgetStep(from, end []byte, upTo change.LSN) (next []byte, err error) {
	st := t.stream
	st.write.Lock()
	defer st.write.Unlock()
	if err := st.alive(); err != nil {
		return nil, err
	}
	b := st.store.db.NewBatch()
	defer func() { _ = b.Close() }() // a batch in memory: closing only returns it to its pool
	seen := 0
	err = scan(st.store.db, &pebble.IterOptions{LowerBound: from, UpperBound: end}, func(k, v []byte) error {
		if seen++; seen > forgetStep {
			next = append([]byte{}, k...)
			return errStop
		}
		if tailLSN(v) > upTo {
			return nil
		}
		return b.Delete(k, nil)
	})
	if err != nil {
		return nil, err
	}
	return next, b.Commit(pebble.NoSync)
}
