package transform

import (
	"slices"
	"strings"

	"github.com/ficus-migrate/ficus/schema"
)

// A Mapping is how one source table becomes one target table. Copy, stream and verify all work
// from the same Mapping, so a rule means the same in each.
type Mapping struct {
	Source  schema.Table
	Target  schema.Name
	Columns []Column // every target column that Ficus writes, in source order, computed ones last
	Where   string   // SQL condition over the source's columns; "" moves every row
	Key     []KeyColumn
	Rule    *Rule // what it was compiled from; nil for a table that moves as it is
	// Former are names that Source had before, the oldest first. The stream may still show it under
	// one of them.
	Former []schema.Name
}

// Original is the name of the source table that rules know it by.
func (m *Mapping) Original() schema.Name {
	if len(m.Former) > 0 {
		return m.Former[0]
	}
	return m.Source.Name
}

// Called reports whether Source has a name, or had it.
func (m *Mapping) Called(name schema.Name) bool {
	return m.Source.Name == name || slices.Contains(m.Former, name)
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

// Reshaped reports whether the target table differs from the source's in name or columns, so that
// pg_dump's DDL does not fit and CreateTable makes it. A condition alone reshapes nothing.
func (m *Mapping) Reshaped() bool {
	if m.Rule == nil {
		return false
	}
	if m.Rule.Create != "" || m.Target != m.Source.Name || len(m.Rule.Drop) > 0 {
		return true
	}
	for i := range m.Columns {
		if m.Columns[i].Source != m.Columns[i].Target {
			return true
		}
	}
	return false
}

// SelectList returns the SQL of every target column over the source's row, in the order of
// Columns, each named as the target column; "" for a mapping without columns, which is a valid
// select list too.
func (m *Mapping) SelectList() string {
	list := make([]string, len(m.Columns))
	for i, c := range m.Columns {
		switch {
		case c.Expr != "":
			list[i] = parens(c.Expr) + " AS " + schema.QuoteIdent(c.Target)
		case c.Source != c.Target:
			list[i] = schema.QuoteIdent(c.Source) + " AS " + schema.QuoteIdent(c.Target)
		default:
			list[i] = schema.QuoteIdent(c.Source)
		}
	}
	return strings.Join(list, ", ")
}

// From returns the relation that SelectList and Where read at the source: exactly the rows that
// this mapping moves, so those of inheritance children (which have mappings of their own) are left
// out and those of partitions are in.
func (m *Mapping) From() string { return m.only() + m.Source.Name.String() }

// TargetFrom is From for the target table.
func (m *Mapping) TargetFrom() string { return m.only() + m.Target.String() }

func (m *Mapping) only() string {
	if m.Source.Inherits && m.Source.Kind != schema.Partitioned {
		return "ONLY "
	}
	return ""
}

// Query returns the SELECT at the source that yields the target's rows, narrowed by the given SQL
// conditions.
func (m *Mapping) Query(conditions ...string) string { return m.query(m.From(), conditions) }

// QueryPartition is Query for one partition of the source. Expressions see it under the name of the
// table that it is a part of.
func (m *Mapping) QueryPartition(partition schema.Name, conditions ...string) string {
	return m.query(partition.String()+" AS "+schema.QuoteIdent(m.Source.Name.Name), conditions)
}

func (m *Mapping) query(from string, conditions []string) string {
	var b strings.Builder
	b.WriteString("SELECT " + m.SelectList() + " FROM " + from)
	sep := " WHERE "
	if m.Where != "" {
		b.WriteString(sep + parens(m.Where))
		sep = " AND "
	}
	for _, c := range conditions {
		b.WriteString(sep + parens(c))
		sep = " AND "
	}
	return b.String()
}

// parens encloses an SQL expression, which may end in a comment.
func parens(expr string) string {
	if strings.Contains(expr, "--") {
		expr += "\n"
	}
	return "(" + expr + ")"
}

// TargetColumns returns the names of the target columns, in the order of Columns.
func (m *Mapping) TargetColumns() []string {
	names := make([]string, len(m.Columns))
	for i := range m.Columns {
		names[i] = m.Columns[i].Target
	}
	return names
}

// plainFrom returns the target column that carries a source column as it is, that of the same
// name where several do, or "".
func (m *Mapping) plainFrom(source string) string {
	found := ""
	for i := range m.Columns {
		if c := &m.Columns[i]; c.Source == source && (found == "" || c.Target == source) {
			found = c.Target
		}
	}
	return found
}

// NeedsFull reports whether following the source's changes needs REPLICA IDENTITY FULL on it, and
// why: the mapping has no key that the stream supplies, or rows have to be evaluated again and the
// stream leaves out large values that an update did not touch.
func NeedsFull(m *Mapping) (need bool, reason string) {
	t := &m.Source
	if len(m.Key) == 0 {
		return true, "no key of the table is carried over unchanged"
	}
	switch t.Identity {
	case schema.IdentityFull:
	case schema.IdentityNothing:
		return true, "its REPLICA IDENTITY is NOTHING, so the stream would not say which row changed"
	case schema.IdentityDefault, schema.IdentityIndex:
		for _, k := range m.Key {
			if !slices.Contains(t.IdentKey, k.Source) {
				return true, "key column " + schema.QuoteIdent(k.Source) + " is not part of its replica identity"
			}
		}
	}
	if !m.Computed() {
		return false, ""
	}
	for _, name := range m.reads() {
		if c := t.Column(name); c != nil && c.Toastable {
			return true, "rows are computed from column " + schema.QuoteIdent(name) + ", which an update may leave out of the stream"
		}
	}
	return false, ""
}

// reads returns the source columns that the mapping's values and condition depend on, in table
// order.
func (m *Mapping) reads() []string {
	used := identifiers(m.Where)
	for _, c := range m.Columns {
		if c.Expr == "" {
			used[c.Source] = true
		} else {
			for name := range identifiers(c.Expr) {
				used[name] = true
			}
		}
	}
	var names []string
	for _, c := range m.Source.Columns {
		if used[c.Name] {
			names = append(names, c.Name)
		}
	}
	return names
}
