package source

import (
	"encoding/binary"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/change"
)

// benchMessages are those of a transaction as pgbench runs them (TPC-B), with the xid of a
// (sub)transaction behind the kind of the rows when sub is not 0.
func benchMessages(sub uint32) [][]byte {
	row := func(kind byte, relation uint32, values ...string) []byte {
		msg := []byte{kind}
		if sub != 0 {
			msg = binary.BigEndian.AppendUint32(msg, sub)
		}
		msg = append(binary.BigEndian.AppendUint32(msg, relation), 'N')
		msg = binary.BigEndian.AppendUint16(msg, uint16(len(values)))
		for _, v := range values {
			msg = append(binary.BigEndian.AppendUint32(append(msg, 't'), uint32(len(v))), v...)
		}
		return msg
	}
	return [][]byte{
		row('U', 1, "4711", "1", "-2718", fmt.Sprintf("%-84s", "")),
		row('U', 2, "3", "1", "271828"), row('U', 3, "1", "314159"),
		row('I', 4, "3", "1", "4711", "-42", "2026-11-21 13:37:06.123456"),
	}
}

// A feeder gives a packer transaction after transaction, without end.
type feeder struct {
	p    *packer
	at   change.LSN
	msgs [][]byte // begin, rows, commit
}

func newFeeder(p *packer) *feeder {
	f := &feeder{p: p, at: 1000, msgs: transaction(0, 0)}
	rows := benchMessages(0)
	f.msgs = append(append(f.msgs[:1:1], rows...), f.msgs[1])
	return f
}

func (f *feeder) transaction(tb testing.TB) {
	tb.Helper()
	begin, commit := f.msgs[0], f.msgs[len(f.msgs)-1]
	binary.BigEndian.PutUint64(begin[1:], uint64(f.at))
	binary.BigEndian.PutUint64(commit[2:], uint64(f.at))
	f.at += 500
	binary.BigEndian.PutUint64(commit[10:], uint64(f.at))
	for _, msg := range f.msgs {
		if err := f.p.add(msg); err != nil {
			tb.Fatal(err)
		}
	}
}

// BenchmarkPacker stores transactions of six messages, nobody syncs; an operation is one transaction.
func BenchmarkPacker(b *testing.B) {
	f := newFeeder(newPacker(openStream(b), "", func(change.LSN, int) {}))
	size := 0
	for _, msg := range f.msgs {
		size += len(msg)
	}
	b.ReportAllocs()
	b.SetBytes(int64(size))
	for b.Loop() {
		f.transaction(b)
	}
}

// Receiving allocates by the chunk, not by the row: a chunk holds hundreds of transactions.
//
// It fails when wire.next or packer.add allocates for a message or a transaction.
func TestReceivingDoesNotAllocate(t *testing.T) {
	f := newFeeder(newPacker(openStream(t), "", func(change.LSN, int) {}))
	server, client := net.Pipe()
	go feed(server, f.msgs) // ends when the pipe is closed
	defer client.Close()
	w := newWire(client)
	const transactions = 2000 // two chunks and more
	n := testing.AllocsPerRun(10, func() {
		for range transactions {
			f.transaction(t)
			for range f.msgs {
				if _, err := w.next(time.Time{}); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	if n > transactions/4 { // 30 are seen
		t.Errorf("%v allocations for %d transactions of %d messages", n, transactions, len(f.msgs))
	}
}

// feed sends messages as a walsender does, without end, many at a time.
func feed(conn net.Conn, msgs [][]byte) {
	var burst []byte
	for len(burst) < 64<<10 {
		for _, msg := range msgs {
			burst = binary.BigEndian.AppendUint32(append(burst, 'd'), uint32(4+25+len(msg)))
			burst = append(append(append(burst, 'w'), make([]byte, 24)...), msg...)
		}
	}
	for {
		if _, err := conn.Write(burst); err != nil {
			return
		}
	}
}

// BenchmarkWire takes messages off a connection; an operation is one message.
func BenchmarkWire(b *testing.B) {
	msgs := benchMessages(0)
	server, client := net.Pipe()
	go feed(server, msgs) // ends when the pipe is closed
	defer client.Close()
	w := newWire(client)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.next(time.Time{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStreamed stores blocks of a transaction in progress, whose pieces are spilled; an operation is
// one row.
func BenchmarkStreamed(b *testing.B) {
	p := newPacker(openStream(b), "", func(change.LSN, int) {})
	start := []byte{byte(kindStreamStart), 0, 0, 0, 7, 1}
	rows := benchMessages(7)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if n%1000 == 0 { // a block
			if n > 0 {
				start[5] = 0
				if err := p.add([]byte{byte(kindStreamStop)}); err != nil {
					b.Fatal(err)
				}
			}
			if err := p.add(start); err != nil {
				b.Fatal(err)
			}
		}
		if err := p.add(rows[n%len(rows)]); err != nil {
			b.Fatal(err)
		}
	}
}
