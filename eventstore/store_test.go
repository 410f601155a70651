package eventstore

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ficus-migrate/ficus/internal/hint"
)

func TestDirectoryIsExclusive(t *testing.T) {
	if dir := os.Getenv("EVENTSTORE_TEST_DIR"); dir != "" { // the other process
		_, err := Open(Config{Dir: dir})
		if !errors.Is(err, ErrInUse) || hint.Of(err) == "" {
			t.Errorf("another process: got %v with hint %q, want ErrInUse with one", err, hint.Of(err))
		}
		return
	}
	t.Parallel()
	dir := t.TempDir()
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, ErrInUse) || !strings.Contains(hint.Of(err), "--data-dir") {
		t.Errorf("the same process: got %v with hint %q, want ErrInUse with one", err, hint.Of(err))
	}
	other := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDirectoryIsExclusive$")
	other.Env = append(os.Environ(), "EVENTSTORE_TEST_DIR="+dir)
	if out, err := other.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatalf("open after close: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	if _, err := Open(Config{}); err == nil {
		t.Error("no directory: no error")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: file}); err == nil || errors.Is(err, ErrInUse) || hint.Of(err) == "" {
		t.Errorf("a file in place of the directory: %v with hint %q", err, hint.Of(err))
	}

	files := vfs.NewMem()
	s := open(t, files)
	if err := s.db.Set([]byte{'v'}, []byte{layoutVersion + 1}, pebble.Sync); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: "/data", FS: files}); err == nil || hint.Of(err) == "" {
		t.Errorf("a newer layout: %v with hint %q", err, hint.Of(err))
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	s := open(t, nil)
	st := stream(t, s)
	batch := st.NewBatch()
	batch.Append(10, nil)
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	_, streamErr := s.Stream("another")
	_, pinsErr := st.Read(0).Pins()
	for what, err := range map[string]error{
		"commit": batch.Commit(),
		"sync":   st.Sync(t.Context()),
		"trim":   st.Trim(10),
		"cursor": st.SetCursor("c", 1),
		"touch":  st.Touches().Add([]Touched{{}}),
		"bucket": s.Bucket("b").Append(nil),
		"drop":   s.DropStream("orders"),
		"stream": streamErr,
		"pins":   pinsErr,
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after close: got %v, want ErrClosed", what, err)
		}
	}
}

func TestBucketLog(t *testing.T) {
	t.Parallel()
	files := vfs.NewCrashableMem()
	b := open(t, files).Bucket("journal")
	for _, v := range []string{"one", "two"} {
		if err := b.Append([]byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, files.CrashClone(vfs.CrashCloneCfg{})) // every write was synced
	b = s.Bucket("journal")
	if err := b.Append([]byte("three")); err != nil {
		t.Fatal(err)
	}
	equal(t, "log", records(t, b), []string{"one", "two", "three"})

	stop := errors.New("enough")
	if err := b.Scan(func([]byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("scan returned %v, want the callback's error", err)
	}
	if err := s.DropBucket("journal"); err != nil {
		t.Fatal(err)
	}
	if err := b.Append([]byte("new")); err != nil {
		t.Fatal(err)
	}
	equal(t, "log after drop", records(t, b), []string{"new"})
}

func records(t testing.TB, b *Bucket) (got []string) {
	t.Helper()
	if err := b.Scan(func(v []byte) error { got = append(got, string(v)); return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestBucketRecords(t *testing.T) {
	t.Parallel()
	s := open(t, nil)
	b := s.Bucket("settings")
	for _, k := range []string{"x/2", "x/1", "y", ""} {
		if err := b.Put(k, []byte("of "+k)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Bucket("setting").Put("s", nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete("y"); err != nil {
		t.Fatal(err)
	}
	all, err := b.Keys("")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "keys", all, []string{"", "x/1", "x/2"})
	some, err := b.Keys("x/")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "keys below x", some, []string{"x/1", "x/2"})
	v, ok, err := b.Get("x/2")
	if err != nil || !ok || string(v) != "of x/2" {
		t.Errorf("get: %q, %v, %v", v, ok, err)
	}
	if _, ok, err := b.Get("y"); ok || err != nil {
		t.Errorf("get of a deleted key: %v, %v", ok, err)
	}
	list, err := s.Buckets()
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "buckets", list, []string{"setting", "settings"})
}

// An update of several records is there whole after a crash. It fails when Update commits without a sync.
func TestBucketUpdate(t *testing.T) {
	t.Parallel()
	files := vfs.NewCrashableMem()
	b := open(t, files).Bucket("commands")
	if err := errors.Join(
		b.Update([]Record{{"a1", []byte("x")}, {"a2", []byte("y")}, {"b1", []byte("z")}}, nil),
		b.Update([]Record{{"a3", []byte("w")}}, []string{"a1", "none"})); err != nil {
		t.Fatal(err)
	}
	b = open(t, files.CrashClone(vfs.CrashCloneCfg{})).Bucket("commands")
	var got []string
	add := func(r Record) (bool, error) {
		got = append(got, r.Key+string(r.Value))
		return len(got) != 3, nil
	}
	if err := errors.Join(b.Each("a", add), b.EachBack("a", add)); err != nil {
		t.Fatal(err)
	}
	equal(t, "records", got, []string{"a2y", "a3w", "a3w"})
	stop := errors.New("enough")
	if err := b.Each("", func(Record) (bool, error) { return true, stop }); !errors.Is(err, stop) {
		t.Errorf("each returned %v, want the callback's error", err)
	}
}
