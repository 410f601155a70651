package verify

import (
	"cmp"
	"slices"
)

// An entry is a row as one side has it, n times.
type entry struct {
	keyHash int64
	key     []*string // nil where the table has no key
	hash    int64
	n       int64
}

// compareKey orders entries as both servers do: by the key's hash, then its text.
func (e *entry) compareKey(o *entry) int {
	if c := cmp.Compare(e.keyHash, o.keyHash); c != 0 {
		return c
	}
	return slices.CompareFunc(e.key, o.key, func(a, b *string) int {
		switch {
		case a == nil && b == nil:
			return 0
		case a == nil:
			return 1 // PostgreSQL sorts NULL last
		case b == nil:
			return -1
		}
		return cmp.Compare(*a, *b)
	})
}

// findings are the differing rows of one table.
type findings struct {
	keyed                   bool
	limit                   int // of samples
	missing, extra, changed int64
	entries                 int64 // of which samples are the first
	samples                 []found
}

// found is one differing row.
type found struct {
	kind Change
	key  []*string
	hash [2]int64 // by side, where it exists there
	n    int64    // how often it is missing or extra

	standing bool // see Difference.Standing
}

// plainKey returns the key without pointers, nil where a part of it is NULL.
func (f *found) plainKey() []string {
	key := make([]string, len(f.key))
	for i, v := range f.key {
		if v == nil {
			return nil
		}
		key[i] = *v
	}
	return key
}

func (f *findings) total() int64 { return f.missing + f.extra + f.changed }

// merge compares two streams that are ordered by key. A key may come several times on either side.
func (f *findings) merge(src, dst <-chan entry) {
	a, b := newGroups(src), newGroups(dst)
	for a.ok || b.ok {
		switch {
		case !b.ok:
			f.compare(a.take(), nil)
		case !a.ok:
			f.compare(nil, b.take())
		default:
			c := a.next.compareKey(&b.next)
			var x, y []entry
			if c <= 0 {
				x = a.take()
			}
			if c >= 0 {
				y = b.take()
			}
			f.compare(x, y)
		}
	}
}

// compare compares the rows that both sides have of one key. Equal ones cancel each other out; of
// the rest, as many as there are on both sides have changed.
func (f *findings) compare(src, dst []entry) {
	for i := range src {
		for j := range dst {
			if src[i].hash == dst[j].hash {
				n := min(src[i].n, dst[j].n)
				src[i].n -= n
				dst[j].n -= n
			}
		}
	}
	src, dst = remaining(src), remaining(dst)
	for f.keyed && len(src) > 0 && len(dst) > 0 {
		f.changed++
		f.sample(found{kind: Changed, key: src[0].key, hash: [2]int64{src[0].hash, dst[0].hash}, n: 1})
		src[0].n--
		dst[0].n--
		src, dst = remaining(src), remaining(dst)
	}
	for _, e := range src {
		f.missing += e.n
		f.sample(found{kind: Missing, key: e.key, hash: [2]int64{source: e.hash}, n: e.n})
	}
	for _, e := range dst {
		f.extra += e.n
		f.sample(found{kind: Extra, key: e.key, hash: [2]int64{target: e.hash}, n: e.n})
	}
}

func (f *findings) sample(s found) {
	f.entries++
	if len(f.samples) < f.limit {
		f.samples = append(f.samples, s)
	}
}

func remaining(list []entry) []entry {
	return slices.DeleteFunc(list, func(e entry) bool { return e.n == 0 })
}

// groups reads a stream one key at a time.
type groups struct {
	in   <-chan entry
	next entry
	ok   bool // next holds an entry
}

func newGroups(in <-chan entry) *groups {
	g := &groups{in: in}
	g.next, g.ok = <-in
	return g
}

// take returns all entries with the next key.
func (g *groups) take() []entry {
	list := []entry{g.next}
	for {
		g.next, g.ok = <-g.in
		if !g.ok || g.next.compareKey(&list[0]) != 0 {
			return list
		}
		list = append(list, g.next)
	}
}
