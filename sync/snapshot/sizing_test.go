package snapshot

import "testing"

func TestSize(t *testing.T) {
	t.Parallel()
	const mb, gb = 1 << 20, 1 << 30
	for _, tt := range []struct {
		name   string
		cores  int
		tables []int64
		want   Sizing
	}{
		{"nothing to copy", 2, nil, Sizing{2, gb}},
		{"one core", 1, []int64{gb}, Sizing{2, gb}},
		{"two cores do not cut a table that one chunk holds", 2, []int64{700 * mb}, Sizing{2, gb}},
		{"one large table, for each worker twice", 4, []int64{6 * gb}, Sizing{4, 6 * gb / 8}},
		{"a very large table", 4, []int64{900 * gb}, Sizing{4, gb}},
		{"many cores", 16, []int64{gb, gb, gb}, Sizing{16, leastChunk}},
		{"many tables", 4, []int64{gb, gb, gb, gb, gb, gb, gb, gb}, Sizing{4, gb}},
	} {
		if got := Size(tt.cores, tt.tables); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
	if got := (Sizing{Workers: 7}).Or(Sizing{2, 3}); got != (Sizing{7, 3}) {
		t.Errorf("what is given stays: got %+v", got)
	}
}
