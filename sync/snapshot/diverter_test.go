package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// message appends a message of the server.
func message(stream []byte, kind byte, body []byte) []byte {
	stream = append(stream, kind)
	stream = binary.BigEndian.AppendUint32(stream, uint32(len(body)+4))
	return append(stream, body...)
}

// A stutter reads and gives as much at a time as chance wants.
type stutter struct {
	from io.Reader
	rand *rand.Rand
}

func (s *stutter) Read(p []byte) (int, error) { return s.from.Read(p[:1+s.rand.IntN(len(p))]) }

// TestDiverterSplitsTheStream: whatever pieces the bytes come in and are asked for in, the rows of a
// COPY arrive in the relay, counted, and all else in the other reader. It notices a diverter that
// loses its place between messages, and a relay that loses or doubles the end of a block.
func TestDiverterSplitsTheStream(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 7))
		body := func(most int) []byte {
			b := make([]byte, r.IntN(most))
			for i := range b {
				b[i] = "dHcCZE\x00\xff"[r.IntN(8)] // what looks like a message, too
			}
			return b
		}
		var stream, rows, rest []byte
		var count int64
		for range r.IntN(200) {
			most := 20
			if r.IntN(30) == 0 {
				most = 3 * blockSize // a row of several blocks
			}
			if b := body(most); r.IntN(8) == 0 {
				rest = message(rest, "HcCZENS"[r.IntN(7)], b)
				stream = message(stream, rest[len(rest)-len(b)-messageHeader], b)
			} else if len(b) > 0 {
				stream, rows, count = message(stream, 'd', b), append(rows, b...), count+1
			} else { // no row is empty: it passes
				stream, rest = message(stream, 'd', nil), message(rest, 'd', nil)
			}
		}

		relay := newRelay()
		counted := &table{}
		relay.begin(counted)
		arrived := make(chan []byte)
		go func() { // ends with the relay
			got, err := io.ReadAll(&stutter{relay, rand.New(rand.NewPCG(seed, 8))})
			if err != nil {
				t.Errorf("seed %d: relay: %v", seed, err)
			}
			arrived <- got
		}()
		d := &diverter{from: &stutter{bytes.NewReader(stream), r}, buf: make([]byte, 8+r.IntN(blockSize)), to: relay}
		got, err := io.ReadAll(&stutter{d, r})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		relay.end(true)
		if moved := <-arrived; !bytes.Equal(moved, rows) {
			t.Errorf("seed %d: %d bytes of rows arrived of %d, or others", seed, len(moved), len(rows))
		}
		if !bytes.Equal(got, rest) {
			t.Errorf("seed %d: %d bytes passed of %d, or others", seed, len(got), len(rest))
		}
		want := []int64{max(count-1, 0), int64(len(rows))} // the last row may be no row
		if diff := cmp.Diff(want, []int64{counted.rows.Load(), counted.bytes.Load()}); diff != "" {
			t.Errorf("seed %d: rows and bytes counted (-want +got):\n%s", seed, diff)
		}
		if relay.settle(count); counted.rows.Load() != count {
			t.Errorf("seed %d: %d rows in the end, want %d", seed, counted.rows.Load(), count)
		}
	}
}

// TestDiverterPassesNonsense: a length that cannot be reaches pgconn, which ends the session.
func TestDiverterPassesNonsense(t *testing.T) {
	t.Parallel()
	stream := message(nil, 'd', []byte("row"))
	stream = append(stream, 'd', 0, 0, 0, 3, 'x')
	relay := newRelay()
	relay.begin(&table{})
	d := &diverter{from: iotest.OneByteReader(bytes.NewReader(stream)), buf: make([]byte, blockSize), to: relay}
	head := make([]byte, messageHeader)
	if _, err := io.ReadFull(d, head); err != nil || head[0] != 'd' || head[4] != 3 {
		t.Errorf("pgconn sees %q, %v", head, err)
	}
	relay.end(true)
	if row, err := io.ReadAll(relay); err != nil || string(row) != "row" {
		t.Errorf("the row before it: %q, %v", row, err)
	}
}

// TestRelayEndsEarly: a side that ends takes the other with it, and a target never takes rows that
// end early for all there are.
func TestRelayEndsEarly(t *testing.T) {
	t.Parallel()
	relay := newRelay()
	relay.begin(&table{})
	if err := relay.write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	relay.end(false)
	if _, err := io.ReadAll(relay); !errors.Is(err, errCut) {
		t.Errorf("the target sees %v, want that rows are missing", err)
	}

	relay = newRelay()
	relay.begin(&table{})
	written := make(chan error)
	go func() { // ends when the relay takes no more
		for {
			if err := relay.write(make([]byte, blockSize)); err != nil {
				written <- err
				return
			}
		}
	}()
	if _, err := io.ReadFull(relay, make([]byte, 2*blockSize)); err != nil {
		t.Fatal(err)
	}
	relay.stop()
	if err := <-written; !errors.Is(err, errStopped) {
		t.Errorf("the source sees %v, want that nobody reads", err)
	}
}

// endless is a COPY of rows of one length, without end.
type endless struct {
	rows []byte // several, as messages
	at   int
}

func (e *endless) Read(p []byte) (n int, err error) {
	for n < len(p) {
		part := copy(p[n:], e.rows[e.at:])
		n, e.at = n+part, (e.at+part)%len(e.rows)
	}
	return n, nil
}

// BenchmarkDivert is what a byte of a COPY costs between the two sockets, without them.
func BenchmarkDivert(b *testing.B) {
	for _, size := range []int{16, 114, 1000, 100_000} {
		b.Run(fmt.Sprintf("row=%d", size), func(b *testing.B) {
			src := &endless{}
			for range max(1, blockSize/size) {
				src.rows = message(src.rows, 'd', make([]byte, size))
			}
			relay := newRelay()
			relay.begin(&table{})
			d := &diverter{from: src, buf: make([]byte, blockSize), to: relay}
			go func() { // ends with the relay
				_, _ = d.Read(make([]byte, 1))
			}()
			b.SetBytes(int64(size))
			b.ReportAllocs()
			p := make([]byte, 64<<10) // as pgconn asks
			if _, err := io.ReadFull(relay, p); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			for left := int64(b.N) * int64(size); left > 0; {
				n, err := relay.Read(p)
				if err != nil {
					b.Fatal(err)
				}
				left -= int64(n)
			}
			relay.stop()
		})
	}
}
