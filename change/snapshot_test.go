package change

import (
	"math/rand/v2"
	"testing"
)

func TestSnapshotSees(t *testing.T) {
	t.Parallel()
	const epoch = 1 << 32
	for _, c := range []struct {
		snapshot string
		xid      uint32
		want     bool
	}{
		{"10:20:12,15", 9, true},
		{"10:20:12,15", 10, true},
		{"10:20:12,15", 12, false},
		{"10:20:12,15", 13, true},
		{"10:20:12,15", 15, false},
		{"10:20:12,15", 19, true},
		{"10:20:12,15", 20, false},
		{"10:20:12,15", 2, true},           // frozen
		{"10:20:12,15", 4294967295, false}, // there is no id before the first epoch
		{"838:837:", 837, true},            // of a slot, after 837 was rolled back
		{"838:837:", 838, false},
		// The epoch begins between xmin and xmax.
		{"4294967290:4294967310:4294967295,4294967300", 4294967289, true},
		{"4294967290:4294967310:4294967295,4294967300", 4294967294, true},
		{"4294967290:4294967310:4294967295,4294967300", 4294967295, false},
		{"4294967290:4294967310:4294967295,4294967300", 3, true},
		{"4294967290:4294967310:4294967295,4294967300", 4, false},
		{"4294967290:4294967310:4294967295,4294967300", 14, false},
		// Just after an epoch began, and just before it ends.
		{"4294967305:4294967305:", 4294967200, true},
		{"4294967305:4294967305:", 9, false},
		{"8589934580:8589934580:", 4294967283, true},
		{"8589934580:8589934580:", 5, false},
	} {
		s, err := ParseSnapshot(c.snapshot)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Sees(c.xid); got != c.want {
			t.Errorf("%s sees %d: %t", c.snapshot, c.xid, got)
		}
	}
	if (Snapshot{}).Sees(5) || (Snapshot{}).Sees(1) {
		t.Error("the zero snapshot sees something")
	}
	// An id within reach is found whatever the epoch.
	r := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		xmax := 3*epoch + r.Uint64N(epoch)
		s := Snapshot{xmin: xmax - 5, xmax: xmax}
		back, ahead := r.Uint64N(1<<31-1)+1, r.Uint64N(1<<31-1)
		if x := uint32(xmax - back); !s.Sees(x) {
			t.Fatalf("%s does not see %d, which is %d before xmax", s, x, back)
		}
		if x := uint32(xmax + ahead); x >= firstNormalXID && s.Sees(x) {
			t.Fatalf("%s sees %d, which is %d behind xmax", s, x, ahead)
		}
	}
}

func TestParseSnapshotRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "1", "1:2", "a:2:", "2:1:1", "2:0:", "0:5:", "1:5:6", "3:5:2", "1:5:3,3", "1:5:3,2", "1:5:,", "1:5::", "-1:5:", "1:5: 3"} {
		if s, err := ParseSnapshot(text); err == nil {
			t.Errorf("%q is read as %s", text, s)
		}
	}
}

func FuzzParseSnapshot(f *testing.F) {
	for _, s := range []string{"10:20:12,15", "1:1:", "4294967290:4294967310:4294967295", "x", "1:5:3,2"} {
		f.Add(s, uint32(12))
	}
	f.Fuzz(func(t *testing.T, text string, xid uint32) {
		s, err := ParseSnapshot(text)
		if err != nil {
			return
		}
		again, err := ParseSnapshot(s.String())
		if err != nil || again.String() != s.String() || again.Sees(xid) != s.Sees(xid) {
			t.Fatalf("%q: %q: %v", text, s, err)
		}
		if at := s.Xmax(); at >= firstNormalXID && uint32(at) >= firstNormalXID && s.Sees(uint32(at)) {
			t.Fatalf("%q sees its xmax", s)
		}
	})
}
