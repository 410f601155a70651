package source

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
)

// What a server sends of a streamed transaction.

func blockStart(xid uint32, first bool) []byte {
	msg := binary.BigEndian.AppendUint32([]byte{'S'}, xid)
	if first {
		return append(msg, 1)
	}
	return append(msg, 0)
}

func blockEnd() []byte { return []byte{'E'} }

func streamCommit(xid uint32, commit, end change.LSN) []byte {
	msg := append(binary.BigEndian.AppendUint32([]byte{'c'}, xid), 0)
	msg = binary.BigEndian.AppendUint64(msg, uint64(commit))
	msg = binary.BigEndian.AppendUint64(msg, uint64(end))
	return append(msg, make([]byte, 8)...)
}

func streamAbort(xid, sub uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte{'A'}, xid), sub)
}

// relation describes public.t, of one column of that name.
func relation(column string) []byte {
	return []byte("R\x00\x00\x00\x01public\x00t\x00d\x00\x01\x01" + column + "\x00\x00\x00\x00\x19\xff\xff\xff\xff")
}

func insert(value string) []byte {
	msg := binary.BigEndian.AppendUint32([]byte("I\x00\x00\x00\x01N\x00\x01t"), uint32(len(value)))
	return append(msg, value...)
}

// of puts the xid of a subtransaction into a message.
func of(sub uint32, msg []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{msg[0]}, sub), msg[1:]...)
}

// said decodes what a stream holds after from: "60 v=a", and "(" and ")" for begin and commit.
func said(t *testing.T, st *eventstore.Stream, from change.LSN) string {
	t.Helper()
	r := st.Read(from)
	d := change.NewDecoder()
	pins, err := r.Pins()
	if err != nil {
		t.Fatal(err)
	}
	for _, pin := range pins {
		if _, err := d.Decode(pin); err != nil {
			t.Fatal(err)
		}
	}
	var out []string
	for at := from; at < st.Head(); {
		c, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for rest := c.Data; len(rest) > 0; {
			var msg []byte
			if msg, rest, err = change.NextFrame(rest); err != nil {
				t.Fatal(err)
			}
			m, err := d.Decode(msg)
			if err != nil {
				t.Fatalf("%q: %v", msg, err)
			}
			switch m.Kind { //nolint:exhaustive // the others are not in these streams, or say nothing
			case change.KindBegin:
				out = append(out, fmt.Sprintf("(%d", m.Begin.XID))
			case change.KindOrigin:
				out = append(out, "from "+m.Origin)
			case change.KindInsert:
				out = append(out, fmt.Sprintf("%s=%.3s", m.Row.Rel.Columns[0].Name, m.Row.New[0].Data))
			case change.KindCommit:
				at = m.Commit.EndLSN
				out = append(out, fmt.Sprintf("%d)", uint64(at)))
			}
		}
	}
	return strings.Join(out, " ")
}

