package verify

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/ficus-migrate/ficus/schema"
)

// A Checkpoint is what a comparison that was interrupted has compared. Another one goes on from it,
// at an instant of its own: together they prove each table at the instant that its report names.
type Checkpoint struct {
	Source string             `json:"source"`
	Target string             `json:"target"`
	Bounds map[string][]int64 `json:"bounds,omitempty"` // by table: where it is cut into ranges of its key
	Parts  []Compared         `json:"parts"`
}

// Compared is the result for a part: a table, or a range of one. Part says which and by what SQL, so
// that it is compared again when that has changed.
type Compared struct {
	Part   string      `json:"part"`
	Report TableReport `json:"report"`
}

// maxRanges bounds into how many ranges a table is cut.
const maxRanges = 1000

// A resumption is a comparison that can be interrupted, or paused.
type resumption struct {
	s    *Session
	save func(Checkpoint) error // nil: it is only to be paused

	mu    sync.Mutex // guards the rest, and saving
	check Checkpoint
	fresh []*table // compared in this round and, without save, not yet known to have kept their shape
	sizes [2][]layout
}

// resumable cuts the tables into parts, and takes out those that are in the checkpoint.
func (s *Session) resumable(ctx context.Context, layouts [2][]layout) (r *resumption, parts []*table, sizes [2][]layout, err error) {
	r = &resumption{s: s, save: s.cfg.Save}
	r.check = Checkpoint{Source: s.cfg.Source.String(), Target: s.cfg.Target.String(), Bounds: map[string][]int64{}}
	known := s.known
	if known.Source != r.check.Source || known.Target != r.check.Target {
		known = Checkpoint{}
	}
	s.before = 0
	done := map[string]Compared{}
	for _, c := range known.Parts {
		done[c.Part] = c
	}
	for i, t := range s.tables {
		bounds, ok := known.Bounds[t.name]
		if !ok {
			if bounds, err = s.bounds(ctx, t, max(layouts[source][i].rows, layouts[target][i].rows)); err != nil {
				return nil, nil, sizes, err
			}
		}
		if len(bounds) > 0 {
			r.check.Bounds[t.name] = bounds
		}
		for _, p := range t.ranges(bounds) {
			if c, ok := done[p.identity()]; ok {
				r.check.Parts = append(r.check.Parts, c)
				s.before += c.Report.Rows + c.Report.TargetRows
				continue
			}
			parts = append(parts, p)
			for _, sd := range sides() {
				sizes[sd] = append(sizes[sd], layouts[sd][i].share(len(bounds)+1))
			}
		}
	}
	return r, parts, sizes, nil
}

// bounds returns where a table is cut so that each part has about Config.RangeRows rows; nothing for
// one that is small, or whose key does not begin with an integer.
func (s *Session) bounds(ctx context.Context, t *table, rows int64) ([]int64, error) {
	n := min(rows/s.cfg.RangeRows, maxRanges)
	if s.cfg.Save == nil || n < 2 || !t.keyed() || !isInteger(t.half[source].key[0].oid) || t.half[source].key[0].cast {
		return nil, nil
	}
	node, column := s.nodes[source], schema.QuoteIdent(t.half[source].key[0].column)
	var low, high *int64
	sql := fmt.Sprintf("SELECT min(%s)::int8, max(%[1]s)::int8 FROM %s", column, t.m.From())
	if err := node.control.QueryRow(ctx, sql).Scan(&low, &high); err != nil {
		return nil, node.failTable(t, "look for the ends of its key", err)
	}
	if low == nil {
		return nil, nil
	}
	var bounds []int64
	for i := int64(1); i < n; i++ {
		bounds = append(bounds, int64(float64(*low)+(float64(*high)-float64(*low))*float64(i)/float64(n)))
	}
	return slices.Compact(bounds), nil
}

