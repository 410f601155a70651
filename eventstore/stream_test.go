package eventstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/change"
)

// open opens a store on a file system in memory; nil: one of its own.
func open(t testing.TB, files *vfs.MemFS) *Store {
	t.Helper()
	return openKeeping(t, files, 0)
}

// openKeeping is open with Config.RecentBytes: readers of 1 always ask the database.
func openKeeping(t testing.TB, files *vfs.MemFS, recentBytes int) *Store {
	t.Helper()
	if files == nil {
		files = vfs.NewMem()
	}
	s, err := Open(Config{Dir: "/data", FS: files, RecentBytes: recentBytes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func stream(t testing.TB, s *Store) *Stream {
	t.Helper()
	st, err := s.Stream("orders")
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// write commits one batch.
func write(t testing.TB, st *Stream, fill func(b *Batch)) {
	t.Helper()
	b := st.NewBatch()
	fill(b)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
}

func appendChunk(t testing.TB, st *Stream, end change.LSN) {
	t.Helper()
	write(t, st, func(b *Batch) { b.Append(end, fmt.Appendf(nil, "chunk %d", end)) })
}

// drain reads everything from a position on, each chunk as "end:data".
func drain(t testing.TB, st *Stream, from change.LSN) []string {
	t.Helper()
	r := st.Read(from)
	defer r.Close()
	var got []string
	for r.pos < st.Head() {
		c, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%d:%s", c.End, c.Data))
	}
	return got
}

func equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s: (-want +got)\n%s", what, d)
	}
}

func TestReaderSeesWhatFollows(t *testing.T) {
	t.Parallel()
	st := stream(t, open(t, nil))
	write(t, st, func(b *Batch) {
		b.Append(10, []byte("a"))
		b.Append(20, []byte("b"))
	})
	appendChunk(t, st, 30)

	equal(t, "from 0", drain(t, st, 0), []string{"10:a", "20:b", "30:chunk 30"})
	equal(t, "from an end", drain(t, st, 10), []string{"20:b", "30:chunk 30"})
	equal(t, "from the middle of a chunk", drain(t, st, 15), []string{"20:b", "30:chunk 30"})
	equal(t, "from the head", drain(t, st, 30), []string(nil))
	equal(t, "head", st.Head(), change.LSN(30))

	b := st.NewBatch()
	b.Append(30, nil)
	if err := b.Commit(); err == nil {
		t.Error("a chunk that does not advance the stream was taken")
	}
}

// A reader that starts beyond the head (its destination knows more than a lost store does) gets
// all that comes, because relations may be announced before its start.
func TestReaderBeyondHead(t *testing.T) {
	t.Parallel()
	st := stream(t, open(t, nil))
	r := st.Read(500)
	appendChunk(t, st, 300)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := r.Next(ctx)
	if err != nil || c.End != 300 {
		t.Errorf("got chunk to %s, %v; want 300", c.End, err)
	}
}

func TestNextWaits(t *testing.T) {
	t.Parallel()
	s := open(t, nil)
	st := stream(t, s)
	next := func(ctx context.Context, r *Reader) chan error {
		done := make(chan error, 1)
		go func() { // ends with Next, which every caller makes return
			c, err := r.Next(ctx)
			if err == nil && c.End != 10 {
				err = fmt.Errorf("chunk to %s", c.End)
			}
			done <- err
		}()
		select {
		case err := <-done:
			t.Errorf("Next returned with nothing to read: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		return done
	}

	waiting := next(t.Context(), st.Read(0))
	appendChunk(t, st, 10)
	if err := <-waiting; err != nil {
		t.Errorf("after an append: %v", err)
	}

	why := errors.New("paused")
	ctx, cancel := context.WithCancelCause(t.Context())
	waiting = next(ctx, st.Read(10))
	cancel(why)
	if err := <-waiting; !errors.Is(err, why) {
		t.Errorf("after cancel: got %v, want its cause", err)
	}

	waiting = next(t.Context(), st.Read(10))
	if err := s.DropStream("orders"); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, ErrDropped) {
		t.Errorf("after drop: got %v, want ErrDropped", err)
	}

	waiting = next(t.Context(), stream(t, s).Read(0))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, ErrClosed) {
		t.Errorf("after close: got %v, want ErrClosed", err)
	}
}

func TestSpillAppearsAtItsCommit(t *testing.T) {
	t.Parallel()
	st := stream(t, open(t, nil))
	write(t, st, func(b *Batch) { b.Spill(7, []byte("one")) })
	write(t, st, func(b *Batch) { b.Spill(8, []byte("other")) })
	appendChunk(t, st, 10)
	write(t, st, func(b *Batch) {
		b.Spill(7, []byte("two"))
		b.CommitSpilled(7, 20)
		b.Append(30, []byte("after"))
		b.DropSpilled(8)
		b.DropSpilled(99)
	})
	equal(t, "stream", drain(t, st, 0), []string{"10:chunk 10", "20:one", "20:two", "30:after"})
	equal(t, "spills left", countKeys(t, st, tagOpen), 0)
	equal(t, "pieces left", countKeys(t, st, tagSpill), 2)

	r := st.Read(10)
	for _, want := range []bool{true, true, false} {
		c, err := r.Next(t.Context())
		if err != nil || c.Spilled != want {
			t.Errorf("%q: spilled %v, %v; want %v", c.Data, c.Spilled, err, want)
		}
	}

	if err := st.Trim(20); err != nil {
		t.Fatal(err)
	}
	equal(t, "pieces after trim", countKeys(t, st, tagSpill), 0)
	equal(t, "references after trim", countKeys(t, st, tagLarge), 0)

	b := st.NewBatch()
	b.CommitSpilled(8, 40)
	if err := b.Commit(); err == nil {
		t.Error("commit of a dropped spill was taken")
	}
}

func countKeys(t testing.TB, st *Stream, tag byte) (n int) {
	t.Helper()
	err := scan(st.store.db, within(st.keys.key(tag)), func(_, _ []byte) error { n++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Several large transactions are open at a time, whose first piece comes with their commit; one is only
// begun, and the store is closed and opened with two of them open.
//
// It fails when Reserve takes no number, or its piece is not written, or the open ones stay.
func TestReserve(t *testing.T) {
	t.Parallel()
	files := vfs.NewMem()
	s := open(t, files)
	st := stream(t, s)
	write(t, st, func(b *Batch) { b.Reserve(7) })
	write(t, st, func(b *Batch) {
		b.Reserve(8)
		b.Spill(8, []byte("never"))
		b.Reserve(9)
		b.Reserve(10)
		b.DropSpilled(10)
	})
	write(t, st, func(b *Batch) { b.Spill(7, []byte("two")) })
	appendChunk(t, st, 10)
	write(t, st, func(b *Batch) {
		b.Spill(7, []byte("three"))
		b.CommitReserved(7, 20, []byte("one"))
	})
	want := []string{"10:chunk 10", "20:one", "20:two", "20:three"}
	equal(t, "stream", drain(t, st, 0), want)
	for what, fill := range map[string]func(*Batch){
		"begun twice":                  func(b *Batch) { b.Reserve(8) },
		"committed without its first":  func(b *Batch) { b.CommitSpilled(9, 30) },
		"committed without a begin":    func(b *Batch) { b.CommitReserved(11, 30, nil) },
		"first piece of another spill": func(b *Batch) { b.Spill(12, nil); b.CommitReserved(12, 30, nil) },
	} {
		b := st.NewBatch()
		fill(b)
		if b.Commit() == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	st = stream(t, open(t, files))
	equal(t, "stream, opened again", drain(t, st, 0), want)
	equal(t, "spills left", countKeys(t, st, tagOpen), 0)
	equal(t, "pieces left", countKeys(t, st, tagSpill), 3)
}

func TestReopenDropsOpenSpills(t *testing.T) {
	t.Parallel()
	files := vfs.NewMem()
	s := open(t, files)
	st := stream(t, s)
	write(t, st, func(b *Batch) {
		b.Spill(7, []byte("kept"))
		b.CommitSpilled(7, 10)
		b.Spill(8, []byte("lost"))
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	st = stream(t, open(t, files))
	equal(t, "spills left", countKeys(t, st, tagOpen), 0)
	equal(t, "pieces left", countKeys(t, st, tagSpill), 1)
	write(t, st, func(b *Batch) { // the same xid comes again
		b.Spill(8, []byte("again"))
		b.CommitSpilled(8, 20)
	})
	equal(t, "stream", drain(t, st, 0), []string{"10:kept", "20:again"})
}

// It fails when no values come, or those of another time.
func TestPins(t *testing.T) {
	t.Parallel()
	st := stream(t, open(t, nil))
	write(t, st, func(b *Batch) {
		b.Pin("r/1", 5, []byte("one at 5"))
		b.Pin("r/10", 6, []byte("ten at 6"))
		b.Append(10, nil)
	})
	write(t, st, func(b *Batch) {
		b.Pin("r/1", 15, []byte("one at 15"))
		b.Append(20, nil)
	})
	write(t, st, func(b *Batch) {
		b.Pin("r/1", 20, []byte("one at 20")) // its commit record begins where the last ended
		b.Append(30, nil)
	})
	pins := func(from change.LSN) []string {
		values, err := st.Read(from).Pins()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, v := range values {
			got = append(got, string(v))
		}
		return got
	}
	equal(t, "from 0", pins(0), []string(nil))
	equal(t, "from 10", pins(10), []string{"one at 5", "ten at 6"})
	equal(t, "from the middle of the second chunk", pins(17), []string{"one at 5", "ten at 6"})
	equal(t, "from 20", pins(20), []string{"one at 15", "ten at 6"})
	equal(t, "from 30", pins(30), []string{"one at 20", "ten at 6"})

	if err := st.Trim(20); err != nil {
		t.Fatal(err)
	}
	equal(t, "after trim, from 20", pins(20), []string{"one at 15", "ten at 6"})
	equal(t, "after trim, from 30", pins(30), []string{"one at 20", "ten at 6"})
	equal(t, "pins left", countKeys(t, st, tagPin), 3)
}

func TestTrim(t *testing.T) {
	t.Parallel()
	files := vfs.NewMem()
	s := open(t, files)
	st := stream(t, s)
	for _, end := range []change.LSN{10, 20, 30} {
		appendChunk(t, st, end)
	}
	slow := st.Read(0)
	if err := st.Trim(25); err != nil {
		t.Fatal(err)
	}
	equal(t, "rest", drain(t, st, 22), []string{"30:chunk 30"})
	equal(t, "tail", st.Info().Tail, change.LSN(20))
	if _, err := slow.Next(t.Context()); !errors.Is(err, ErrTrimmed) {
		t.Errorf("a reader that was overtaken got %v, want ErrTrimmed", err)
	}

	if err := st.Trim(1000); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	st = stream(t, open(t, files))
	info := st.Info()
	info.Bytes = 0 // the compactions' business
	equal(t, "info after all is gone", info, Info{Name: "orders", Tail: 30, Head: 30, Durable: 30})
	if _, err := st.Read(20).Next(t.Context()); !errors.Is(err, ErrTrimmed) {
		t.Errorf("read from before the tail: got %v, want ErrTrimmed", err)
	}
	appendChunk(t, st, 40)
	equal(t, "from the tail", drain(t, st, 30), []string{"40:chunk 40"})
}

// The Trims of a long life do not overlap: each begins where the one before ended. What is planted before
// that is still there after the next.
//
// It fails when trim or trimLarge begins at the beginning.
func TestTrimGoesOnWhereItEnded(t *testing.T) {
	t.Parallel()
	st := stream(t, open(t, nil))
	large := func(xid uint32, end change.LSN) {
		write(t, st, func(b *Batch) { b.Spill(xid, []byte("piece")); b.CommitSpilled(xid, end) })
	}
	appendChunk(t, st, 10)
	large(1, 20)
	appendChunk(t, st, 30)
	if err := st.Trim(30); err != nil {
		t.Fatal(err)
	}
	for _, key := range [][]byte{st.keys.at(tagCommitted, 5), st.keys.at(tagLarge, 20)} {
		if err := st.store.db.Set(key, u64(99), nil); err != nil {
			t.Fatal(err)
		}
	}
	large(2, 40)
	appendChunk(t, st, 50)
	for _, upTo := range []change.LSN{40, 30, 0, 50, 50} {
		if err := st.Trim(upTo); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, "tail", st.Info().Tail, change.LSN(50))
	equal(t, "chunks", countKeys(t, st, tagCommitted), 1)
	equal(t, "references", countKeys(t, st, tagLarge), 1)
	equal(t, "pieces", countKeys(t, st, tagSpill), 0)
}

// It fails when Sync does not wait for the disk.
func TestDurableIsWhatSurvivesPowerLoss(t *testing.T) {
	t.Parallel()
	files := vfs.NewCrashableMem()
	st := stream(t, open(t, files))
	appendChunk(t, st, 10)
	if err := st.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	appendChunk(t, st, 20)
	equal(t, "head", st.Head(), change.LSN(20))
	equal(t, "durable", st.Durable(), change.LSN(10))

	lost := stream(t, open(t, files.CrashClone(vfs.CrashCloneCfg{})))
	equal(t, "head after power loss", lost.Head(), change.LSN(10))

	// A killed process loses nothing that the kernel has. What the next process finds there counts
	// as durable, so it has to be.
	cached := files.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 2))})
	killed := stream(t, open(t, cached))
	found := killed.Durable()
	twice := stream(t, open(t, cached.CrashClone(vfs.CrashCloneCfg{})))
	equal(t, "head after a kill and then power loss", twice.Head(), found)
}

func TestSyncIsShared(t *testing.T) {
	t.Parallel()
	var syncs atomic.Int64
	count := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData {
			syncs.Add(1)
		}
		return nil
	})
	s, err := Open(Config{Dir: "/data", FS: errorfs.Wrap(vfs.NewMem(), count)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	st := stream(t, s)
	const callers = 200
	var g sync.WaitGroup
	syncs.Store(0)
	for range callers {
		g.Go(func() {
			if err := st.Sync(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	if n := syncs.Load(); n == 0 || n > callers/4 {
		t.Errorf("%d fsyncs for %d concurrent callers", n, callers)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := st.Sync(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Sync with a canceled context: %v", err)
	}
}

func TestCursors(t *testing.T) {
	t.Parallel()
	files := vfs.NewCrashableMem()
	st := stream(t, open(t, files))
	if err := st.SetCursor("applied", 42); err != nil {
		t.Fatal(err)
	}
	st = stream(t, open(t, files.CrashClone(vfs.CrashCloneCfg{})))
	for name, want := range map[string]change.LSN{"applied": 42, "app": 0} {
		if got, err := st.Cursor(name); err != nil || got != want {
			t.Errorf("cursor %q: got %s, %v; want %s", name, got, err, want)
		}
	}
}

func TestTouches(t *testing.T) {
	t.Parallel()
	st := stream(t, open(t, nil))
	set := st.Touches()
	add := func(at change.LSN, table string, keys ...string) {
		var list []Touched
		for _, k := range keys {
			list = append(list, Touched{table, []byte(k), at})
		}
		if err := set.Add(list); err != nil {
			t.Fatal(err)
		}
	}
	rows := func(after change.LSN) string {
		var got []string
		err := set.Scan(after, func(table string, key []byte) error {
			got = append(got, table+"/"+string(key))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(got, " ")
	}
	add(10, "a", "1", "2", "")
	add(10, "b", "1")
	add(20, "a", "2")
	equal(t, "all", rows(0), "a/ a/1 a/2 b/1")
	equal(t, "after 10", rows(10), "a/2")
	if err := set.Forget(10); err != nil {
		t.Fatal(err)
	}
	equal(t, "after forgetting", rows(0), "a/2")

	many := make([]string, 3*forgetStep)
	for i := range many {
		many[i] = fmt.Sprintf("%06d", i)
	}
	add(30, "c", many...)
	if err := set.Forget(30); err != nil {
		t.Fatal(err)
	}
	equal(t, "after forgetting many", rows(0), "")
}

func TestStreamsAreApart(t *testing.T) {
	t.Parallel()
	s := open(t, nil)
	for _, name := range []string{"b", "a", "ab"} {
		st, err := s.Stream(name)
		if err != nil {
			t.Fatal(err)
		}
		write(t, st, func(b *Batch) { b.Append(10, []byte(name)) })
	}
	if err := s.DropStream("a"); err != nil {
		t.Fatal(err)
	}
	if err := s.DropStream("never was"); err != nil {
		t.Fatal(err)
	}
	infos, err := s.Streams()
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "streams", infos, []Info{{Name: "ab", Head: 10}, {Name: "b", Head: 10}})
	again, err := s.Stream("a")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "a new stream of the same name", again.Info(), Info{Name: "a"})
	if _, err := s.Stream(""); err == nil {
		t.Error("a stream without a name was opened")
	}
}
