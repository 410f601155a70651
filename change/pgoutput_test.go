package change_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/change"
)

var update = flag.Bool("update", false, "write the golden files anew")

// stream reads messages written one per line in hexadecimal, with comments and spaces between.
func stream(tb testing.TB, file string) [][]byte {
	tb.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	var msgs [][]byte
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if line = strings.Join(strings.Fields(line), ""); line == "" {
			continue
		}
		msg, err := hex.DecodeString(line)
		if err != nil {
			tb.Fatalf("%s: %v", file, err)
		}
		msgs = append(msgs, msg)
	}
	return msgs
}

// TestDecoderGolden decodes streams that PostgreSQL's pgoutput sent and compares with what was in
// them. testdata/*.hex holds a stream, *.txt the decoded form; see TestRecord for where they come from.
func TestDecoderGolden(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.hex")
	if err != nil || len(files) == 0 {
		t.Fatalf("no streams: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			var got strings.Builder
			dec := change.NewDecoder()
			for _, msg := range stream(t, file) {
				m, err := dec.Decode(msg)
				if err != nil {
					t.Fatalf("%x: %v", msg, err)
				}
				got.WriteString(render(m))
			}
			golden := strings.TrimSuffix(file, ".hex") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
		})
	}
}

// render writes a message as a line of text, a relation with a line for each column.
func render(m change.Message) string {
	const clock = "2006-01-02 15:04:05.000000"
	switch m.Kind {
	case change.KindBegin:
		return fmt.Sprintf("begin commit=%s xid=%d at=%s\n", m.Begin.CommitLSN, m.Begin.XID, m.Begin.CommitTime.Format(clock))
	case change.KindCommit:
		return fmt.Sprintf("commit commit=%s end=%s at=%s\n", m.Commit.CommitLSN, m.Commit.EndLSN, m.Commit.CommitTime.Format(clock))
	case change.KindOrigin:
		return fmt.Sprintf("origin %s\n", m.Origin)
	case change.KindType:
		return "type\n"
	case change.KindRelation:
		return renderRelation(m.Relation)
	case change.KindInsert, change.KindUpdate, change.KindDelete:
		line := fmt.Sprintf("%s %s.%s", m.Row.Op, m.Row.Rel.Namespace, m.Row.Rel.Name)
		if m.Row.Old != nil {
			word := "old"
			if m.Row.OldIsKey {
				word = "key"
			}
			line += " " + word + renderTuple(m.Row.Old)
		}
		if m.Row.New != nil {
			line += " new" + renderTuple(m.Row.New)
		}
		return line + "\n"
	case change.KindTruncate:
		line := "truncate"
		for _, rel := range m.Truncate.Relations {
			line += " " + rel.Namespace + "." + rel.Name
		}
		return fmt.Sprintf("%s cascade=%t restart=%t\n", line, m.Truncate.Cascade, m.Truncate.RestartIdentity)
	case change.KindMessage:
		return fmt.Sprintf("message %q transactional=%t %q\n", m.Logical.Prefix, m.Logical.Transactional, m.Logical.Content)
	case change.KindSubtransaction: // a mark, or rolled back
	}
	return m.Kind.String() + "\n"
}

func renderRelation(rel *change.Relation) string {
	out := fmt.Sprintf("relation %s.%s identity=%c\n", rel.Namespace, rel.Name, rel.ReplicaIdentity)
	for _, col := range rel.Columns {
		out += fmt.Sprintf("  %s type=%d mod=%d identity=%t\n", col.Name, col.TypeOID, col.TypeMod, col.Identity)
	}
	return out
}

func renderTuple(tuple change.Tuple) string {
	var parts []string
	for _, v := range tuple {
		switch v.Kind {
		case change.Null, change.Unchanged:
			parts = append(parts, v.Kind.String())
		case change.Text:
			parts = append(parts, fmt.Sprintf("%.24q", v.Data))
		case change.Binary:
			parts = append(parts, fmt.Sprintf("%x", v.Data[:min(24, len(v.Data))]))
		}
	}
	return "(" + strings.Join(parts, ", ") + ")"
}

// Messages for the cases below, in the notation of the manual: 'R' id namespace name identity n columns.
const (
	relation = "\x52\x00\x00\x00\x01public\x00t\x00d\x00\x02" +
		"\x01id\x00\x00\x00\x00\x17\xff\xff\xff\xff" +
		"\x00v\x00\x00\x00\x00\x19\xff\xff\xff\xff"
	row = "\x00\x02t\x00\x00\x00\x011n"
)

