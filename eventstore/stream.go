package eventstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// ErrTrimmed says that a reader wants transactions that were already removed.
var ErrTrimmed = errors.New("events were trimmed")

// ErrDropped is returned by every method of a stream after DropStream.
var ErrDropped = errors.New("stream was dropped")

// A Stream is a log of committed transactions. See the package documentation.
type Stream struct {
	store *Store
	name  string
	keys  prefix

	// write orders what changes several keys by what it read before: batches, Trim, Forget, drop.
	// It is taken before mu and held while Pebble writes.
	write sync.Mutex
	mu    struct {
		sync.Mutex
		tail, head, durable change.LSN
		recent              recent
		stopped             error         // ErrClosed or ErrDropped
		wake                chan struct{} // closed and replaced whenever head or stopped changes
		spills              map[uint32]*spill
		nextSpill           uint64
	}
}

// A spill is a large transaction that has no commit yet.
type spill struct {
	id       uint64
	chunks   uint32
	reserved bool // the first chunk comes with the commit
}

// Info sums up a stream.
type Info struct {
	Name    string
	Tail    change.LSN // everything up to here was trimmed; 0: nothing was
	Head    change.LSN // end of the newest committed transaction; 0: there was none yet
	Durable change.LSN // end of the newest durable transaction
	Bytes   int64      // on disk, an estimate; what is in memory only is not in it
}

