package source

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
)

// recordings returns what PostgreSQL of each version sent, framed, from the corpus of package change.
func recordings(f *testing.F) (chunks [][]byte) {
	f.Helper()
	files, err := filepath.Glob("../../change/testdata/fuzz/FuzzDecode/pg*")
	if err != nil || len(files) == 0 {
		f.Fatalf("no recordings: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		_, quoted, _ := strings.Cut(string(text), "[]byte(")
		chunk, err := strconv.Unquote(strings.TrimSuffix(strings.TrimSpace(quoted), ")"))
		if err != nil {
			f.Fatalf("%s: %v", file, err)
		}
		chunks = append(chunks, []byte(chunk))
	}
	return chunks
}

// FuzzPacker sends messages through a packer into a stream, with keepalives between them and the
// connection lost in the end, and reads what became of them. Malformed messages are errors; what is
// stored is whole, in order, and no larger than what was sent.
//
// It fails when begin or commit read beyond the end of a message: take away the test of its length.
func FuzzPacker(f *testing.F) {
	for _, chunk := range recordings(f) {
		f.Add(chunk, uint8(0))
		f.Add(chunk, uint8(7))
	}
	store, err := eventstore.Open(eventstore.Config{Dir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = store.Close() })
	f.Fuzz(func(t *testing.T, chunk []byte, idle uint8) {
		st, err := store.Stream("fuzz")
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := store.DropStream("fuzz"); err != nil {
				t.Error(err)
			}
		}()
		var received change.LSN
		p := newPacker(st, "", func(r change.LSN, _ int) { received = max(received, r) })
		for n, rest := 0, chunk; len(rest) > 0; n++ {
			var msg []byte
			if msg, rest, err = change.NextFrame(rest); err != nil {
				break
			}
			if len(msg) == 0 {
				continue // wire.next lets none through
			}
			if err = p.add(msg); err != nil {
				break
			}
			if idle > 0 && n%int(idle) == 0 {
				if err = p.keepalive(received + 1); err != nil {
					break
				}
			}
			if idle%2 == 1 {
				if _, err = p.drained(time.Now().Add(time.Hour)); err != nil {
					break
				}
			}
		}
		if cap(p.buf) > 4*spillBytes+4*len(chunk) {
			t.Errorf("%d bytes held for %d", cap(p.buf), len(chunk))
		}
		// The stream refuses commits that do not grow, which only a broken server sends.
		if _, err := p.drained(time.Now().Add(time.Hour)); err == nil {
			_ = p.abandon()
		}
		stored(t, st, len(chunk))
	})
}

// stored reads a stream to its head: frames that are whole, in chunks whose ends grow.
func stored(t *testing.T, st *eventstore.Stream, sent int) {
	t.Helper()
	r, bytes := st.Read(0), 0
	defer r.Close()
	for at := change.LSN(0); at < st.Head(); {
		c, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if c.End < at || c.End == at && !c.Spilled {
			t.Fatalf("a chunk that ends at %s follows one that ends at %s", c.End, at)
		}
		var last byte
		for rest := c.Data; len(rest) > 0; {
			var msg []byte
			if msg, rest, err = change.NextFrame(rest); err != nil {
				t.Fatal(err)
			}
			if len(msg) > 0 {
				last = msg[0]
			}
		}
		if bytes += len(c.Data); bytes > 4*sent+64 {
			t.Fatalf("%d bytes stored of %d sent", bytes, sent)
		}
		if last == byte(change.KindCommit) || !c.Spilled {
			at = c.End
		}
	}
}

// FuzzWire reads frames from a server that sends anything at all, in two pieces.
//
// It fails when memory is taken for a length before the bytes are there.
func FuzzWire(f *testing.F) {
	data := func(payload string) []byte {
		b := binary.BigEndian.AppendUint32([]byte{'d'}, uint32(4+25+len(payload)))
		return append(append(append(b, 'w'), make([]byte, 24)...), payload...)
	}
	f.Add(data("B"), uint16(3))
	f.Add(append(data("abc"), 'd', 0, 0, 0, 22, 'k', 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1), uint16(40))
	f.Add([]byte{'d', 0xff, 0xff, 0xff, 0xff, 'w'}, uint16(1))
	f.Add([]byte{'d', 0x7f, 0xff, 0xff, 0xff, 'w'}, uint16(5))
	f.Add([]byte{'d', 0, 0, 0, 3}, uint16(0))
	f.Add([]byte{'d', 0, 0, 0, 5, 'k'}, uint16(2))
	f.Add([]byte("E\x00\x00\x00\x1aSFATAL\x00C57P01\x00Mbye\x00\x00"), uint16(9))
	f.Add([]byte("N\x00\x00\x00\x06S\x00E\x00\x00\x00\x05S"), uint16(9))
	f.Add([]byte("Z\x00\x00\x00\x05I"), uint16(9))
	f.Fuzz(func(t *testing.T, sent []byte, cut uint16) {
		server, client := net.Pipe()
		w := newWire(client)
		done := make(chan struct{})
		go func() { // ends when everything was read, or the client has gone
			defer close(done)
			at := min(int(cut), len(sent))
			_, _ = server.Write(sent[:at])
			_, _ = server.Write(sent[at:])
			_ = server.Close()
		}()
		for {
			m, err := w.next(time.Now().Add(time.Minute))
			if cap(w.big) > 2*len(sent)+2*readBuffer {
				t.Fatalf("%d bytes taken for %d", cap(w.big), len(sent))
			}
			if err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatal(err)
				}
				break
			}
			if len(m.data) > len(sent) {
				t.Fatalf("a message of %d bytes out of %d", len(m.data), len(sent))
			}
		}
		_ = client.Close()
		<-done
	})
}
