// Package schema describes tables: names, columns, keys, types. It does no I/O; schema/inspect
// reads these from a database.
package schema

import "strings"

// A Name is a schema-qualified identifier, unquoted.
type Name struct{ Schema, Name string }

// String returns the quoted SQL form: "public"."users".
func (n Name) String() string { return QuoteIdent(n.Schema) + "." + QuoteIdent(n.Name) }

// Display returns the form that people read: public.users, quoted only where SQL demands it.
func (n Name) Display() string { return displayIdent(n.Schema) + "." + displayIdent(n.Name) }

// MarshalText implements [encoding.TextMarshaler] with Display's form.
func (n Name) MarshalText() ([]byte, error) { return []byte(n.Display()), nil }

// QuoteIdent returns s as an SQL identifier, always quoted.
func QuoteIdent(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// QuoteIdents quotes each name and joins them with ", ".
func QuoteIdents(names []string) string {
	q := make([]string, len(names))
	for i, s := range names {
		q[i] = QuoteIdent(s)
	}
	return strings.Join(q, ", ")
}

// QuoteLiteral returns s as an SQL string literal, safe whatever standard_conforming_strings says.
func QuoteLiteral(s string) string {
	q := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		q = " E" + strings.ReplaceAll(q, `\`, `\\`)
	}
	return q
}

func displayIdent(s string) string {
	for i, c := range s {
		if c == '_' || c >= 'a' && c <= 'z' || i > 0 && c >= '0' && c <= '9' {
			continue
		}
		return QuoteIdent(s)
	}
	if s == "" {
		return `""`
	}
	return s
}

// A Kind is what sort of relation a table is (pg_class.relkind and relispartition).
type Kind string

// The kinds of relation that Ficus tells apart.
const (
	Ordinary         Kind = "table"
	Partitioned      Kind = "partitioned table" // holds no rows itself
	Foreign          Kind = "foreign table"
	MaterializedView Kind = "materialized view"
)

// A Type is a column type.
type Type struct {
	OID  uint32
	Mod  int32  // typmod, -1 for none
	SQL  string // format_type: "numeric(10,2)", "public.mood", "text[]"
	Kind byte   // pg_type.typtype: 'b' base, 'c' composite, 'd' domain, 'e' enum, 'r' range, 'm' multirange
}

// BuiltIn reports whether the type's OID means the same in every PostgreSQL database.
func (t Type) BuiltIn() bool { return t.OID < 10000 }

// A Column is one live column of a table, in attribute order.
type Column struct {
	Name      string
	Number    int16 // pg_attribute.attnum
	Type      Type
	NotNull   bool
	Generated bool   // GENERATED ALWAYS AS (...): never written by anyone
	Identity  byte   // 'a' always, 'd' by default, 0 none
	Default   string // SQL, "" for none
	Collation string // quoted qualified name when not the type's default, else ""
	Toastable bool   // attstorage is not plain: its value may be absent from an update
}

// A Key is a set of columns that is unique and never null.
type Key struct {
	Name      string
	Columns   []string
	Primary   bool
	Immediate bool // usable as a replica identity and for ON CONFLICT: not deferrable
}

// An Identity is a table's REPLICA IDENTITY setting.
type Identity byte

// The settings (pg_class.relreplident).
const (
	IdentityDefault Identity = 'd'
	IdentityNothing Identity = 'n'
	IdentityFull    Identity = 'f'
	IdentityIndex   Identity = 'i'
)

// A Table is a relation that holds rows, or is the root of those that do.
type Table struct {
	OID       uint32
	Name      Name
	Kind      Kind
	Parent    *Name // the table that this one is a partition of, nil for none
	Inherits  bool  // has inheritance (not partitioning) parents or children
	Unlogged  bool
	Columns   []Column
	Keys      []Key      // primary first, then by name; only complete, plain, valid unique indexes on NOT NULL columns
	Unique    [][]string // columns of each immediate unique index without condition or expression, nullable ones included
	Identity  Identity
	IdentKey  []string // columns of the replica identity: the primary key's or the chosen index's; nil for full, nothing or no key
	Rows      int64    // estimate, -1 when the table was never analyzed
	Bytes     int64    // of the main fork and TOAST, of all partitions for a partitioned table
	Pages     int64    // blocks of the main fork now
	HasRowSec bool     // row level security is enabled
}

// Column returns the column of that name, or nil.
func (t *Table) Column(name string) *Column {
	for i := range t.Columns {
		if t.Columns[i].Name == name {
			return &t.Columns[i]
		}
	}
	return nil
}

// PrimaryOrFirstKey returns the best key for finding a row: the primary key, else the first
// immediate one, else nil.
func (t *Table) PrimaryOrFirstKey() *Key {
	for i := range t.Keys {
		if t.Keys[i].Immediate {
			return &t.Keys[i]
		}
	}
	return nil
}

// A Sequence is a sequence and the column that owns it, if one does.
type Sequence struct {
	Name        Name
	OwnerTable  *Name // nil for none
	OwnerColumn string
	Increment   int64
}