// Stream opens the stream of that name (1 to 255 bytes), and makes it when there is none. What an
// interrupted process had spilled without a commit is removed.
func (s *Store) Stream(name string) (*Stream, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	s.opening.Lock()
	defer s.opening.Unlock()

	s.mu.Lock()
	st := s.mu.streams[name]
	s.mu.Unlock()
	if st != nil {
		return st, nil
	}
	st, err := s.openStream(name)
	if err != nil {
		return nil, fmt.Errorf("open stream %q: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil, ErrClosed
	}
	s.mu.streams[name] = st
	return st, nil
}

func (s *Store) openStream(name string) (*Stream, error) {
	keys, err := newPrefix(famStream, name)
	if err != nil {
		return nil, err
	}
	st := &Stream{store: s, name: name, keys: keys}
	st.mu.recent.limit = s.recentBytes
	st.mu.wake = make(chan struct{})
	st.mu.spills = map[uint32]*spill{}

	tail, ok, err := get(s.db, keys.key(tagTail))
	if err != nil {
		return nil, err
	}
	if !ok {
		return st, s.db.Set(keys.key(tagTail), u64(0), pebble.Sync)
	}
	if err := st.dropOpenSpills(); err != nil {
		return nil, err
	}
	head, err := last(s.db, within(keys.key(tagCommitted)))
	if err != nil {
		return nil, err
	}
	newest, err := last(s.db, within(keys.key(tagSpill)))
	if err != nil {
		return nil, err
	}
	if newest != nil {
		if len(newest) != len(keys)+13 {
			return nil, fmt.Errorf("malformed key %x", newest)
		}
		st.mu.nextSpill = binary.BigEndian.Uint64(newest[len(newest)-12:]) + 1
	}
	st.mu.tail = tailLSN(tail)
	st.mu.head = max(st.mu.tail, tailLSN(head))
	st.mu.recent.after = st.mu.head
	st.mu.durable = st.mu.head // a log that Pebble replays becomes tables, synced, before Open returns
	return st, nil
}

// dropOpenSpills removes the large transactions that have no commit.
func (st *Stream) dropOpenSpills() error {
	b := st.store.db.NewBatch()
	open := st.keys.key(tagOpen)
	err := scan(st.store.db, within(open), func(k, _ []byte) error {
		lower, upper := span(st.keys.key(tagSpill, k[len(open):]))
		return errors.Join(b.DeleteRange(lower, upper, nil), b.Delete(k, nil))
	})
	return errors.Join(err, b.Commit(pebble.NoSync))
}

// Streams describes every stream there is, sorted by name.
func (s *Store) Streams() ([]Info, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	list, err := names(s.db, famStream)
	s.leave()
	if err != nil {
		return nil, err
	}
	slices.Sort(list)
	infos := make([]Info, len(list))
	for i, name := range list {
		st, err := s.Stream(name)
		if err != nil {
			return nil, err
		}
		infos[i] = st.Info()
	}
	return infos, nil
}

// DropStream removes a stream with everything in it; no error when there is none. Its readers and
// writer get ErrDropped.
func (s *Store) DropStream(name string) error {
	keys, err := newPrefix(famStream, name)
	if err == nil {
		err = s.enter()
	}
	if err != nil {
		return fmt.Errorf("drop stream %q: %w", name, err)
	}
	defer s.leave()
	s.opening.Lock()
	defer s.opening.Unlock()

	s.mu.Lock()
	st := s.mu.streams[name]
	delete(s.mu.streams, name)
	s.mu.Unlock()
	if st != nil {
		st.stop(ErrDropped)
		st.write.Lock() // a batch that began before is done
		defer st.write.Unlock()
	}
	lower, upper := span(keys)
	if err := s.db.DeleteRange(lower, upper, pebble.Sync); err != nil {
		return fmt.Errorf("drop stream %q: %w", name, err)
	}
	return nil
}

// Head returns the end of the newest committed transaction, which readers can see; 0 before the
// first. It survives Trim.
func (st *Stream) Head() change.LSN {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.mu.head
}

// Durable returns the end of the newest transaction that survives a crash of the machine.
func (st *Stream) Durable() change.LSN {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.mu.durable
}

// Info sums up the stream.
func (st *Stream) Info() Info {
	st.mu.Lock()
	i := Info{Name: st.name, Tail: st.mu.tail, Head: st.mu.head, Durable: st.mu.durable}
	st.mu.Unlock()
	if st.enter() == nil {
		defer st.store.leave()
		lower, upper := span(st.keys)
		if n, err := st.store.db.EstimateDiskUsage(lower, upper); err == nil {
			i.Bytes = int64(n)
		}
	}
	return i
}

// Sync makes everything durable that was committed (and touched) before the call. Concurrent calls
// share one fsync. Once begun it does not stop for ctx.
func (st *Stream) Sync(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := st.enter(); err != nil {
		return err
	}
	defer st.store.leave()
	return st.sync()
}

func (st *Stream) sync() error {
	head := st.Head() // before the sync: what is committed meanwhile may miss it
	// An empty record with Sync waits for the log up to it; Pebble gathers those who wait.
	if err := st.store.db.LogData(nil, pebble.Sync); err != nil {
		return fmt.Errorf("sync stream %q: %w", st.name, err)
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.mu.durable = max(st.mu.durable, head)
	return nil
}

// Cursor returns a named position, 0 when it was never set.
func (st *Stream) Cursor(name string) (change.LSN, error) {
	if err := st.enter(); err != nil {
		return 0, err
	}
	defer st.store.leave()
	v, _, err := get(st.store.db, st.keys.key(tagCursor, []byte(name)))
	return tailLSN(v), err
}

// SetCursor stores a named position, durably.
func (st *Stream) SetCursor(name string, lsn change.LSN) error {
	if err := st.enter(); err != nil {
		return err
	}
	defer st.store.leave()
	if err := st.putCursor(name, lsn); err != nil {
		return fmt.Errorf("stream %q: set cursor %q: %w", st.name, name, err)
	}
	return st.sync()
}

func (st *Stream) putCursor(name string, lsn change.LSN) error {
	st.write.Lock() // not during the sync, which the writer need not wait for
	defer st.write.Unlock()
	if err := st.alive(); err != nil {
		return err
	}
	return st.store.db.Set(st.keys.key(tagCursor, []byte(name)), u64(uint64(lsn)), pebble.NoSync)
}

// Trim removes chunks that end at or before upTo, and pins that no later reader needs. A chunk
// that straddles upTo stays. It is not durable by itself: after a crash some may be there again.
func (st *Stream) Trim(upTo change.LSN) error {
	if err := st.enter(); err != nil {
		return err
	}
	defer st.store.leave()
	st.write.Lock()
	defer st.write.Unlock()
	if err := st.alive(); err != nil {
		return err
	}
	if err := st.trim(upTo); err != nil {
		return fmt.Errorf("trim stream %q to %s: %w", st.name, upTo, err)
	}
	return nil
}

func (st *Stream) trim(upTo change.LSN) error {
	db := st.store.db
	st.mu.Lock()
	before := st.mu.tail
	st.mu.Unlock()
	if upTo <= before {
		return nil
	}
	// From where the Trim before ended: range deletes that overlap are cut into pieces by every reader.
	from := st.keys.at(tagCommitted, before+1)
	k, err := last(db, &pebble.IterOptions{LowerBound: from, UpperBound: st.keys.at(tagCommitted, upTo+1)})
	if err != nil || k == nil {
		return err
	}
	tail := tailLSN(k)

	b := db.NewBatch()
	defer func() { _ = b.Close() }() // a batch in memory: closing only returns it to its pool
	if err := st.trimLarge(b, before, tail); err != nil {
		return err
	}
	if err := st.trimPins(b, tail); err != nil {
		return err
	}
	err = errors.Join(
		b.DeleteRange(from, st.keys.at(tagCommitted, tail+1), nil),
		b.Set(st.keys.key(tagTail), u64(uint64(tail)), nil))
	if err != nil {
		return err
	}
	st.mu.Lock() // before the chunks are gone: a reader that misses one finds the reason here
	st.mu.tail = tail
	st.mu.recent.forget(tail)
	st.mu.Unlock()
	return b.Commit(pebble.NoSync)
}

// trimLarge removes the large transactions that end after before, and not after tail.
func (st *Stream) trimLarge(b *pebble.Batch, before, tail change.LSN) error {
	return scan(st.store.db, &pebble.IterOptions{
		LowerBound: st.keys.at(tagLarge, before+1), UpperBound: st.keys.at(tagLarge, tail+1),
	}, func(k, id []byte) error {
		lower, upper := span(st.keys.key(tagSpill, id))
		return errors.Join(b.DeleteRange(lower, upper, nil), b.Delete(k, nil))
	})
}

// trimPins removes each pinned value that a newer one, still before tail, has replaced.
func (st *Stream) trimPins(b *pebble.Batch, tail change.LSN) error {
	var older []byte
	return scan(st.store.db, within(st.keys.key(tagPin)), func(k, _ []byte) error {
		if len(k) < len(st.keys)+9 {
			return fmt.Errorf("malformed key %x", k)
		}
		if tailLSN(k) >= tail {
			return nil
		}
		if older != nil && string(older[:len(older)-8]) == string(k[:len(k)-8]) {
			if err := b.Delete(older, nil); err != nil {
				return err
			}
		}
		older = append(older[:0], k...)
		return nil
	})
}

// enter begins a call that uses the database; store.leave ends it.
func (st *Stream) enter() error {
	if err := st.alive(); err != nil {
		return err
	}
	return st.store.enter()
}

func (st *Stream) alive() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.mu.stopped != nil {
		return fmt.Errorf("stream %q: %w", st.name, st.mu.stopped)
	}
	return nil
}

// stop makes every later call fail with err and wakes blocked readers.
func (st *Stream) stop(err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.mu.stopped = err
	st.wakeLocked()
}

func (st *Stream) wakeLocked() {
	close(st.mu.wake)
	st.mu.wake = make(chan struct{})
}

func errTrimmed(name string, from, tail change.LSN) error {
	return hint.Wrap(fmt.Errorf("read stream %q after %s: %w up to %s", name, from, ErrTrimmed, tail),
		"the destination stands before what was kept: copy it afresh")
}
