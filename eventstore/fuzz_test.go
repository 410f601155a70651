package eventstore

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ficus-migrate/ficus/change"
)

// FuzzDamage writes a stream and a bucket, puts a value under a key of the store's (or of nobody's),
// opens the store again and does everything with it that a link does. Whatever is in a store that
// Pebble itself finds sound gives results or errors: no panic, no reading without end, and nothing
// larger than what is stored.
//
// It fails when a record of a large transaction without a piece is taken for one: take the test of
// its count away in Reader.record; when touched keys are cut without a look at their length.
func FuzzDamage(f *testing.F) {
	own, err := newPrefix(famStream, "orders")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(nil), []byte(nil))
	f.Add(own.key(tagTail), []byte{1})
	f.Add(own.key(tagTail), u64(25))
	f.Add(own.at(tagCommitted, 20), []byte{valueSpill})
	f.Add(own.at(tagCommitted, 20), append([]byte{valueSpill}, make([]byte, 12)...))
	f.Add(own.at(tagCommitted, 30), append(append([]byte{valueSpill}, u64(0)...), 0xff, 0xff, 0xff, 0xff))
	f.Add(own.key(tagCommitted), []byte{valueChunk})
	f.Add(own.key(tagLarge, []byte{1}), []byte{2})
	f.Add(own.key(tagOpen), []byte(nil))
	f.Add(own.key(tagNewest), []byte("short"))
	f.Add(own.key(tagPin), []byte("short"))
	f.Add(own.key(tagTouch, []byte{9}), u64(40))
	f.Add(own.key(tagTouch, sized("t")), []byte{1})
	f.Add(own.key(tagTouch, []byte{0xff, 0xff}), u64(40))
	f.Add(own.key(tagSpill), []byte("x"))
	f.Add(own.key(tagSpill, u64(0)), []byte("x"))
	f.Add([]byte{famStream, 200, 'x'}, []byte("x"))
	f.Add([]byte{famBucket, 7, 'j', 'o', 'u', 'r', 'n', 'a', 'l', tagLog}, []byte("x"))
	f.Add([]byte{'v'}, []byte(nil))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		files := vfs.NewMem()
		s := open(t, files)
		st := stream(t, s)
		write(t, st, func(b *Batch) {
			b.Pin("r/1", 5, []byte("relation"))
			b.Append(10, []byte("one"))
			b.Append(20, []byte("two"))
			b.Spill(7, []byte("a piece"))
			b.Spill(7, []byte("another"))
			b.CommitSpilled(7, 30)
			b.Append(40, []byte("three"))
			b.Spill(8, []byte("open"))
		})
		if err := errors.Join(st.Touches().Add([]Touched{{Table: "t", Key: []byte("k"), At: 40}}), s.Bucket("journal").Append([]byte("r"))); err != nil {
			t.Fatal(err)
		}
		if err := s.db.Set(key, value, pebble.Sync); err != nil {
			t.Skip(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		useDamaged(t, files)
	})
}

// useDamaged opens the store in files and uses it as a link does, as far as it can.
func useDamaged(t *testing.T, files vfs.FS) {
	t.Helper()
	s, err := Open(Config{Dir: "/data", FS: files})
	if err != nil {
		return
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	_, _ = s.Buckets()
	_ = s.Bucket("journal").Append([]byte("more"))
	_ = s.Bucket("journal").Scan(func([]byte) error { return nil })
	_, _ = s.Streams()
	st, err := s.Stream("orders")
	if err != nil {
		return
	}
	for _, from := range []change.LSN{0, 15, 30} {
		readDamaged(t, st, from)
	}
	_, _, _ = st.Newest()
	_ = st.Touches().Scan(0, func(string, []byte) error { return nil })
	_ = st.Touches().ScanTable("t", 0, func([]byte) error { return nil })
	_ = st.Touches().Forget(35)
	b := st.NewBatch()
	b.Spill(9, []byte("large"))
	b.CommitSpilled(9, st.Head()+10)
	_ = b.Commit()
	_ = st.Trim(20)
	readDamaged(t, st, 30)
}

// readDamaged reads to the end, which must come.
func readDamaged(t *testing.T, st *Stream, from change.LSN) {
	t.Helper()
	r := st.Read(from)
	_, _ = r.Pins()
	for n := 0; ; n++ {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond) // ends a wait at the end
		c, err := r.Next(ctx)
		cancel()
		if err != nil {
			return
		}
		if n > 100 || len(c.Data) > 1<<20 {
			t.Fatalf("chunk %d of a small store: %d bytes, end %s", n, len(c.Data), c.End)
		}
	}
}