func TestDecodeMalformed(t *testing.T) {
	t.Parallel()
	for name, msg := range map[string]string{
		"empty":                        "",
		"unknown kind":                 "Z",
		"stream message of protocol 2": "S\x00\x00\x00\x01\x01",
		"begin cut short":              "B\x00\x00\x00\x00\x00\x00\x00\x01",
		"begin with bytes left over":   "B" + strings.Repeat("\x00", 21),
		"commit cut short":             "C\x00",
		"origin without an end":        "O\x00\x00\x00\x00\x00\x00\x00\x00name",
		"relation cut in a name":       relation[:8],
		"relation cut in a column":     relation[:len(relation)-1],
		"relation with bytes left":     relation + "x",
		"insert of unknown relation":   "I\x00\x00\x00\x09N" + row,
		"insert without tag":           "I\x00\x00\x00\x01",
		"insert with an old row":       "I\x00\x00\x00\x01O" + row,
		"insert of too few columns":    "I\x00\x00\x00\x01N\x00\x01n",
		"insert of too many columns":   "I\x00\x00\x00\x01N\x00\x03nnn",
		"value of unknown kind":        "I\x00\x00\x00\x01N\x00\x02nx",
		"value longer than message":    "I\x00\x00\x00\x01N\x00\x02nt\x00\x00\x00\x09abc",
		"value of negative length":     "I\x00\x00\x00\x01N\x00\x02nt\xff\xff\xff\xffabc",
		"update without a new row":     "U\x00\x00\x00\x01K" + row,
		"update with an unknown tag":   "U\x00\x00\x00\x01X" + row,
		"delete without an old row":    "D\x00\x00\x00\x01N" + row,
		"truncate of more than it has": "T\xff\xff\xff\xff\x00\x00\x00\x00\x01",
		"message cut short":            "M\x00\x00\x00\x00\x00\x00\x00\x00\x01p\x00\x00\x00\x00\x09abc",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dec := change.NewDecoder()
			if _, err := dec.Decode([]byte(relation)); err != nil {
				t.Fatal(err)
			}
			if m, err := dec.Decode([]byte(msg)); !errors.Is(err, change.ErrMalformed) {
				t.Errorf("got %+v, %v; want %v", m, err, change.ErrMalformed)
			}
			// A bad message does not harm what follows.
			if _, err := dec.Decode([]byte("I\x00\x00\x00\x01N" + row)); err != nil {
				t.Errorf("the next message: %v", err)
			}
		})
	}
}

// A relation that a caller holds stays as it was when the table changes.
func TestRelationsAreNotReused(t *testing.T) {
	t.Parallel()
	dec := change.NewDecoder()
	before, err := dec.Decode([]byte(relation))
	if err != nil {
		t.Fatal(err)
	}
	held := before.Relation
	if _, err := dec.Decode([]byte(strings.Replace(relation, "v\x00", "w\x00", 1))); err != nil {
		t.Fatal(err)
	}
	if held.Columns[1].Name != "v" {
		t.Errorf("column of the held relation became %q", held.Columns[1].Name)
	}
	m, err := dec.Decode([]byte("I\x00\x00\x00\x01N" + row))
	if err != nil || m.Row.Rel.Columns[1].Name != "w" {
		t.Errorf("a row after the change has relation %+v, %v", m.Row.Rel, err)
	}
}

// An empty text is not NULL, and NULL is not an empty text.
func TestEmptyIsNotNull(t *testing.T) {
	t.Parallel()
	dec := change.NewDecoder()
	if _, err := dec.Decode([]byte(relation)); err != nil {
		t.Fatal(err)
	}
	m, err := dec.Decode([]byte("I\x00\x00\x00\x01N\x00\x02nt\x00\x00\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	want := change.Tuple{{Kind: change.Null}, {Kind: change.Text, Data: []byte{}}}
	if diff := cmp.Diff(want, m.Row.New); diff != "" {
		t.Errorf("tuple (-want +got):\n%s", diff)
	}
}

// Steady decoding makes no garbage: the tuples are reused.
func TestDecodeDoesNotAllocate(t *testing.T) {
	dec := change.NewDecoder()
	if _, err := dec.Decode([]byte(relation)); err != nil {
		t.Fatal(err)
	}
	msg := []byte("U\x00\x00\x00\x01K" + row + "N" + row)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := dec.Decode(msg); err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations for an update", n)
	}
}
