package eventstore

import (
	"fmt"
	"testing"

	"github.com/ficus-migrate/ficus/change"
)

// TestOrderAcrossBoundaries: positions that are longer in digits, in bytes or in halves come later.
// A store that orders its keys as text stalls when 0/FFFFFFF becomes 0/10000000.
func TestOrderAcrossBoundaries(t *testing.T) {
	t.Parallel()
	st := stream(t, open(t, nil))
	ends := []change.LSN{
		0x9, 0x10, 0xFF, 0x100, 0x0FFF_FFFF, 0x1000_0000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF,
		0x1_0000_0000, 0x9_FFFF_FFFF, 0xA_0000_0000, 0xFF_FFFF_FFFF, 0x100_0000_0000, 0x7FFF_FFFF_FFFF_FFFF, 0x8000_0000_0000_0000,
	}
	for i, end := range ends {
		b := st.NewBatch()
		b.Append(end, []byte(fmt.Sprint(i)))
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		if st.Head() != end {
			t.Fatalf("head %s after %s", st.Head(), end)
		}
	}
	for from := range ends {
		reader := st.Read(ends[from])
		for i := from + 1; i < len(ends); i++ {
			c, err := reader.Next(t.Context())
			if err != nil || c.End != ends[i] || string(c.Data) != fmt.Sprint(i) {
				t.Fatalf("after %s: got %s (%q, %v), want %s", ends[from], c.End, c.Data, err, ends[i])
			}
		}
		if err := reader.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
