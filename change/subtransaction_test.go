package change_test

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/change"
)

// A decoder passes over what was rolled back, descriptions of relations too, and forgets about it with
// the next transaction.
//
// It fails when skips leaves out a kind, when Begin does not reset, and when marks are not looked up.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	begin := append([]byte{'B'}, make([]byte, 20)...)
	commit := append([]byte{'C'}, make([]byte, 25)...)
	wide := []byte(strings.Replace(relation, "v\x00", "w\x00", 1))
	insert := []byte("I\x00\x00\x00\x01N" + row)
	var chunk []byte
	add := func(msgs ...[]byte) {
		for _, m := range msgs {
			chunk = change.AppendFrame(chunk, m)
		}
	}
	add(begin)
	chunk = change.AppendRolledBack(chunk, []uint32{7, 9, 4_000_000_000})
	add([]byte("O\x00\x00\x00\x00\x00\x00\x00\x00home\x00"), []byte(relation))
	chunk = change.AppendEnter(chunk, 8)
	add(insert)
	chunk = change.AppendEnter(chunk, 9)
	add(wide, []byte("Y\x00\x00\x00\x01what\x00ever\x00"), insert, []byte("D\x00\x00\x00\x01K"+row), []byte("U\x00\x00\x00\x01N"+row),
		[]byte("T\x00\x00\x00\x01\x00\x00\x00\x00\x01"), []byte("M\x01\x00\x00\x00\x00\x00\x00\x00\x01p\x00\x00\x00\x00\x00"))
	chunk = change.AppendEnter(chunk, 4_000_000_000)
	add(insert)
	chunk = change.AppendEnter(chunk, 10)
	add(insert)
	chunk = change.AppendEnter(chunk, 7)
	add(insert, commit, begin)
	chunk = change.AppendEnter(chunk, 7) // another transaction's
	add(insert, commit)

	var got strings.Builder
	dec := change.NewDecoder()
	for len(chunk) > 0 {
		var msg []byte
		var err error
		if msg, chunk, err = change.NextFrame(chunk); err != nil {
			t.Fatal(err)
		}
		m, err := dec.Decode(msg)
		if err != nil {
			t.Fatalf("%q: %v", msg, err)
		}
		switch m.Kind { //nolint:exhaustive // the others are words
		case change.KindInsert:
			got.WriteString("insert into " + m.Row.Rel.Columns[1].Name)
		case change.KindSubtransaction:
			got.WriteString("-")
		default:
			got.WriteString(m.Kind.String())
		}
		got.WriteString(" ")
	}
	want := "begin - origin relation - insert into v - - - - - - - - - - - insert into v - - commit begin - insert into v commit "
	if got.String() != want {
		t.Errorf("decoded\n%s, want\n%s", got.String(), want)
	}
}

func TestMarksRefused(t *testing.T) {
	t.Parallel()
	xid := binary.BigEndian.AppendUint32
	for what, msg := range map[string][]byte{
		"without a mark":    []byte("/"),
		"unknown mark":      []byte("/?"),
		"enter, cut short":  []byte("/>\x00\x00\x00"),
		"enter, too long":   []byte("/>\x00\x00\x00\x00\x00"),
		"list, cut short":   []byte("/-\x00\x00\x00\x01\x00"),
		"list out of order": xid(xid([]byte("/-"), 2), 1),
		"named twice":       xid(xid([]byte("/-"), 2), 2),
	} {
		if m, err := change.NewDecoder().Decode(msg); !errors.Is(err, change.ErrMalformed) {
			t.Errorf("%s: got %+v, %v; want ErrMalformed", what, m, err)
		}
	}
}
