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

// Format returns the COPY format that a mapping goes in, and for Text the reason. target holds the
// columns that the target table has, in any order; nil stands for a table that is yet to be made
// from the mapping.
//
// Binary is chosen where every column is carried over as it is, and its type is the same built-in
// one on both sides, or an enum on both (whose binary form is its label). Other types may embed
// OIDs, which differ between databases.
func Format(m *transform.Mapping, target []schema.Column) (format, reason string) {
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
		case namesAnObject(from.OID):
			return Text, fmt.Sprintf("column %q is of type %s, whose binary form is a number that differs between databases", c.Target, from.SQL)
		case from.OID == aclitemOID || from.OID == aclitemArrayOID:
			return Text, fmt.Sprintf("column %q is of type %s, which has no binary form", c.Target, from.SQL)
		}
	}
	return Binary, ""
}

// OIDs of aclitem and aclitem[]. Source: PostgreSQL's pg_type.dat, as for namesAnObject.
const (
	aclitemOID      = 1033
	aclitemArrayOID = 1034
)

// namesAnObject reports whether a built-in type is one of the reg types or an array of them: the
// text form is the name of a table, function, type and so on, the binary form its OID.
func namesAnObject(oid uint32) bool {
	switch oid {
	case 24, 2202, 2203, 2204, 2205, 2206, // regproc, regprocedure, regoper, regoperator, regclass, regtype
		1008, 2207, 2208, 2209, 2210, 2211, // their arrays
		3734, 3735, 3769, 3770, // regconfig, regdictionary
		4089, 4090, 4096, 4097, 4191, 4192: // regnamespace, regrole, regcollation
		return true
	}
	return false
}
