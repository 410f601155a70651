package eventstore

import (
	"cmp"
	"slices"

	"github.com/ficus-migrate/ficus/change"
)

// recordOverhead is about what a record costs in memory besides its chunk.
const recordOverhead = 64

// A record is what stands under one end in a stream.
type record struct {
	end   change.LSN
	chunk []byte   // never changed
	large spillRef // instead of chunk when its count is not 0
}

// A spillRef says where the chunks of a large transaction are.
type spillRef struct {
	id    uint64
	count uint32
}

// recent are the newest records of a stream, so that readers who keep up need not ask the database:
//
//	stream:  ... | c | c | c | c | c | c |
//	                         ^after      ^head
//	                         |  records  |
//
// They are what the database holds as well; limit bounds them.
type recent struct {
	limit   int
	after   change.LSN // every record that ends after this is in records
	records []record
	bytes   int
}

// add takes records that follow those before.
func (r *recent) add(records []record) {
	for _, rec := range records {
		r.records = append(r.records, rec)
		r.bytes += rec.size()
	}
	for r.bytes > r.limit {
		r.pop()
	}
}

// forget drops what ends at or before upTo.
func (r *recent) forget(upTo change.LSN) {
	for len(r.records) > 0 && r.records[0].end <= upTo {
		r.pop()
	}
}

// pop drops the oldest record.
func (r *recent) pop() {
	r.after = r.records[0].end
	r.bytes -= r.records[0].size()
	r.records[0] = record{} // lest the array keeps the chunk
	r.records = r.records[1:]
}

// next returns the first record that ends after pos; ok is false when it may not be here.
func (r *recent) next(pos change.LSN) (rec record, ok bool) {
	if pos < r.after {
		return record{}, false
	}
	i, found := slices.BinarySearchFunc(r.records, pos, func(rec record, pos change.LSN) int { return cmp.Compare(rec.end, pos) })
	if found {
		i++
	}
	if i == len(r.records) {
		return record{}, false
	}
	return r.records[i], true
}

func (rec *record) size() int { return len(rec.chunk) + recordOverhead }
