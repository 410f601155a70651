package eventstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/ficus-migrate/ficus/change"
)

// A reader that keeps up does not ask the database, which here has lost what it should ask for; one that
// is behind does.
//
// It fails when Next does not look into recent first.
func TestKeepingUpNeedsNoDatabase(t *testing.T) {
	t.Parallel()
	st := stream(t, open(t, nil))
	fast, slow := st.Read(0), stream(t, openKeeping(t, nil, 1))
	for _, st := range []*Stream{st, slow} {
		appendChunk(t, st, 10)
		if err := st.store.db.Delete(st.keys.at(tagCommitted, 10), pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	}
	c, err := fast.Next(t.Context())
	if err != nil || string(c.Data) != "chunk 10" {
		t.Errorf("a reader that keeps up: %q, %v", c.Data, err)
	}
	if _, err := slow.Read(0).Next(t.Context()); err == nil {
		t.Error("a reader without memory found what is not there")
	}
}

// Readers see what was committed before it is durable: here the disk does not get its syncs done.
//
// It fails when Commit or Next waits for a sync.
func TestReadersDoNotWaitForTheDisk(t *testing.T) {
	t.Parallel()
	for _, keeping := range []int{0, 1} {
		disk := &stuckDisk{begun: make(chan struct{}), held: make(chan struct{})}
		s, err := Open(Config{Dir: "/data", FS: errorfs.Wrap(vfs.NewMem(), disk), RecentBytes: keeping})
		if err != nil {
			t.Fatal(err)
		}
		st := stream(t, s)
		appendChunk(t, st, 10)
		disk.stuck.Store(true)
		synced := make(chan error, 1)
		go func() { synced <- st.Sync(t.Context()) }() // ends when the disk goes on, below
		<-disk.begun
		late := time.AfterFunc(20*time.Second, disk.release) // or who waits for the disk does so for ever

		r := st.Read(0)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		for end := change.LSN(10); end <= 50; end += 10 {
			if end > 10 {
				appendChunk(t, st, end)
			}
			if c, err := r.Next(ctx); err != nil || c.End != end {
				t.Errorf("chunk to %d: %s, %v", end, c.End, err)
			}
		}
		cancel()
		equal(t, "durable", st.Durable(), change.LSN(0))
		late.Stop()
		disk.release()
		if err := errors.Join(<-synced, s.Close()); err != nil {
			t.Error(err)
		}
		equal(t, "durable after the sync", st.Durable(), change.LSN(10))
	}
}

// A stuckDisk does not get a sync done, once it is stuck, until held is closed.
type stuckDisk struct {
	stuck         atomic.Bool
	first, second sync.Once
	begun, held   chan struct{}
}

func (d *stuckDisk) release() { d.second.Do(func() { close(d.held) }) }

func (d *stuckDisk) MaybeError(op errorfs.Op) error {
	if d.stuck.Load() && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData) {
		d.first.Do(func() { close(d.begun) })
		<-d.held
	}
	return nil
}

func (d *stuckDisk) String() string { return "stuck disk" }

// What is kept in memory is bounded, also by a single chunk that is larger than all that may be.
func TestRecentIsBounded(t *testing.T) {
	t.Parallel()
	const limit = 10_000
	st := stream(t, openKeeping(t, nil, limit))
	check := func(end change.LSN) {
		t.Helper()
		st.mu.Lock()
		defer st.mu.Unlock()
		size := 0
		for i := range st.mu.recent.records {
			size += st.mu.recent.records[i].size()
		}
		if size != st.mu.recent.bytes || size > limit {
			t.Errorf("up to %d: %d bytes kept, said to be %d, limit %d", end, size, st.mu.recent.bytes, limit)
		}
	}
	var want int
	for end := change.LSN(1); end <= 3000; end++ {
		n := int(end % 700)
		if end%1000 == 0 {
			n = 2 * limit
		}
		write(t, st, func(b *Batch) { b.Append(end, make([]byte, n)) })
		check(end)
		want++
	}
	if st.mu.recent.after == 0 || len(st.mu.recent.records) != 0 && st.mu.recent.records[0].end != st.mu.recent.after+1 {
		t.Errorf("records from %d on are kept, all after %d are said to be", st.mu.recent.records[0].end, st.mu.recent.after)
	}
	equal(t, "chunks", len(drain(t, st, 0)), want)
	if err := st.Trim(2999); err != nil {
		t.Fatal(err)
	}
	check(2999)
	equal(t, "kept after trim", len(st.mu.recent.records), 0)
}

// Readers of all paces see the same, while it is written: one as fast as it can, one that stops now and
// then until it is far behind, one that begins again and again.
//
// Run it with -race: it fails when the packer's side, or a reader, changes a chunk that others see.
func TestReadersOfAllPaces(t *testing.T) {
	t.Parallel()
	const chunks, size = 3000, 1 << 10
	st := stream(t, openKeeping(t, nil, 64*size))
	data := func(n uint64) []byte { return bytes.Repeat(binary.BigEndian.AppendUint64(nil, n), size/8) }
	read := func(behind, again uint64) {
		r := st.Read(0)
		for n := uint64(1); n <= chunks; n++ {
			if again > 0 && n%again == 0 {
				r = st.Read(change.LSN(n - 1))
			}
			if behind > 0 && n%behind == 0 { // stand still until the writer is further on than memory reaches
				ahead := st.Read(change.LSN(min(n+100, chunks) - 1))
				if _, err := ahead.Next(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
			c, err := r.Next(t.Context())
			if err != nil || c.End != change.LSN(n) || !bytes.Equal(c.Data, data(n)) {
				t.Errorf("chunk %d: %s, %d bytes, %v", n, c.End, len(c.Data), err)
				return
			}
		}
	}
	var g sync.WaitGroup
	g.Go(func() { read(0, 0) })
	g.Go(func() { read(500, 0) })
	g.Go(func() { read(0, 7) })
	for n := uint64(1); n <= chunks; n++ {
		write(t, st, func(b *Batch) { b.Append(change.LSN(n), data(n)) })
	}
	g.Wait()
}
