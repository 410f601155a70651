package snapshot

import "testing"

func TestSize(t *testing.T) {
	t.Parallel()
	const mb, gb = 1 << 20, 1 << 30
	for _, tt := range []struct {
		name   string
		given  Sizing
		cores  int
		tables []int64
		want   Sizing
	}{
		{"nothing to copy", Sizing{}, 2, nil, Sizing{2, gb}},
		{"one core", Sizing{}, 1, []int64{gb}, Sizing{2, gb}},
		{"two cores do not cut a table that one chunk holds", Sizing{}, 2, []int64{700 * mb}, Sizing{2, gb}},
		{"one large table, for each worker twice", Sizing{}, 4, []int64{6 * gb}, Sizing{4, 6 * gb / 8}},
		{"a very large table", Sizing{}, 4, []int64{900 * gb}, Sizing{4, gb}},
		{"many cores", Sizing{}, 16, []int64{gb, gb, gb}, Sizing{16, leastChunk}},
		{"many tables", Sizing{}, 4, []int64{gb, gb, gb, gb, gb, gb, gb, gb}, Sizing{4, gb}},
		{"what is given stays", Sizing{7, 3}, 2, []int64{gb}, Sizing{7, 3}},
		{"more workers than cores are meant to have work", Sizing{Workers: 4}, 2, []int64{gb}, Sizing{4, leastChunk}},
		{"one worker needs no pieces", Sizing{Workers: 1}, 16, []int64{gb}, Sizing{1, gb}},
	} {
		if got := tt.given.Size(tt.cores, tt.tables); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}
