package inspect

import "strings"

// equality is SQL that finds the operator by which a type's values are told apart.
const equality = `coalesce((
	SELECT pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname)
	FROM pg_catalog.pg_opclass oc
	JOIN pg_catalog.pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype AND ao.amopstrategy = 3
	JOIN pg_catalog.pg_operator o ON o.oid = ao.amopopr
	JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
	WHERE oc.opcdefault AND oc.opcmethod = (SELECT oid FROM pg_catalog.pg_am WHERE amname = 'btree') AND oc.opcintype = $type
	LIMIT 1), 'OPERATOR(pg_catalog.=)')`

// Equality returns an SQL expression for the equality operator of a type, written so that no
// search_path is needed: OPERATOR(public.=). typ is SQL for the type's OID, domains resolved. The
// operator is that of the type's default btree operator class; types that have none of their own
// (enums, arrays, ranges, composites) use pg_catalog's.
func Equality(typ string) string { return strings.ReplaceAll(equality, "$type", typ) }
