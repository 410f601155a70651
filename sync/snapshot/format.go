package snapshot

import (
	"fmt"
	"slices"

	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

// The formats of COPY that a table can go in.
const (
	Binary = "binary" // about twice as fast
	Text   = "text"   // says the same to every version and type
)

// Versions are the major versions of the two servers.
type Versions struct{ Source, Target int }

// loses reports whether the target is older than what a version brought and the source has.
func (v Versions) loses(major int) bool { return v.Source >= major && v.Target < major }

// Format returns the COPY format that a mapping goes in, and for Text the reason. target holds the
// columns that the target table has, in any order; nil stands for a table that is yet to be made
// from the mapping.
//
// Binary is chosen where every column is carried over as it is, and its type is the same built-in
// one on both sides, or an enum on both (whose binary form is its label). Other types may embed
// OIDs, which differ between databases.
func Format(m *transform.Mapping, target []schema.Column, v Versions) (format, reason string) {
	for _, c := range m.Columns {
		if c.Expr != "" {
			return Text, fmt.Sprintf("column %q is computed", c.Target)
		}
		src := m.Source.Column(c.Source)
		if src == nil {
			return Text, fmt.Sprintf("the type of column %q is not known", c.Target)
		}
		from, to := src.Type, src.Type
		if target != nil {
			i := slices.IndexFunc(target, func(tc schema.Column) bool { return tc.Name == c.Target })
			if i < 0 {
				return Text, fmt.Sprintf("the type of column %q is not known", c.Target)
			}
			to = target[i].Type
		}
		switch {
		case from.Kind == 'e' && to.Kind == 'e':
		case from.OID != to.OID:
			return Text, fmt.Sprintf("column %q is %s on the source and %s on the target", c.Target, from.SQL, to.SQL)
		case !from.BuiltIn():
			return Text, fmt.Sprintf("column %q is of type %s, which is not built in", c.Target, from.SQL)
		case from.Kind == 'c':
			return Text, fmt.Sprintf("column %q is of type %s, a row type of the catalog, which versions change", c.Target, from.SQL)
		}
		if why := unfit(from.OID, v); why != "" {
			return Text, fmt.Sprintf("column %q is of type %s, %s", c.Target, from.SQL, why)
		}
	}
	return Binary, ""
}

// unfit returns why the binary form of a built-in type or an array of it does not carry every value,
// or "". Source of the OIDs: PostgreSQL's pg_type.dat.
func unfit(oid uint32, v Versions) string {
	switch oid {
	case 1186, 1187: // interval
		if v.loses(17) { // as text the older server refuses it
			return "whose binary form of infinity is a number of years before PostgreSQL 17"
		}
	case 24, 2202, 2203, 2204, 2205, 2206, // regproc, regprocedure, regoper, regoperator, regclass, regtype
		1008, 2207, 2208, 2209, 2210, 2211, // their arrays
		3734, 3735, 3769, 3770, // regconfig, regdictionary
		4089, 4090, 4096, 4097, 4191, 4192: // regnamespace, regrole, regcollation
		return "whose binary form is a number that differs between databases"
	case 1033, 1034: // aclitem
		return "which has no binary form"
	case 3615, 3645, // tsquery
		22, 1006, 30, 1013: // int2vector, oidvector
		return "whose empty value PostgreSQL writes in binary and does not read again"
	}
	return ""
}
