package apply

import (
	"encoding/binary"
	"slices"

	"github.com/ficus-migrate/ficus/change"
)

// A stmt is one statement on rows of one shape.
type stmt struct {
	shape  shape
	rows   []imagePair
	source *op // where a statement of one op comes from; nil for a folded one
}

// An imagePair is one row of a statement: what finds it and what it becomes. Which of the two there
// are, the shape says.
type imagePair struct{ key, row []change.Value }

// planInOrder makes the statements of the slow path: op by op.
func planInOrder(ops []op) []stmt {
	stmts := make([]stmt, 0, len(ops))
	for i := range ops {
		o := &ops[i]
		add := func(v verb, mask string) {
			stmts = append(stmts, stmt{shape: shape{table: o.table, verb: v, mask: mask}, rows: []imagePair{{o.key, o.row}}, source: o})
		}
		switch o.kind {
		case opInsert:
			add(verbInsert, "")
		case opDelete:
			add(verbDelete, "")
		case opUpdate:
			if o.table.rewrites {
				add(verbDelete, "")
				add(verbInsert, "")
			} else if v, mask := o.table.updateShape(o.key, o.row); v != 0 {
				add(v, mask)
			}
		case opTruncate:
			stmts = append(stmts, stmt{shape: shape{table: o.table, verb: verbTruncate, truncate: o.truncate}, source: o})
		}
	}
	return stmts
}

// planFolded makes the statements of the fast path: per table the net effect of the ops on each
// row, in one statement per shape. ok is false where the order of rows may be seen.
func planFolded(ops []op) (stmts []stmt, ok bool) {
	f := folder{folds: map[*table]*fold{}}
	for i := range ops {
		o := &ops[i]
		if o.kind == opTruncate {
			f.flush()
			f.stmts = append(f.stmts, stmt{shape: shape{table: o.table, verb: verbTruncate, truncate: o.truncate}, source: o})
			continue
		}
		if o.table.target.ordered {
			return nil, false
		}
		f.of(o.table).add(o)
	}
	f.flush()
	return f.stmts, true
}

// A folder folds the ops between two truncations.
type folder struct {
	folds map[*table]*fold
	order []*fold // by first op
	last  *fold
	stmts []stmt
}

func (f *folder) of(t *table) *fold {
	if f.last != nil && f.last.table == t {
		return f.last
	}
	fd := f.folds[t]
	if fd == nil {
		fd = &fold{table: t}
		f.folds[t] = fd
		f.order = append(f.order, fd)
	}
	f.last = fd
	return fd
}

func (f *folder) flush() {
	for _, fd := range f.order {
		f.stmts = fd.appendStmts(f.stmts)
	}
	clear(f.folds)
	f.order, f.last = nil, nil
}

// A fold is the net effect of ops on the rows of one table.
//
// A row that the destination has is known by the key it has there, and followed through all that
// happens to it, also under another key. Rows without key are followed by their whole image: equal
// ones are interchangeable.
type fold struct {
	table   *table
	rows    []folded
	current map[string]int // newest row by its present identity; nil until an op looks for one
	scratch []byte
}

type folded struct {
	key   []change.Value // that the row has at the destination; nil when it is not there yet
	row   []change.Value // that it becomes; nil when it goes
	under int            // an older row of the same identity that this one hides, -1 for none
}

func (f *fold) add(o *op) {
	if o.kind == opInsert {
		f.put(folded{row: o.row})
		return
	}
	i, known := f.take(o.key)
	if !known {
		f.put(folded{key: o.key, row: o.row})
		return
	}
	r := &f.rows[i]
	if o.kind == opUpdate {
		r.row = merge(r.row, o.row)
		f.place(i)
	} else {
		r.row = nil
	}
}

// put adds a row.
func (f *fold) put(r folded) {
	f.rows = append(f.rows, r)
	if f.current != nil && r.row != nil {
		f.place(len(f.rows) - 1)
	}
}

// place makes row i the one that its present identity finds.
func (f *fold) place(i int) {
	k := f.present(f.rows[i].row)
	f.rows[i].under = -1
	if j, ok := f.current[string(k)]; ok {
		f.rows[i].under = j
	}
	f.current[string(k)] = i
}

