package apply

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
)

// sort brings the rows of a statement into the order of their keys, about: rows that lie together in
// the index, and often in the table, are then visited together, which saves the destination a quarter
// of the work of an update (docs/performance.md). The order is the index's for whole numbers and for
// what is compared byte by byte; it need not be.
//
// Rows of one statement are different rows, so any order gives the same result, or is refused.
func (t *table) sort(rows []imagePair) {
	if len(t.key) == 0 || t.whole {
		return
	}
	type ranked struct {
		rank uint64
		pair imagePair
	}
	order := make([]ranked, len(rows))
	sorted := true
	for i, r := range rows {
		order[i] = ranked{t.rank(&r), r}
		sorted = sorted && (i == 0 || order[i-1].rank < order[i].rank)
	}
	if sorted {
		return
	}
	slices.SortFunc(order, func(a, b ranked) int {
		if c := cmp.Compare(a.rank, b.rank); c != 0 {
			return c
		}
		for i := range t.key {
			if c := bytes.Compare(t.keyValue(&a.pair, i), t.keyValue(&b.pair, i)); c != 0 {
				return c
			}
		}
		return 0
	})
	for i := range order {
		rows[i] = order[i].pair
	}
}

// keyValue returns a key column of the row as it is found, or, of a new one, as it will be.
func (t *table) keyValue(r *imagePair, i int) []byte {
	if r.key != nil {
		return r.key[i].Data
	}
	return r.row[t.key[i].param].Data
}

// rank orders rows by the first column of their key as well as eight bytes can: a whole number by its
// value, anything else by its first bytes.
func (t *table) rank(r *imagePair) uint64 {
	v := t.keyValue(r, 0)
	if n, ok := wholeNumber(v); ok {
		return uint64(n) ^ 1<<63
	}
	var first [8]byte
	copy(first[:], v)
	return binary.BigEndian.Uint64(first[:])
}

// wholeNumber reads a number of up to 18 digits.
func wholeNumber(v []byte) (n int64, ok bool) {
	digits := v
	negative := len(v) > 0 && v[0] == '-'
	if negative {
		digits = v[1:]
	}
	if len(digits) == 0 || len(digits) > 18 {
		return 0, false
	}
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = 10*n + int64(d-'0')
	}
	if negative {
		n = -n
	}
	return n, true
}
