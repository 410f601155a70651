package transform

import "github.com/ficus-migrate/ficus/schema"

// A Mapping is how one source table becomes one target table. Copy, stream and verify all work
// from the same Mapping, so a rule means the same in each.
type Mapping struct {
	Source  schema.Table
	Target  schema.Name
	Columns []Column // every target column that Ficus writes, in source order, computed ones last
	Where   string   // SQL condition over the source's columns; "" moves every row
	Key     []KeyColumn
}

// A Column says where the value of one target column comes from: a source column as it is, or an
// SQL expression over the source's columns.
type Column struct {
	Target string
	Source string      // "" when computed
	Expr   string      // "" when plain
	Type   schema.Type // of the target column
}

// A KeyColumn is one column of the key that finds a row on both sides. A Mapping without key
// columns is compared and changed as a multiset of whole rows.
type KeyColumn struct{ Source, Target string }

// Computed reports whether PostgreSQL has to evaluate the rows: some column is an expression, or
// not every row moves. Where false, values are carried over by position.
func (m *Mapping) Computed() bool {
	if m.Where != "" {
		return true
	}
	for i := range m.Columns {
		if m.Columns[i].Expr != "" {
			return true
		}
	}
	return false
}
