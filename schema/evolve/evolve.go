package evolve

import (
	"fmt"
	"slices"

	"github.com/ficus-migrate/ficus/schema"
)

// A Kind is what sort of difference there is.
type Kind string

// The kinds of difference.
const (
	Added          Kind = "column added"
	Widened        Kind = "type widened"
	Retyped        Kind = "type changed"
	Dropped        Kind = "column dropped"
	Renamed        Kind = "column renamed"
	Replaced       Kind = "column dropped and made again"
	KeyChanged     Kind = "key changed"
	DefaultChanged Kind = "default changed"
	NullChanged    Kind = "NOT NULL changed"
	GeneratedNew   Kind = "generated column added"
)

// A Difference is one way in which a table is no longer what its mapping was made from.
type Difference struct {
	Kind    Kind
	Column  string // as the source calls it now, or called it; "" for the key
	Was, Is string // types, names, columns of the key
	Safe    bool   // the target may follow by itself
	Certain bool   // the rows that are there are then as at the source
	Why     string // it is not safe or not certain; "" when it is both
}

func (d Difference) String() string {
	switch d.Kind {
	case Added, GeneratedNew:
		return fmt.Sprintf("column %q of type %s was added", d.Column, d.Is)
	case Widened, Retyped:
		return fmt.Sprintf("column %q of type %s is now %s", d.Column, d.Was, d.Is)
	case Dropped:
		return fmt.Sprintf("column %q of type %s was dropped", d.Column, d.Was)
	case Renamed:
		return fmt.Sprintf("column %q is now called %q", d.Was, d.Is)
	case Replaced:
		return fmt.Sprintf("column %q was dropped and made again", d.Column)
	case KeyChanged:
		return fmt.Sprintf("the key (%s) is now (%s)", d.Was, d.Is)
	case DefaultChanged:
		return fmt.Sprintf("the default of column %q is now %s", d.Column, orNone(d.Is))
	case NullChanged:
		return fmt.Sprintf("column %q is now %s", d.Column, d.Is)
	}
	return string(d.Kind)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// A Source is a table of the source as its catalog describes it now.
type Source struct {
	Table schema.Table
	// Missing holds the values of the columns that were added with a constant default, in rows that
	// were there before: pg_attribute.attmissingval, as text.
	Missing map[string]string
	// Uneven are columns whose Missing is not the same in all partitions.
	Uneven map[string]bool
	// Rewritten says that the rows of the table, or of a partition, were written anew since they
	// were copied, by whatever command: what is not Missing then tells nothing.
	Rewritten bool
	// Sequences are those that columns own.
	Sequences map[string]schema.Name
}

// An Evolution is what became of a table.
type Evolution struct {
	Table       schema.Table // what the mapping is to be made from now on
	Differences []Difference
	Ahead       bool // the catalog has more changes, which the stream has yet to show

	source *Source
}

// Safe reports whether the target may follow by itself.
func (e *Evolution) Safe() bool {
	return !slices.ContainsFunc(e.Differences, func(d Difference) bool { return !d.Safe })
}

// Certain reports whether the target's rows need not be copied anew.
func (e *Evolution) Certain() bool {
	return !slices.ContainsFunc(e.Differences, func(d Difference) bool { return !d.Certain })
}

// Find returns the first difference for which the condition holds, or nil.
func (e *Evolution) Find(cond func(Difference) bool) *Difference {
	if i := slices.IndexFunc(e.Differences, cond); i >= 0 {
		return &e.Differences[i]
	}
	return nil
}

// Compare finds out what became of a table. shape are the columns that the stream sends from here
// on, with name and type; nil when the stream has passed all DDL that the catalog shows, so that the
// catalog decides alone.
func Compare(known *schema.Table, shape []schema.Column, now *Source) *Evolution {
	c := &comparer{Evolution: Evolution{source: now}, known: known, now: now, settled: shape == nil, renames: map[string]string{}}
	current := plain(now.Table.Columns)
	if c.settled {
		shape = current
	}
	c.Ahead = !slices.EqualFunc(shape, current, func(a, b schema.Column) bool { return a.Name == b.Name && sameType(a.Type, b.Type) })
	c.shape = shape
	c.columns()
	c.generated()
	c.keys()
	return &c.Evolution
}

// plain returns the columns that the stream carries.
func plain(columns []schema.Column) []schema.Column {
	return slices.DeleteFunc(slices.Clone(columns), func(c schema.Column) bool { return c.Generated })
}

func sameType(a, b schema.Type) bool { return a.OID == b.OID && a.Mod == b.Mod }
