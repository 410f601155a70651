package apply

import (
	"bytes"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/change"
)

// keyTextBytes bounds each column of a key in an error.
const keyTextBytes = 100

// An op is one change of one row of a mapped table, or the truncation of some tables.
type op struct {
	table *table
	kind  opKind
	// key finds the row as it was: one value per key part, or the whole image of a table without
	// key. nil for an insert.
	key []change.Value
	row []change.Value // the new image, one value per param; nil for a delete

	truncate *truncation // for opTruncate, instead of all but kind
}

type truncation struct {
	tables  []*table
	restart bool // identities start again
	half    bool // the copies of other tables in it hold it already
}

type opKind uint8

const (
	opInsert opKind = iota + 1
	opUpdate
	opDelete
	opTruncate
)

func (k opKind) String() string {
	switch k {
	case opInsert:
		return "insert"
	case opUpdate:
		return "update"
	case opDelete:
		return "delete"
	case opTruncate:
		return "truncate"
	}
	return "invalid"
}

// A txn is one source transaction in a batch.
type txn struct {
	// end identifies it. Of a transaction that is still open in its batch it is only the least
	// that it can be: the position after the beginning of the commit record.
	end     change.LSN
	at      time.Time // of the commit at the source
	ops     int       // how many of the batch's ops are its own
	signals []string
	epoch   int64 // that it wrote to ficus.ownership; 0 for none
}

// A batch is whole transactions, or a part of a large one.
type batch struct {
	txns []txn
	ops  []op // of all transactions, in source order
	size int  // bytes that it keeps alive, about

	part bool // of a large transaction, the only one in txns
	more bool // part: not the last one

	err error // instead of all else: nothing can come after the batches before

	slab []change.Value // where images are cut from
}

// end returns where the source stands after the batch.
func (b *batch) end() change.LSN { return b.txns[len(b.txns)-1].end }

// weight is about what the batch takes in memory.
func (b *batch) weight() int { return b.size + len(b.ops)*rowOverhead }

// image makes room for n values that live as long as the batch.
func (b *batch) image(n int) []change.Value {
	if cap(b.slab)-len(b.slab) < n {
		b.slab = make([]change.Value, 0, max(n, 4096))
	}
	start := len(b.slab)
	b.slab = b.slab[:start+n]
	return b.slab[start : start+n : start+n]
}

// row copies the images of a change into the batch. The bytes of the values are not copied.
func (b *batch) row(t *table, r *change.Row) op {
	o := op{table: t}
	if r.New != nil {
		o.row = b.image(len(t.params))
		for i, p := range t.params {
			v := r.New[p.index]
			if v.Kind == change.Unchanged && r.Old != nil && (!r.OldIsKey || r.Rel.Columns[p.index].Identity) {
				v = r.Old[p.index] // the image before the change has what the new one leaves out
			}
			o.row[i] = v
		}
	}
	before := r.Old
	switch r.Op {
	case change.Insert:
		o.kind = opInsert
		return o
	case change.Update:
		o.kind = opUpdate
		if before == nil {
			o.key = b.image(len(t.key))
			t.keyOf(o.key, o.row)
			return o
		}
	case change.Delete:
		o.kind = opDelete
	}
	if t.whole {
		o.key = b.image(len(t.params))
		for i, p := range t.params {
			o.key[i] = before[p.index]
		}
		return o
	}
	o.key = b.image(len(t.key))
	for i, k := range t.key {
		o.key[i] = before[t.params[k.param].index]
	}
	return o
}

// keyOf copies the key columns of a row image.
func (t *table) keyOf(key, row []change.Value) {
	for i, k := range t.key {
		key[i] = row[k.param]
	}
}

// moves reports whether the key of the row is another one than key.
func (t *table) moves(key, row []change.Value) bool {
	for i, k := range t.key {
		if v := row[k.param]; v.Kind != change.Unchanged && !sameValue(v, key[i]) {
			return true
		}
	}
	return false
}

func sameValue(a, b change.Value) bool { return a.Kind == b.Kind && bytes.Equal(a.Data, b.Data) }

// endOf returns the end of the transaction that an op of the batch belongs to.
func (b *batch) endOf(o *op) change.LSN {
	first := 0
	for _, t := range b.txns {
		for i := first; i < first+t.ops; i++ {
			if &b.ops[i] == o {
				return t.end
			}
		}
		first += t.ops
	}
	return 0
}

// keyText returns the key of the row that an op is about, as people read it.
func (t *table) keyText(o *op) string {
	if t.whole || o.kind == opTruncate {
		return ""
	}
	key := o.key
	if key == nil {
		key = make([]change.Value, len(t.key))
		t.keyOf(key, o.row)
	}
	parts := make([]string, len(key))
	for i, v := range key {
		parts[i] = t.key[i].name + "=" + string(v.Data[:min(len(v.Data), keyTextBytes)])
	}
	return strings.Join(parts, ", ")
}

// cut splits off the first n transactions.
func (b *batch) cut(n int) (head, tail *batch) {
	if n == len(b.txns) {
		return b, nil
	}
	ops := 0
	for _, t := range b.txns[:n] {
		ops += t.ops
	}
	head, tail = &batch{}, &batch{}
	*head, *tail = *b, *b
	head.txns, tail.txns = b.txns[:n], b.txns[n:]
	head.ops, tail.ops = b.ops[:ops], b.ops[ops:]
	return head, tail
}
