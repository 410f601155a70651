package snapshot

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/manifest"
	"github.com/ficus-migrate/ficus/transform"
)

// leastFrozen is how large a chunk is that is worth freezing: for that the table gets a new file.
const leastFrozen = 128 << 10

// A table is one mapping on its way. Workers count into it, the reporter reads.
type table struct {
	m          *transform.Mapping
	format     string
	plain      bool // the target is an ordinary table
	referenced bool // see target
	filled     bool // see target
	refresh    bool // TRUNCATE again together with COPY FREEZE: one chunk into a plain table
	src        *source
	kept       *manifest.Table // what an interrupted copy left and what stays; nil for nothing
	run        int             // see manifest.Table
	rows       atomic.Int64
	bytes      atomic.Int64
	left       atomic.Int64 // chunks not yet copied
}

// A chunk is a part of a table that one COPY moves.
type chunk struct {
	table *table
	bytes int64         // about
	part  manifest.Part // its place; rows and bytes are known when it is copied
	out   string        // COPY ... TO STDOUT at the source
}

type planLimits struct {
	chunkBytes int64
	split      bool // by ranges of ctid
	versions   Versions
}

// newTable decides how a table goes.
func newTable(m *transform.Mapping, src *source, dst *target, versions Versions) *table {
	t := &table{m: m, plain: dst.kind == "r", referenced: dst.referenced, filled: dst.filled, src: src}
	t.format, _ = Format(m, dst.columns, versions)
	return t
}

// plan cuts what is not kept of a table into chunks. Together with the finished parts they read
// every row of the snapshot once, even when the table has grown or shrunk since it was measured: the
// first has no lower bound, the last no upper one.
func (t *table) plan(limits planLimits) []chunk {
	pieces := t.src.pieces
	if t.src.whole || len(pieces) == 0 {
		whole := piece{name: t.m.Source.Name}
		for _, p := range pieces {
			whole.bytes += p.bytes
		}
		pieces = []piece{whole}
	}

	var chunks []chunk
	kept := 0
	for _, p := range pieces {
		var done []pages
		if t.kept != nil {
			done = finished(t.kept, p.name.String())
		}
		kept += len(done)
		for _, r := range cut(p, done, limits) {
			part := manifest.Part{Relation: p.name.String(), From: r.from, To: r.to}
			chunks = append(chunks, chunk{table: t, bytes: p.bytes, part: part, out: t.copyOut(p, r.conditions())})
		}
	}
	t.left.Store(int64(len(chunks)))
	t.refresh = len(chunks) == 1 && kept == 0 && t.plain && !t.referenced && chunks[0].bytes >= leastFrozen
	return chunks
}

// pages is a range of pages, [from, to); to may be manifest.Open.
type pages struct{ from, to int64 }

// conditions returns the SQL that is true for rows in these pages; nothing for all of them.
func (r pages) conditions() (sql []string) {
	if r.from > 0 {
		sql = append(sql, fmt.Sprintf("ctid >= '(%d,0)'::tid", r.from))
	}
	if r.to != manifest.Open {
		sql = append(sql, fmt.Sprintf("ctid < '(%d,0)'::tid", r.to))
	}
	return sql
}

// finished returns the pages of a relation that need not be read any more, in order.
func finished(t *manifest.Table, relation string) (done []pages) {
	for _, p := range t.Done {
		if p.Relation == relation {
			done = append(done, pages{p.From, p.To})
		}
	}
	return done
}

// cut divides what is not done of a piece into ranges of about equal size.
func cut(p piece, done []pages, limits planLimits) (ranges []pages) {
	per := int64(1) // pages in a range
	if n := min((p.bytes+limits.chunkBytes-1)/limits.chunkBytes, p.pages); n > 0 {
		per = (p.pages + n - 1) / n
	}
	for _, gap := range gaps(done) {
		end := gap.to
		if end == manifest.Open {
			end = max(p.pages, gap.from)
		}
		n := max(1, (end-gap.from+per-1)/per)
		if !limits.split || !p.plain {
			n = 1
		}
		bound := func(i int64) int64 { return gap.from + (end-gap.from)*i/n }
		for i := range n {
			r := pages{bound(i), bound(i + 1)}
			if i == n-1 {
				r.to = gap.to
			}
			ranges = append(ranges, r)
		}
	}
	return ranges
}

// gaps returns the pages that are not in done, which is in order.
func gaps(done []pages) (open []pages) {
	at := int64(0)
	for _, d := range done {
		if d.from > at {
			open = append(open, pages{at, d.from})
		}
		if d.to == manifest.Open {
			return open
		}
		at = d.to
	}
	return append(open, pages{at, manifest.Open})
}

// copyOut returns the statement that reads a piece, or the part of it that meets the conditions.
func (t *table) copyOut(p piece, conditions []string) string {
	var what string
	switch {
	case p.plain && len(conditions) == 0 && !t.m.Computed(): // COPY of a table leaves out its children
		what = p.name.String()
		if len(t.m.Columns) > 0 {
			what += " (" + schema.QuoteIdents(t.sourceColumns()) + ")"
		}
	case p.name == t.m.Source.Name:
		what = "(" + t.m.Query(conditions...) + ")"
	default:
		what = "(" + t.m.QueryPartition(p.name, conditions...) + ")"
	}
	return "COPY " + what + " TO STDOUT WITH (FORMAT " + t.format + ")"
}

// copyIn returns the statement that stores what copyOut reads.
func (t *table) copyIn() string {
	s := "COPY " + t.m.Target.String()
	if len(t.m.Columns) > 0 {
		s += " (" + schema.QuoteIdents(t.m.TargetColumns()) + ")"
	}
	s += " FROM STDIN WITH (FORMAT " + t.format
	if t.refresh {
		s += ", FREEZE"
	}
	return s + ")"
}

// truncated returns the table for a TRUNCATE statement, without inheritance children, which are
// emptied when they are copied themselves.
func (t *table) truncated() string {
	if t.plain {
		return "ONLY " + t.m.Target.String()
	}
	return t.m.Target.String()
}

func (t *table) sourceColumns() []string {
	names := make([]string, len(t.m.Columns))
	for i := range t.m.Columns {
		names[i] = t.m.Columns[i].Source
	}
	return names
}

// largestFirst orders chunks so that the end of the copy is not one long straggler: by the size of
// their pieces, neighbours of one piece next to each other.
func largestFirst(chunks []chunk) {
	slices.SortStableFunc(chunks, func(a, b chunk) int { return cmp.Compare(b.bytes, a.bytes) })
}
