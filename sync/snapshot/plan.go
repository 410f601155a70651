package snapshot

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

// A table is one mapping on its way. Workers count into it, the reporter reads.
type table struct {
	m       *transform.Mapping
	format  string
	plain   bool // the target is an ordinary table
	refresh bool // TRUNCATE again together with COPY FREEZE: one chunk into a plain table
	rows    atomic.Int64
	bytes   atomic.Int64
	left    atomic.Int64 // chunks not yet copied
}

// A chunk is a part of a table that one COPY moves.
type chunk struct {
	table *table
	bytes int64  // about
	out   string // COPY ... TO STDOUT at the source
}

type planLimits struct {
	chunkBytes int64
	split      bool // by ranges of ctid
	versions   Versions
}

// planTable decides how a table goes and cuts it into chunks. Together the chunks read every row of
// the snapshot once, even when the table has grown or shrunk since it was measured: the first has
// no lower bound, the last no upper one.
func planTable(m *transform.Mapping, src *source, dst *target, limits planLimits) (*table, []chunk) {
	t := &table{m: m, plain: dst.kind == "r"}
	t.format, _ = Format(m, dst.columns, limits.versions)

	pieces := src.pieces
	if src.whole || len(pieces) == 0 {
		whole := piece{name: m.Source.Name}
		for _, p := range pieces {
			whole.bytes += p.bytes
		}
		pieces = []piece{whole}
	}

	var chunks []chunk
	for _, p := range pieces {
		for _, conditions := range ctidRanges(p, limits) {
			chunks = append(chunks, chunk{table: t, out: t.copyOut(p, conditions)})
			chunks[len(chunks)-1].bytes = p.bytes
		}
	}
	t.left.Store(int64(len(chunks)))
	t.refresh = len(chunks) == 1 && t.plain && !dst.referenced
	return t, chunks
}

// ctidRanges returns the SQL conditions of each part that a piece is divided into; the only part of
// an undivided one has none.
func ctidRanges(p piece, limits planLimits) [][]string {
	n := min((p.bytes+limits.chunkBytes-1)/limits.chunkBytes, p.pages)
	if !limits.split || !p.plain || n < 2 {
		return [][]string{nil}
	}
	bound := func(i int64) int64 { return p.pages * i / n }
	ranges := make([][]string, 0, n)
	for i := range n {
		var parts []string
		if i > 0 {
			parts = append(parts, fmt.Sprintf("ctid >= '(%d,0)'::tid", bound(i)))
		}
		if i < n-1 {
			parts = append(parts, fmt.Sprintf("ctid < '(%d,0)'::tid", bound(i+1)))
		}
		ranges = append(ranges, parts)
	}
	return ranges
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