// take returns the row of that identity, which then is found by it no more.
func (f *fold) take(key []change.Value) (i int, ok bool) {
	if f.current == nil {
		f.current = make(map[string]int, len(f.rows)+8)
		for i := range f.rows {
			if f.rows[i].row != nil {
				f.place(i)
			}
		}
	}
	k := f.encode(key)
	if i, ok = f.current[string(k)]; !ok {
		return 0, false
	}
	if under := f.rows[i].under; under >= 0 {
		f.current[string(k)] = under
	} else {
		delete(f.current, string(k))
	}
	return i, true
}

// present encodes what tells the row of that image from others now.
func (f *fold) present(row []change.Value) []byte {
	if f.table.whole {
		return f.encode(row)
	}
	b := f.scratch[:0]
	for _, k := range f.table.key {
		b = appendValue(b, row[k.param])
	}
	f.scratch = b
	return b
}

// encode writes values so that different lists have different bytes.
func (f *fold) encode(values []change.Value) []byte {
	b := f.scratch[:0]
	for _, v := range values {
		b = appendValue(b, v)
	}
	f.scratch = b
	return b
}

func appendValue(b []byte, v change.Value) []byte {
	b = append(b, byte(v.Kind))
	b = binary.AppendUvarint(b, uint64(len(v.Data)))
	return append(b, v.Data...)
}

// merge returns the image after an update of a row that became older first: what the update left
// out stays as it was.
func merge(older, newer []change.Value) []change.Value {
	var merged []change.Value
	for i, v := range newer {
		if v.Kind == change.Unchanged && older[i].Kind != change.Unchanged {
			if merged == nil {
				merged = slices.Clone(newer)
			}
			merged[i] = older[i]
		}
	}
	if merged != nil {
		return merged
	}
	return newer
}

// appendStmts adds the statements that bring the rows about. Rows that go make place first, new
// ones come last.
func (f *fold) appendStmts(stmts []stmt) []stmt {
	t := f.table
	var deletes, inserts []imagePair
	var updates []stmt
	for i := range f.rows {
		r := &f.rows[i]
		pair := imagePair{r.key, r.row}
		switch {
		case r.row == nil && r.key == nil: // came and went
		case r.row == nil:
			deletes = append(deletes, pair)
		case r.key == nil:
			inserts = append(inserts, pair)
		case t.rewrites:
			deletes, inserts = append(deletes, pair), append(inserts, pair)
		default:
			v, mask := t.updateShape(r.key, r.row)
			if v == 0 {
				continue
			}
			s := shape{table: t, verb: v, mask: mask}
			j := slices.IndexFunc(updates, func(u stmt) bool { return u.shape == s })
			if j < 0 {
				j = len(updates)
				updates = append(updates, stmt{shape: s})
			}
			updates[j].rows = append(updates[j].rows, pair)
		}
	}
	if len(deletes) > 0 {
		t.sort(deletes)
		stmts = append(stmts, stmt{shape: shape{table: t, verb: verbDelete}, rows: deletes})
	}
	for _, u := range updates {
		t.sort(u.rows)
	}
	stmts = append(stmts, updates...)
	if len(inserts) > 0 {
		t.sort(inserts)
		stmts = append(stmts, stmt{shape: shape{table: t, verb: verbInsert}, rows: inserts})
	}
	return stmts
}

// updateShape returns how an update of this row is written: which columns stay as they are, and
// whether the key changes. The verb is 0 when nothing at all is written.
func (t *table) updateShape(key, row []change.Value) (verb, string) {
	s := shape{table: t, verb: verbUpdate, mask: maskOf(row)}
	if t.whole || t.moves(key, row) {
		s.verb = verbMove
	}
	v, known := t.updates[s]
	if !known {
		v = s.verb
		if set := s.set(); len(set) == 0 {
			v = 0
		} else if slices.ContainsFunc(set, func(c column) bool { return c.always }) {
			v = verbReplace
		}
		t.updates[s] = v
	}
	return v, s.mask
}

// maskOf marks the values that are not in an image; "" when all are.
func maskOf(row []change.Value) string {
	if !slices.ContainsFunc(row, func(v change.Value) bool { return v.Kind == change.Unchanged }) {
		return ""
	}
	mask := make([]byte, len(row))
	for i := range row {
		mask[i] = '.'
		if row[i].Kind == change.Unchanged {
			mask[i] = 'u'
		}
	}
	return string(mask)
}
