package source

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

func openStream(t testing.TB) *eventstore.Stream {
	t.Helper()
	store, err := eventstore.Open(eventstore.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	st, err := store.Stream("test")
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// It fails when what is received counts as durable, or as applied.
func TestAckable(t *testing.T) {
	t.Parallel()
	st := openStream(t)
	batch := st.NewBatch()
	batch.Append(50, nil)
	if err := batch.Commit(); err != nil {
		t.Fatal(err)
	}
	var applied change.LSN
	stored := &Reader{cfg: Config{Stream: st}}
	target := &Reader{cfg: Config{Stream: st, Ack: AckApplied, Applied: func() change.LSN { return applied }}}
	stored.pos.receive(100) // the server has nothing more up to there
	target.pos.receive(100)
	check := func(when string, wantStored, wantApplied change.LSN) {
		t.Helper()
		if s, a := stored.ackable(), target.ackable(); s != wantStored || a != wantApplied {
			t.Errorf("%s: stored %s, applied %s; want %s, %s", when, s, a, wantStored, wantApplied)
		}
	}
	check("nothing is durable", 0, 0)
	if err := st.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("all is durable", 100, 0)
	applied = 40
	check("not all is applied", 100, 40)
	applied = 50
	check("all is applied", 100, 100)
	applied = 200
	check("the store was lost, the destination knows more", 100, 200)
}

// Under load the disk is left alone between syncs.
//
// It fails when makeDurable does not sync, or without a pause.
func TestSyncsArePaced(t *testing.T) {
	t.Parallel()
	st := openStream(t)
	r := &Reader{cfg: Config{Stream: st}, unsynced: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- r.makeDurable(ctx) }() // ends with ctx

	const syncs = 10
	begun := time.Now()
	for end := change.LSN(1); end <= syncs; end++ {
		batch := st.NewBatch()
		batch.Append(end, nil)
		if err := batch.Commit(); err != nil {
			t.Fatal(err)
		}
		r.stored(end, 1)
		for st.Durable() < end {
			if err := backoff.Sleep(ctx, time.Millisecond); err != nil || time.Since(begun) > time.Minute {
				t.Fatalf("durable up to %s, want %s: %v", st.Durable(), end, err)
			}
		}
	}
	if took := time.Since(begun); took < (syncs-1)*syncPause {
		t.Errorf("%d syncs took %s", syncs, took)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A server that takes no reports is read on.
//
// It fails when receive waits for report: let it call r.report, or share a lock that report holds while it
// writes.
func TestReportsDoNotHoldUpReading(t *testing.T) {
	t.Parallel()
	st := openStream(t)
	r := &Reader{cfg: Config{Stream: st, StatusInterval: time.Millisecond, ReceiveTimeout: time.Minute}, unsynced: make(chan struct{}, 1)}
	server, client := net.Pipe() // a write lasts until it is read
	w := newWire(client)
	asked, done := make(chan struct{}, 1), make(chan error, 2)
	go func() { done <- r.report(t.Context(), w, asked) }() // ends when the pipe is closed
	head := make([]byte, 5)
	if _, err := io.ReadFull(server, head); err != nil || head[0] != 'd' { // the rest of it stays where it is
		t.Fatalf("a report begins with %q, %v", head, err)
	}
	go func() { // ends when the pipe is closed
		done <- r.receive(w, newPacker(st, "", r.stored), asked, func() {})
	}()
	const last = 5000
	for commit := change.LSN(100); commit < last; commit += 100 {
		for _, msg := range transaction(commit, commit+100, "row") {
			frame := binary.BigEndian.AppendUint32([]byte{'d'}, uint32(4+25+len(msg)))
			frame = append(append(append(frame, 'w'), make([]byte, 24)...), msg...)
			if _, err := server.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
	}
	pgtest.Eventually(t, "all received", func() bool { return r.Status().Received == last })
	if len(done) > 0 {
		t.Errorf("received after a loop had ended: %v", <-done)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-done; err == nil {
			t.Error("a loop ended without the connection's error")
		}
	}
}

// messages of a transaction: begin, rows, commit.
func transaction(commit, end change.LSN, rows ...string) [][]byte {
	begin := binary.BigEndian.AppendUint64([]byte{'B'}, uint64(commit))
	begin = append(begin, make([]byte, 12)...)
	binary.BigEndian.PutUint32(begin[17:], uint32(commit)) // xid
	list := [][]byte{begin}
	for _, r := range rows {
		list = append(list, []byte("I"+r))
	}
	done := binary.BigEndian.AppendUint64([]byte{'C', 0}, uint64(commit))
	done = binary.BigEndian.AppendUint64(done, uint64(end))
	return append(list, append(done, make([]byte, 8)...))
}

// It fails when a transaction that the stream holds is stored again (a server does not send it again
// where it keeps to its protocol, so no test against one can see that), when a keepalive counts inside
// of a transaction, and when a spill that was cut off stays.
func TestPacker(t *testing.T) {
	t.Parallel()
	st := openStream(t)
	var received change.LSN
	newP := func() *packer { return newPacker(st, "", func(r change.LSN, _ int) { received = r }) }
	p := newP()
	add := func(msgs [][]byte) {
		t.Helper()
		for _, m := range msgs {
			if err := p.add(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	drained := func() {
		t.Helper()
		if _, err := p.drained(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	large := strings.Repeat("x", spillBytes)

	add(transaction(10, 20, "a"))
	add(transaction(20, 30)) // empty
	add(transaction(30, 40, "b"))
	add(transaction(40, 50))
	if st.Head() != 0 || received != 0 {
		t.Errorf("head %s, received %s before anything was due", st.Head(), received)
	}
	drained()
	if st.Head() != 40 || received != 50 {
		t.Errorf("head %s, received %s; want 40 and the empty transaction's 50", st.Head(), received)
	}

	// The connection breaks inside of a large transaction, and it and others come again.
	add(transaction(50, 60, large, "c")[:3])
	if err := p.abandon(); err != nil {
		t.Fatal(err)
	}
	p = newP()
	add(transaction(10, 20, "a"))
	add(transaction(30, 40, large))
	add(transaction(50, 60, large, "c"))
	add(transaction(60, 70, "d")[:2])
	if err := p.keepalive(1000); err != nil { // which says nothing about the open transaction
		t.Fatal(err)
	}
	drained()
	if st.Head() != 60 || received != 60 {
		t.Errorf("head %s, received %s inside of a transaction; want 60", st.Head(), received)
	}

	var got []string
	for r := st.Read(0); len(got) < 4; {
		c, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for rest := c.Data; len(rest) > 0; {
			var msg []byte
			if msg, rest, err = change.NextFrame(rest); err != nil {
				t.Fatal(err)
			}
			if msg[0] == 'I' {
				got = append(got, fmt.Sprintf("%d %.2s", c.End, msg[1:]))
			}
		}
	}
	if want := "40 a|40 b|60 xx|60 c"; strings.Join(got, "|") != want {
		t.Errorf("stored %q, want %q", got, want)
	}
}

func TestPackerRefuses(t *testing.T) {
	t.Parallel()
	tx := transaction(10, 20, "a")
	for what, msgs := range map[string][][]byte{
		"row outside":        {tx[1]},
		"commit outside":     {tx[2]},
		"begin inside":       {tx[0], tx[0]},
		"begin cut short":    {tx[0][:20]},
		"commit of another":  {tx[0], transaction(11, 20)[1]},
		"commit cut short":   {tx[0], tx[2][:25]},
		"relation cut short": {tx[0], []byte("R123")},
	} {
		p := newPacker(openStream(t), "", func(change.LSN, int) {})
		var err error
		for _, m := range msgs {
			err = p.add(m)
		}
		if !errors.Is(err, change.ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", what, err)
		}
	}
}

// Frames arrive in any pieces, with deadlines that pass in their middle, and larger than the buffer.
func TestWire(t *testing.T) {
	t.Parallel()
	server, client := net.Pipe()
	w := newWire(client)
	rng := rand.New(rand.NewPCG(1, 2))
	sizes := []int{1, 2, 100, readBuffer - 31, readBuffer - 30, readBuffer, 3 * readBuffer, 7}
	go func() { // ends when everything was read
		defer server.Close()
		var out []byte
		for _, n := range sizes {
			out = append(out, 'd')
			out = binary.BigEndian.AppendUint32(out, uint32(4+25+n))
			out = append(out, 'w')
			out = append(out, make([]byte, 24+n)...)
			out[len(out)-1] = byte(n)
		}
		out = append(out, 'd', 0, 0, 0, 22, 'k', 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1)
		for len(out) > 0 {
			n := min(len(out), 1+rng.IntN(100_000))
			if _, err := server.Write(out[:n]); err != nil {
				t.Error(err)
				return
			}
			out = out[n:]
		}
	}()
	next := func() (message, error) {
		for {
			m, err := w.next(time.Now().Add(50 * time.Microsecond))
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return m, err
			}
		}
	}
	for _, n := range sizes {
		m, err := next()
		if err != nil || len(m.data) != n || m.data[n-1] != byte(n) {
			t.Fatalf("message of %d bytes: got %d, %v", n, len(m.data), err)
		}
	}
	if m, err := next(); err != nil || m.data != nil || m.serverEnd != 9 || !m.reply {
		t.Errorf("keepalive: got %+v, %v", m, err)
	}
}

// A fault of the server that stays is reported in the end; one that lets changes through is not.
func TestFaults(t *testing.T) {
	t.Parallel()
	var f faults
	for i, want := range []bool{true, true, true, false} {
		if got := f.again(0); got != want {
			t.Errorf("fault %d at one place: again %t", i+1, got)
		}
	}
	for head := range 10 {
		if !f.again(change.LSN(head + 1)) {
			t.Errorf("no try after head %d", head+1)
		}
	}
}
