package change_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/ficus-migrate/ficus/change"
)

func TestFramesComeBack(t *testing.T) {
	t.Parallel()
	msgs := [][]byte{[]byte("B"), {}, bytes.Repeat([]byte{0}, 70_000), []byte("C")}
	var chunk []byte
	for _, msg := range msgs {
		chunk = change.AppendFrame(chunk, msg)
	}
	for i, want := range msgs {
		msg, rest, err := change.NextFrame(chunk)
		if err != nil || !bytes.Equal(msg, want) {
			t.Fatalf("frame %d: %d bytes, %v; want %d bytes", i, len(msg), err, len(want))
		}
		if cap(msg) != len(msg) {
			t.Errorf("frame %d: appending to it would write over the next one", i)
		}
		chunk = rest
	}
	if len(chunk) != 0 {
		t.Errorf("%d bytes left", len(chunk))
	}
}

func TestNextFrameRefuses(t *testing.T) {
	t.Parallel()
	for name, chunk := range map[string][]byte{
		"empty":           {},
		"half a length":   {0, 0, 0},
		"cut short":       {0, 0, 0, 2, 'B'},
		"length past 2GB": {0xff, 0xff, 0xff, 0xff, 'B'},
	} {
		if msg, _, err := change.NextFrame(chunk); !errors.Is(err, change.ErrFrame) {
			t.Errorf("%s: got %q, %v; want %v", name, msg, err, change.ErrFrame)
		}
	}
}