// ranges returns the table in parts. The first and the last have no end, and NULL is in the first.
func (t *table) ranges(bounds []int64) []*table {
	if len(bounds) == 0 {
		return []*table{t}
	}
	parts := make([]*table, len(bounds)+1)
	for i := range parts {
		p := *t
		for _, sd := range sides() {
			column := schema.QuoteIdent(t.half[sd].key[0].column)
			var conditions []string
			if i > 0 {
				conditions = append(conditions, column+" >= '"+strconv.FormatInt(bounds[i-1], 10)+"'")
			}
			if i < len(bounds) {
				conditions = append(conditions, column+" < '"+strconv.FormatInt(bounds[i], 10)+"'")
			}
			p.within[sd] = strings.Join(conditions, " AND ")
			if i == 0 {
				p.within[sd] += " OR " + column + " IS NULL"
			}
		}
		parts[i] = &p
	}
	return parts
}

// identity names the part by the SQL that reads it.
func (t *table) identity() string {
	sum := sha256.Sum256([]byte(t.query(source) + "\n" + t.query(target)))
	return t.name + " " + hex.EncodeToString(sum[:8])
}

// share is the layout of one of n parts of the table.
func (l layout) share(n int) layout {
	if n > 1 {
		l.rows, l.blocks = l.rows/int64(n), 0
	}
	return l
}

// finished takes note of the results of a part. Its table must be what it was when it is saved: later
// there will be another snapshot.
func (r *resumption) finished(ctx context.Context, t *table, report TableReport, at instant, before [2]layout) error {
	if r.save != nil {
		if err := r.s.unchanged(ctx, []*table{t}, [2][]layout{{before[source]}, {before[target]}}); err != nil {
			return err
		}
	}
	report.Instant = &Instant{LSN: at.lsn, At: at.time, SameInstant: at.same}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.check.Parts = append(r.check.Parts, Compared{Part: t.identity(), Report: report})
	if r.save != nil {
		return r.save(r.check)
	}
	r.fresh = append(r.fresh, t)
	for _, sd := range sides() {
		r.sizes[sd] = append(r.sizes[sd], before[sd])
	}
	return nil
}

// keep hands what was compared to the next round, while the snapshots are still there.
func (r *resumption) keep(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.s.unchanged(ctx, r.fresh, r.sizes); err != nil {
		return err
	}
	r.s.known = r.check
	return nil
}

// finish turns the parts into tables and says at which instants they were compared.
func (r *resumption) finish(report *Report) {
	byTable := map[schema.Name]*TableReport{}
	instants := map[string]*Instant{}
	for i := range r.check.Parts {
		p := &r.check.Parts[i].Report
		in := instants[p.Instant.LSN.String()+p.Instant.At.String()]
		if in == nil {
			in = &Instant{LSN: p.Instant.LSN, At: p.Instant.At, SameInstant: p.Instant.SameInstant}
			instants[p.Instant.LSN.String()+p.Instant.At.String()] = in
		}
		in.Tables++
		if t := byTable[p.Table]; t == nil {
			byTable[p.Table] = new(*p)
		} else {
			t.add(p, r.s.cfg.MaxSamples)
		}
	}
	report.Tables = report.Tables[:0]
	for _, t := range r.s.tables {
		if tr := byTable[t.m.Source.Name]; tr != nil {
			report.Tables = append(report.Tables, *tr)
		}
	}
	for _, in := range instants {
		report.SameInstant = report.SameInstant && in.SameInstant
		report.Instants = append(report.Instants, *in)
	}
	slices.SortFunc(report.Instants, func(a, b Instant) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.LSN, b.LSN)) })
	if len(report.Instants) == 1 {
		report.Instants = nil
		for i := range report.Tables {
			report.Tables[i].Instant = nil
		}
	}
}

// add adds the results of another part of the same table.
func (t *TableReport) add(p *TableReport, samples int) {
	t.Rows, t.TargetRows = t.Rows+p.Rows, t.TargetRows+p.TargetRows
	t.Differences, t.Missing, t.Extra, t.Changed = t.Differences+p.Differences, t.Missing+p.Missing, t.Extra+p.Extra, t.Changed+p.Changed
	t.Standing += p.Standing
	t.Samples = append(t.Samples, p.Samples...)
	t.Samples = t.Samples[:min(len(t.Samples), samples)]
	if t.Instant != nil && (t.Instant.LSN != p.Instant.LSN || !t.Instant.At.Equal(p.Instant.At)) {
		t.Instant = nil // several: the report lists them
	}
	t.repairs = append(t.repairs, p.repairs...)
}
