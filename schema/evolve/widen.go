package evolve

import "github.com/ficus-migrate/ficus/schema"

// Types by their OID, which is the same in every PostgreSQL.
// Source: src/include/catalog/pg_type.dat.
const (
	oidInt8, oidInt2, oidInt4              = 20, 21, 23
	oidText, oidVarchar                    = 25, 1043
	oidTextArray, oidVarcharArray          = 1009, 1015
	oidTime, oidTimestamp, oidTimestamptz  = 1083, 1114, 1184
	oidTimetz, oidVarbit, oidNumeric       = 1266, 1562, 1700
	modHeader, numericScale, fullPrecision = 4, 0xffff, 6
)

// Widens reports whether every value of one type is the same value of another, text form included,
// so that a column may change from one to the other while rows of both are under way.
//
// Not among them: real to double precision (1.1 becomes 1.10000002384186), char(n) (the padding
// changes), integer to numeric and anything to text but varchar (operators and order change).
func Widens(from, to schema.Type) bool {
	switch from.OID {
	case oidInt2:
		return to.OID == oidInt4 || to.OID == oidInt8
	case oidInt4:
		return to.OID == oidInt8
	case oidVarchar:
		return to.OID == oidText || to.OID == oidVarchar && longer(from.Mod, to.Mod)
	case oidVarcharArray:
		return to.OID == oidTextArray || to.OID == oidVarcharArray && longer(from.Mod, to.Mod)
	case oidVarbit:
		return to.OID == oidVarbit && longer(from.Mod, to.Mod)
	case oidNumeric:
		return to.OID == oidNumeric && widerNumeric(from.Mod, to.Mod)
	case oidTime, oidTimetz, oidTimestamp, oidTimestamptz:
		return to.OID == from.OID && from.Mod >= 0 && (to.Mod < 0 || from.Mod < to.Mod) && to.Mod <= fullPrecision
	}
	return false
}

// longer compares length limits, of which -1 is none.
func longer(from, to int32) bool { return from >= 0 && (to < 0 || from < to) }

// widerNumeric compares precisions of equal scale. Without limits every value keeps its scale.
// A modifier is precision << 16 | scale, plus 4.
func widerNumeric(from, to int32) bool {
	if from < 0 || to < 0 {
		return from >= 0
	}
	from, to = from-modHeader, to-modHeader
	return from&numericScale == to&numericScale && from>>16 < to>>16
}
