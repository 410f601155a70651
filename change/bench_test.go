package change_test

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/ficus-migrate/ficus/change"
)

// A pgbench is the messages of transactions as pgbench runs them (TPC-B): three updates by key and an
// insert.
type pgbench struct {
	relations [][]byte
	begin     []byte
	update    []byte // of pgbench_accounts, which most bytes are of
	updateOld []byte // the same under REPLICA IDENTITY FULL
	insert    []byte
	delete    []byte
	commit    []byte
}

func newPgbench() pgbench {
	account := []string{"4711", "1", "-2718", fmt.Sprintf("%-84s", "")}
	return pgbench{
		relations: [][]byte{
			relationMessage(1, "pgbench_accounts", "aid", "bid", "abalance", "filler"),
			relationMessage(2, "pgbench_history", "tid", "bid", "aid", "delta", "mtime", "filler"),
		},
		begin:     binary.BigEndian.AppendUint32(append([]byte("B"), make([]byte, 16)...), 7),
		update:    tupleMessage('U', 1, "N", account),
		updateOld: append(tupleMessage('U', 1, "O", account), tupleMessage(0, 0, "N", account)[5:]...),
		insert:    tupleMessage('I', 2, "N", []string{"3", "1", "4711", "-42", "2026-11-21 13:37:06.123456", ""}),
		delete:    tupleMessage('D', 1, "K", []string{"4711", "", "", ""}),
		commit:    append([]byte("C"), make([]byte, 25)...),
	}
}

func relationMessage(id uint32, name string, columns ...string) []byte {
	msg := binary.BigEndian.AppendUint32([]byte("R"), id)
	msg = append(msg, "public\x00"+name+"\x00d"...)
	msg = binary.BigEndian.AppendUint16(msg, uint16(len(columns)))
	for i, c := range columns {
		msg = append(append(msg, map[bool]byte{true: 1}[i == 0]), c+"\x00"...)
		msg = append(msg, 0, 0, 0, 25, 255, 255, 255, 255)
	}
	return msg
}

// tupleMessage is a message with one row image; empty values are NULL.
func tupleMessage(kind byte, relation uint32, tag string, values []string) []byte {
	msg := append(binary.BigEndian.AppendUint32([]byte{kind}, relation), tag...)
	msg = binary.BigEndian.AppendUint16(msg, uint16(len(values)))
	for _, v := range values {
		if v == "" {
			msg = append(msg, 'n')
			continue
		}
		msg = append(binary.BigEndian.AppendUint32(append(msg, 't'), uint32(len(v))), v...)
	}
	return msg
}

func BenchmarkDecode(b *testing.B) {
	p := newPgbench()
	for _, c := range []struct {
		name string
		msg  []byte
	}{
		{"begin", p.begin}, {"commit", p.commit}, {"insert", p.insert}, {"update", p.update}, {"update with old row", p.updateOld}, {"delete", p.delete},
	} {
		b.Run(c.name, func(b *testing.B) {
			dec := change.NewDecoder()
			for _, r := range p.relations {
				if _, err := dec.Decode(r); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			b.SetBytes(int64(len(c.msg)))
			for b.Loop() {
				if _, err := dec.Decode(c.msg); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkWalk goes through a chunk of transactions; an operation is one message.
func BenchmarkWalk(b *testing.B) {
	p := newPgbench()
	var chunk []byte
	messages := 0
	for len(chunk) < 256<<10 {
		for _, msg := range [][]byte{p.begin, p.update, p.update, p.update, p.insert, p.commit} {
			chunk = change.AppendFrame(chunk, msg)
			messages++
		}
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(chunk) / messages))
	rest := chunk
	for b.Loop() {
		if len(rest) == 0 {
			rest = chunk
		}
		var err error
		if _, rest, err = change.NextFrame(rest); err != nil {
			b.Fatal(err)
		}
	}
}
