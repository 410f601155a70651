package change_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"github.com/ficus-migrate/ficus/change"
)

// FuzzDecode decodes the messages of a stream in their order; a chunk frames them as the event store
// does. The corpus holds recordings of every version and protocol, see TestCorpus.
//
// It fails when a length is believed before it is checked: take the test of n away in cursor.bytes.
func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/*.hex")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		var chunk []byte
		for _, msg := range stream(f, file) {
			chunk = change.AppendFrame(chunk, msg)
		}
		f.Add(chunk)
	}
	f.Add(change.AppendFrame(change.AppendFrame(nil, []byte(relation)), []byte("D\x00\x00\x00\x01O"+row)))
	f.Fuzz(func(t *testing.T, chunk []byte) {
		dec := change.NewDecoder()
		for len(chunk) > 0 {
			msg, rest, err := change.NextFrame(chunk)
			if err != nil {
				return
			}
			chunk = rest
			before := bytes.Clone(msg)
			m, err := dec.Decode(msg)
			if !bytes.Equal(before, msg) {
				t.Fatal("Decode wrote into the message")
			}
			if err != nil {
				if !errors.Is(err, change.ErrMalformed) {
					t.Fatalf("%x: %v", msg, err)
				}
				continue
			}
			_ = render(m)
			bounded(t, m, msg)
		}
	})
}

// bounded checks that what was decoded is no larger than the message allows.
func bounded(t *testing.T, m change.Message, msg []byte) {
	t.Helper()
	if n := len(m.Truncate.Relations); n*4 > len(msg) {
		t.Fatalf("%d relations truncated by a message of %d bytes", n, len(msg))
	}
	if m.Relation != nil && len(m.Relation.Columns)*10 > len(msg) {
		t.Fatalf("%d columns in a message of %d bytes", len(m.Relation.Columns), len(msg))
	}
	if m.Row.Rel == nil {
		return
	}
	for _, tuple := range []change.Tuple{m.Row.Old, m.Row.New} {
		if tuple != nil && len(tuple) != len(m.Row.Rel.Columns) {
			t.Fatalf("tuple of %d values for %d columns", len(tuple), len(m.Row.Rel.Columns))
		}
	}
}

// FuzzNextFrame takes chunks apart, which put together again are the same.
func FuzzNextFrame(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 2, 'a', 'b'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 'a'})
	f.Fuzz(func(t *testing.T, chunk []byte) {
		var again []byte
		for rest := chunk; len(rest) > 0; {
			msg, next, err := change.NextFrame(rest)
			if errors.Is(err, change.ErrFrame) {
				if !bytes.HasPrefix(chunk, again) {
					t.Fatalf("%x came back as %x", chunk, again)
				}
				return
			} else if err != nil {
				t.Fatal(err)
			}
			again = change.AppendFrame(again, msg)
			rest = next
		}
		if !bytes.Equal(again, chunk) {
			t.Fatalf("%x came back as %x", chunk, again)
		}
	})
}

// FuzzParseLSN reads positions, whose text form is read as the same position again.
func FuzzParseLSN(f *testing.F) {
	for _, s := range []string{"0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "0/0FFFFFFF", "1/", "/1", "+1/1", "1_0/1", "100000000/0", "a/b/c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		lsn, err := change.ParseLSN(s)
		if err != nil {
			if lsn != 0 {
				t.Fatalf("%q: %s and %v", s, lsn, err)
			}
			return
		}
		if again, err := change.ParseLSN(lsn.String()); err != nil || again != lsn {
			t.Fatalf("%q: %s came back as %s, %v", s, lsn, again, err)
		}
	})
}
