package transform

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ficus-migrate/ficus/schema"
)

// ErrLossy says that a mapping has no way back. Its details are in a LossyError.
var ErrLossy = errors.New("the way back loses data")

// A LossyError says why rows of the target cannot be turned into rows of the source again.
type LossyError struct {
	Table   schema.Name // of the source
	Reasons []string    // at least one, each a phrase that names a column
}

func (e *LossyError) Error() string {
	return fmt.Sprintf("table %s: %v: %s", e.Table.Display(), ErrLossy, strings.Join(e.Reasons, "; "))
}

// Unwrap returns ErrLossy.
func (e *LossyError) Unwrap() error { return ErrLossy }

// Inverse returns the mapping of the reverse link, from the target table back to the source's.
// Its Source is the target as the mapping describes it, without OID and sizes; a caller that has
// read the real table replaces it. The error is a *LossyError when something would be lost.
//
// A source column that the target has no more keeps its value on the rows that are there, and gets
// its default on new ones. That holds only while no column is computed on the way back, for a
// computed row is written as a whole.
func (m *Mapping) Inverse() (Mapping, error) {
	inv := Mapping{Source: m.targetTable(), Target: m.Source.Name}
	if m.Rule != nil {
		inv.Rule = &Rule{}
	}
	var reasons []string
	if m.Where != "" {
		reasons = append(reasons, "a condition leaves rows behind that the target does not know")
	}

	var missing []string
	for _, c := range m.Source.Columns {
		if c.Generated {
			continue
		}
		col, reason := m.inverseColumn(c)
		switch {
		case reason != "":
			reasons = append(reasons, reason)
		case col == nil:
			missing = append(missing, c.Name)
		default:
			inv.Columns = append(inv.Columns, *col)
		}
	}
	slices.SortStableFunc(inv.Columns, func(a, b Column) int { // computed ones last
		return cmp.Compare(min(len(a.Expr), 1), min(len(b.Expr), 1))
	})
	if inv.Computed() {
		for _, name := range missing {
			reasons = append(reasons, fmt.Sprintf("column %q is dropped, and rows computed on the way back would lose its value", name))
		}
	}
	if len(reasons) > 0 {
		return Mapping{}, &LossyError{Table: m.Source.Name, Reasons: reasons}
	}
	inv.Key = inv.findKey()
	return inv, nil
}

// inverseColumn returns how source column c is made from the target's row. Both results are zero
// when the target does not have the value and nothing is lost by that.
func (m *Mapping) inverseColumn(c schema.Column) (col *Column, reason string) {
	if m.Rule != nil {
		if expr := strings.TrimSpace(m.Rule.Inverse[c.Name]); expr != "" {
			if word, ok := bareIdentifier(expr); ok {
				for _, tc := range m.Columns {
					if tc.Target == word.raw || tc.Target == word.text {
						return &Column{Target: c.Name, Source: tc.Target, Type: c.Type}, ""
					}
				}
			}
			return &Column{Target: c.Name, Expr: expr, Type: c.Type}, ""
		}
	}
	if target := m.plainFrom(c.Name); target != "" {
		return &Column{Target: c.Name, Source: target, Type: c.Type}, ""
	}
	for _, tc := range m.Columns {
		if tc.Expr != "" && identifiers(tc.Expr)[c.Name] {
			return nil, fmt.Sprintf("column %q went into %q, which has no inverse", c.Name, tc.Target)
		}
	}
	if c.NotNull && c.Default == "" && c.Identity == 0 {
		return nil, fmt.Sprintf("column %q is dropped, must not be null and has no default", c.Name)
	}
	return nil, ""
}

// targetTable describes the target table as far as the mapping determines it.
func (m *Mapping) targetTable() schema.Table {
	t := schema.Table{
		Name: m.Target, Kind: m.Source.Kind, Inherits: m.Source.Inherits,
		Identity: schema.IdentityDefault, Rows: -1,
	}
	for i, c := range m.Columns {
		col := schema.Column{Toastable: true}
		if sc := m.Source.Column(c.Source); sc != nil {
			col = *sc
		}
		col.Name, col.Number, col.Type = c.Target, int16(i+1), c.Type
		t.Columns = append(t.Columns, col)
	}
	if len(m.Key) > 0 {
		key := schema.Key{Name: m.Target.Name + "_pkey", Primary: true, Immediate: true}
		for _, k := range m.Key {
			key.Columns = append(key.Columns, k.Target)
		}
		t.Keys, t.IdentKey = []schema.Key{key}, key.Columns
	}
	for _, columns := range m.Source.Unique {
		if targets := m.carriedOver(columns); targets != nil {
			t.Unique = append(t.Unique, targets)
		}
	}
	return t
}

// carriedOver returns the target columns that hold the values of source columns, nil when one is not
// carried over as it is.
func (m *Mapping) carriedOver(columns []string) []string {
	targets := make([]string, len(columns))
	for i, name := range columns {
		j := slices.IndexFunc(m.Columns, func(c Column) bool { return c.Expr == "" && c.Source == name })
		if j < 0 {
			return nil
		}
		targets[i] = m.Columns[j].Target
	}
	return targets
}