// TestPackerStreamed lets transactions be streamed side by side, with ordinary ones between their
// blocks, over a connection that breaks.
//
// It fails when rolled back Relation messages or rows are decoded or pinned (skips, streamAbort), when a
// keepalive in a block counts (keepalive), when what the stream holds is stored again (holds in
// streamCommit), when what committed before is written after (flush in streamCommit), and when a spill
// outlives its connection (abandon).
func TestPackerStreamed(t *testing.T) {
	t.Parallel()
	st := openStream(t)
	var received change.LSN
	newP := func() *packer { return newPacker(st, "", func(r change.LSN, _ int) { received = r }) }
	p := newP()
	add := func(msgs ...[]byte) {
		t.Helper()
		for _, m := range msgs {
			if err := p.add(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	keepalive := func(at, want change.LSN) {
		t.Helper()
		if err := p.keepalive(at); err != nil || received != want {
			t.Errorf("received %s, %v after a keepalive at %s, want %s", received, err, at, want)
		}
	}
	small := func(commit, end change.LSN, value string) {
		t.Helper()
		msgs := transaction(commit, end)
		add(msgs[0], relation("v"), insert(value), msgs[1])
	}

	// 100 has subtransactions 101 and 102, which is rolled back; 200 is rolled back; 300 stays open.
	add(blockStart(100, true), append([]byte{'O', 0, 0, 0, 0, 0, 0, 0, 1}, "home\x00"...), of(100, relation("v")), of(100, insert("a")), of(101, insert("b")))
	keepalive(1000, 0)
	add(blockEnd())
	add(blockStart(200, true), of(200, relation("v")), of(200, insert("never")), blockEnd())
	keepalive(5, 5) // 100 and 200 are open, and end later
	small(10, 20, "small")
	add(blockStart(100, false), of(102, relation("w")), of(102, insert("back")), blockEnd(), streamAbort(100, 102))
	add(blockStart(300, true), of(300, relation("v")), of(300, insert("open")), blockEnd())
	add(streamAbort(200, 200), streamAbort(900, 901))
	add(blockStart(100, false), of(100, insert(strings.Repeat("c", chunkBytes))), of(101, insert("d")), blockEnd())
	if st.Head() != 0 {
		t.Errorf("head %s: something is visible before its commit", st.Head())
	}
	add(streamCommit(100, 30, 40)) // which lets the small one go ahead
	want := "(10 v=sma 20) (100 from home v=a v=b v=ccc v=d 40)"
	if got := said(t, st, 0); got != want || received != 40 {
		t.Errorf("received %s, stored\n%s, want 40 and\n%s", received, got, want)
	}
	small(40, 50, "e")
	if _, err := p.drained(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}

	// Everything comes again that is not stored, and some that is.
	if err := p.abandon(); err != nil {
		t.Fatal(err)
	}
	p = newP()
	add(blockStart(100, true), of(100, relation("v")), of(100, insert("again")), blockEnd(), streamCommit(100, 30, 40))
	add(blockStart(300, true), of(300, relation("v")), of(300, insert("f")), of(301, insert("back")), blockEnd(), streamAbort(300, 301))
	add(blockStart(300, false), of(302, insert("g")), of(303, insert("h")), blockEnd(), streamAbort(300, 303))
	add(streamCommit(300, 60, 70))
	add(blockStart(400, true), blockEnd(), streamCommit(400, 70, 80)) // nothing in it
	keepalive(90, 90)
	want += " (40 v=e 50) (300 v=f v=g 70)"
	if got := said(t, st, 0); got != want {
		t.Errorf("stored\n%s, want\n%s", got, want)
	}
	small(80, 90, "i") // its description of the relation is in it, and so is in no pin before it
	msgs := transaction(90, 95)
	add(msgs[0], insert("j"), msgs[1])
	if _, err := p.drained(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if got, want := said(t, st, 40), "(40 v=e 50) (300 v=f v=g 70) (80 v=i 90) (90 v=j 95)"; got != want {
		t.Errorf("after the first streamed one\n%s, want\n%s", got, want)
	}
	if n := len(p.streams); n != 0 {
		t.Errorf("%d transactions are still open", n)
	}
}

// TestPackerStreamedPins: who begins behind a streamed transaction knows the relations that it described,
// but not as a rolled back part of it did.
func TestPackerStreamedPins(t *testing.T) {
	t.Parallel()
	st := openStream(t)
	p := newPacker(st, "", func(change.LSN, int) {})
	last := transaction(30, 40)
	for _, m := range [][]byte{
		blockStart(100, true), of(100, relation("v")), of(100, insert("a")), of(100, relation("v")), of(101, relation("w")), of(101, insert("b")),
		blockEnd(), streamAbort(100, 101), streamCommit(100, 10, 20), last[0], insert("c"), last[1],
	} {
		if len(p.streams) > 0 && len(slices.Collect(maps.Values(p.streams))[0].pins) > 2 {
			t.Error("a description that says nothing new is kept")
		}
		if err := p.add(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.flush(); err != nil {
		t.Fatal(err)
	}
	for from, want := range map[change.LSN]string{0: "(100 v=a 20) (30 v=c 40)", 20: "(30 v=c 40)"} {
		if got := said(t, st, from); got != want {
			t.Errorf("from %s: %s, want %s", from, got, want)
		}
	}
}

// TestPackerStreamedMemory: however many transactions are open, what is in memory of them is one piece.
func TestPackerStreamedMemory(t *testing.T) {
	t.Parallel()
	st := openStream(t)
	p := newPacker(st, "", func(change.LSN, int) {})
	row := strings.Repeat("x", chunkBytes/3)
	for round := range 3 {
		for xid := range uint32(40) {
			for _, m := range [][]byte{
				blockStart(100+xid, round == 0), of(100+xid, insert(row)), of(100+xid, insert(row)), of(100+xid, insert(row)),
				of(100+xid, insert(row)), blockEnd(),
			} {
				if err := p.add(m); err != nil {
					t.Fatal(err)
				}
				if len(p.piece) > 2*chunkBytes || len(p.buf) > 0 {
					t.Fatalf("%d and %d bytes in memory", len(p.piece), len(p.buf))
				}
			}
		}
	}
	if err := p.add(blockStart(100, false)); err != nil {
		t.Fatal(err)
	}
	if err := p.add(of(100, insert(strings.Repeat(row, 100)))); err != nil {
		t.Fatal(err)
	}
	if cap(p.piece) > 4*chunkBytes {
		t.Errorf("a giant message left a buffer of %d bytes", cap(p.piece))
	}
	if err := p.abandon(); err != nil {
		t.Fatal(err)
	}
}

func TestPackerStreamedRefuses(t *testing.T) {
	t.Parallel()
	start, next := blockStart(100, true), blockStart(100, false)
	tx := transaction(10, 20)
	for what, msgs := range map[string][][]byte{
		"block of an unknown transaction":      {next},
		"two first blocks":                     {start, blockEnd(), start},
		"block inside a block":                 {start, next},
		"block inside a transaction":           {tx[0], start},
		"begin inside a block":                 {start, tx[0]},
		"commit inside a block":                {start, streamCommit(100, 10, 20)},
		"end of no block":                      {blockEnd()},
		"commit of an unknown transaction":     {streamCommit(100, 10, 20)},
		"start cut short":                      {start[:5]},
		"commit cut short":                     {start, blockEnd(), streamCommit(100, 10, 20)[:29]},
		"abort cut short":                      {streamAbort(1, 2)[:8]},
		"message without its xid":              {start, []byte("I\x00\x00\x00")},
		"relation cut short":                   {start, of(100, []byte("R\x00\x00"))},
		"two-phase message":                    {append([]byte{'P'}, make([]byte, 40)...)},
		"unknown kind outside a transaction":   {[]byte("?what")},
		"unknown kind inside of a transaction": {tx[0], []byte("?what")},
		"unknown kind in a block":              {start, []byte("?what")},
		"a mark of our own":                    {tx[0], []byte("/>\x00\x00\x00\x01")},
		"a mark of our own in a block":         {start, []byte("/>\x00\x00\x00\x01")},
	} {
		p := newPacker(openStream(t), "", func(change.LSN, int) {})
		var err error
		for i, m := range msgs {
			if err = p.add(m); err != nil && i < len(msgs)-1 {
				t.Errorf("%s: message %d: %v", what, i, err)
			}
		}
		if !errors.Is(err, change.ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", what, err)
		}
	}
	p := newPacker(openStream(t), "", func(change.LSN, int) {})
	if err := p.add([]byte("?what")); err == nil || !strings.Contains(err.Error(), `kind '?'`) {
		t.Errorf("an unknown message: %v, which does not name it", err)
	}
}

// A server that failed is not asked for transactions in progress again; one that was only away is.
//
// It fails when mends leaves streaming as it was.
func TestFaultEndsStreaming(t *testing.T) {
	t.Parallel()
	r := &Reader{cfg: Config{Stream: openStream(t)}}
	var f faults
	if !r.mends(&pgconn.PgError{Code: "57P01"}, &f) || r.streaming != StreamingOn {
		t.Errorf("after a shutdown of the server: streaming %s", r.streaming)
	}
	if !r.mends(&pgconn.PgError{Code: codeInternal}, &f) || r.streaming != StreamingOff {
		t.Errorf("after a fault of the server: streaming %s", r.streaming)
	}
	r.streaming = StreamingOn
	if !r.mends(fmt.Errorf("ask: %w", errUntold), &f) || r.streaming != StreamingOff {
		t.Errorf("a rollback that nobody knows of any more: streaming %s", r.streaming)
	}
}

func TestPluginOptions(t *testing.T) {
	t.Parallel()
	const names = `, publication_names '"a","b c"'`
	for _, x := range []struct {
		major     int
		streaming Streaming
		want      string
	}{
		{13, StreamingOn, "proto_version '1'" + names},
		{14, StreamingOn, "proto_version '2', streaming 'on'" + names},
		{15, StreamingOff, "proto_version '1'" + names},
		{16, StreamingOn, "proto_version '2', streaming 'on', origin 'any'" + names},
		{18, StreamingOff, "proto_version '1', origin 'any'" + names},
		{0, StreamingOn, "proto_version '1'" + names},
	} {
		if got := pluginOptions(x.major, x.streaming, []string{"a", "b c"}); got != x.want {
			t.Errorf("%d, streaming %s: %s, want %s", x.major, x.streaming, got, x.want)
		}
	}
	got := map[string]int{}
	for _, v := range []string{"17.2 (Debian 17.2-1)", "18beta1", "13.9", "9.6.1", "", "devel"} {
		got[v] = majorVersion(v)
	}
	if d := cmp.Diff(map[string]int{"17.2 (Debian 17.2-1)": 17, "18beta1": 18, "13.9": 13, "9.6.1": 9, "": 0, "devel": 0}, got); d != "" {
		t.Errorf("versions (-want +got):\n%s", d)
	}
}
