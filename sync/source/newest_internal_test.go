package source

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// resumed returns a packer on a stream whose newest transaction the server has to send first.
func resumed(t *testing.T, st *eventstore.Stream) *packer {
	t.Helper()
	n, known, err := st.Newest()
	if err != nil || !known {
		t.Fatalf("newest transaction: %t, %v", known, err)
	}
	p := newPacker(st, "", func(change.LSN, int) {})
	p.again = &n
	return p
}

// fed passes messages and then a keepalive, and returns the first error.
func fed(p *packer, keepalive change.LSN, msgs ...[]byte) error {
	for _, m := range msgs {
		if err := p.add(m); err != nil {
			return err
		}
	}
	return p.keepalive(keepalive)
}

// TestPackerRecognises: however the newest transaction was stored and comes again, it is known, and not
// stored again; whatever else comes at its place or behind it is another history.
//
// It fails when recognise takes every transaction, when passed takes every position, and when only the
// ends are compared.
func TestPackerRecognises(t *testing.T) {
	t.Parallel()
	small := func(commit, end change.LSN) [][]byte {
		msgs := transaction(commit, end)
		msgs[0][20] = 30 // its xid, as in what is streamed below
		return [][]byte{msgs[0], relation("v"), insert("a"), msgs[1]}
	}
	large := func(commit, end change.LSN) [][]byte {
		msgs := small(commit, end)
		return [][]byte{msgs[0], msgs[1], insert(strings.Repeat("x", spillBytes)), msgs[3]}
	}
	streams := func(commit, end change.LSN) [][]byte {
		return [][]byte{blockStart(30, true), of(30, relation("v")), of(31, insert("b")), of(30, insert("a")), blockEnd(), streamAbort(30, 31), streamCommit(30, commit, end)}
	}
	other := func(commit, end change.LSN) [][]byte {
		msgs := small(commit, end)
		msgs[0][20] = 29
		return msgs
	}
	empty := func(commit, end change.LSN) [][]byte { return transaction(commit, end) }
	late := func(commit, end change.LSN) [][]byte { // the same but for the time of its commit
		msgs := small(commit, end)
		msgs[0][16] = 1
		return msgs
	}
	for name, stored := range map[string]func(commit, end change.LSN) [][]byte{"small": small, "large": large, "streamed": streams} {
		st := openStream(t)
		p := newPacker(st, "", func(change.LSN, int) {})
		if err := fed(p, 40, append(small(10, 20), stored(30, 40)...)...); err != nil {
			t.Fatal(err)
		}
		if err := p.flush(); err != nil {
			t.Fatal(err)
		}
		want := said(t, st, 0)
		for again, msgs := range map[string][][]byte{
			"small": small(30, 40), "large": large(30, 40), "streamed": streams(30, 40),
			"after an older one": append(small(10, 20), small(30, 40)...),
			"inside of a block":  append([][]byte{blockStart(99, true), of(99, insert("c")), blockEnd()}, small(30, 40)...),
		} {
			p := resumed(t, st)
			if err := p.keepalive(39); err != nil { // before its end
				t.Errorf("%s, again %s: %v", name, again, err)
			}
			if err := fed(p, 50, msgs...); err != nil || p.again != nil || p.idle != 50 {
				t.Errorf("%s, again %s: %v, recognised %t", name, again, err, p.again == nil)
			}
			if err := p.abandon(); err != nil {
				t.Fatal(err)
			}
			if got := said(t, st, 0); got != want {
				t.Errorf("%s, again %s: stored\n%s, want\n%s", name, again, got, want)
			}
		}
		for instead, msgs := range map[string][][]byte{
			"nothing": nil, "another end": small(30, 41), "another place": small(31, 40), "a later one": small(40, 50),
			"another xid": other(30, 40), "another time": late(30, 40), "an empty one": empty(32, 36),
			"a large one": large(35, 45), "a streamed one": streams(35, 45), "another end, streamed": streams(30, 45),
		} {
			p := resumed(t, st)
			err := fed(p, 40, msgs...)
			if !errors.Is(err, ErrForked) || hint.Of(err) == "" || !strings.Contains(err.Error(), fmt.Sprint(change.LSN(40))) {
				t.Errorf("%s, instead %s: %v with hint %q", name, instead, err, hint.Of(err))
			}
			if err := p.abandon(); err != nil {
				t.Fatal(err)
			}
			if got := said(t, st, 0); got != want {
				t.Errorf("%s, instead %s: stored\n%s, want\n%s", name, instead, got, want)
			}
		}
	}
}

// TestPackerNewest: a streamed transaction that need not be sent again is not asked for: one without rows
// is not stored, of one whose rows may all be rolled back it is not known which it is.
//
// It fails when streamCommit stores what has no rows, and when rows are not taken back in streamAbort.
func TestPackerNewest(t *testing.T) {
	t.Parallel()
	st := openStream(t)
	p := newPacker(st, "a publication", func(change.LSN, int) {})
	newest := func(when string, head, want change.LSN) {
		t.Helper()
		n, known, err := st.Newest()
		if err != nil || st.Head() != head || known != (want != 0) || known && (n.End != want || n.Asked != "a publication") {
			t.Errorf("%s: head %s, newest %+v, %t, %v; want %s", when, st.Head(), n, known, err, want)
		}
	}
	add := func(msgs ...[]byte) {
		t.Helper()
		for _, m := range msgs {
			if err := p.add(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	newest("nothing stored", 0, 0)
	add(blockStart(7, true), blockEnd(), streamCommit(7, 10, 20))
	newest("streamed without rows", 0, 0)
	add(blockStart(8, true), of(8, relation("v")), of(8, insert("a")), of(9, insert("b")), blockEnd(), streamAbort(8, 9), streamCommit(8, 20, 30))
	newest("some rolled back", 30, 30)
	add(blockStart(10, true), of(11, relation("v")), of(11, insert("a")), blockEnd(), streamAbort(10, 11), streamCommit(10, 30, 40))
	newest("all rolled back", 40, 0)
	add(blockStart(20, true), of(21, relation("v")))
	for sub := range uint32(leastRoom + 1) {
		add(of(21+sub, insert("a")))
	}
	add(blockEnd(), streamAbort(20, 22), streamCommit(20, 50, 60))
	newest("one of many rolled back", 60, 60)
	if err := st.Trim(60); err != nil {
		t.Fatal(err)
	}
	newest("trimmed", 60, 60)
}
