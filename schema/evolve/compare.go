package evolve

import (
	"slices"
	"strings"

	"github.com/ficus-migrate/ficus/schema"
)

// A comparer builds an Evolution.
type comparer struct {
	Evolution

	known   *schema.Table
	now     *Source
	shape   []schema.Column   // what the stream sends
	settled bool              // the catalog decides alone
	renames map[string]string // new name by old name
}

func (c *comparer) add(d Difference) { c.Differences = append(c.Differences, d) }

// columns compares the columns that the stream carries and builds the new table's.
func (c *comparer) columns() {
	c.Table = *c.known
	if c.settled {
		c.Table = c.now.Table
	}
	c.Table.OID, c.Table.Name, c.Table.Columns = c.now.Table.OID, c.known.Name, nil
	c.findRenames()
	for _, s := range c.shape {
		old := c.before(s.Name)
		if old == nil {
			c.added(s)
			continue
		}
		col := *old
		col.Name, col.Type = s.Name, s.Type
		if cur := c.now.Table.Column(s.Name); c.settled && cur != nil {
			col = *cur
		}
		c.compareColumn(old, &col)
		c.Table.Columns = append(c.Table.Columns, col)
	}
	for _, k := range plain(c.known.Columns) {
		switch {
		case c.after(k.Name) != "":
		case !c.settled && c.still(&k):
			c.add(Difference{Kind: Dropped, Column: k.Name, Was: k.Type.SQL, Safe: true, Why: older})
		default:
			c.add(Difference{
				Kind: Dropped, Column: k.Name, Was: k.Type.SQL, Certain: true,
				Why: "the target's column would lose its values, too",
			})
		}
	}
}

// older is why a shape cannot be followed that comes after a newer one.
const older = "one transaction has rows from before the change and from after it"

// still reports whether the source has a known column as it is known, so that it is the stream which
// shows an older shape.
func (c *comparer) still(k *schema.Column) bool {
	cur := c.now.Table.Column(k.Name)
	return cur != nil && cur.Number == k.Number && sameType(cur.Type, k.Type)
}

// findRenames pairs columns that are gone with new ones by their number, which a rename keeps.
func (c *comparer) findRenames() {
	for _, k := range plain(c.known.Columns) {
		if c.sends(k.Name) || k.Number == 0 {
			continue
		}
		for _, n := range c.now.Table.Columns {
			if n.Number == k.Number && c.sends(n.Name) && c.known.Column(n.Name) == nil {
				c.renames[k.Name] = n.Name
			}
		}
	}
}

func (c *comparer) sends(name string) bool {
	return slices.ContainsFunc(c.shape, func(s schema.Column) bool { return s.Name == name })
}

// computes reports whether a column is generated, then and now, which the stream does not show.
func (c *comparer) computes(name string) bool {
	was, is := c.known.Column(name), c.now.Table.Column(name)
	return was != nil && is != nil && was.Generated && is.Generated
}

// before returns the known column that the stream now sends under a name, nil for a new one.
func (c *comparer) before(name string) *schema.Column {
	for was, is := range c.renames {
		if is == name {
			return c.known.Column(was)
		}
	}
	if k := c.known.Column(name); k != nil && !k.Generated {
		return k
	}
	return nil
}

// after returns the name under which the stream now sends a known column, "" for none.
func (c *comparer) after(name string) string {
	if is := c.renames[name]; is != "" {
		return is
	}
	if c.sends(name) {
		return name
	}
	return ""
}

func (c *comparer) compareColumn(old, col *schema.Column) {
	if old.Name != col.Name {
		c.add(Difference{
			Kind: Renamed, Column: col.Name, Was: old.Name, Is: col.Name, Certain: true,
			Why: "queries on the target may use the old name",
		})
	}
	cur := c.now.Table.Column(col.Name)
	if cur != nil && old.Number != 0 && cur.Number != old.Number && old.Name == col.Name {
		c.add(Difference{Kind: Replaced, Column: col.Name, Why: "the stream does not have the new column's values of rows that were there"})
	}
	switch {
	case sameType(old.Type, col.Type):
	case Widens(old.Type, col.Type):
		c.add(Difference{Kind: Widened, Column: col.Name, Was: old.Type.SQL, Is: col.Type.SQL, Safe: true, Certain: true})
	case !c.settled && c.still(old):
		c.add(Difference{Kind: Retyped, Column: col.Name, Was: old.Type.SQL, Is: col.Type.SQL, Safe: true, Why: older})
	default:
		c.add(Difference{
			Kind: Retyped, Column: col.Name, Was: old.Type.SQL, Is: col.Type.SQL,
			Why: "the values of rows that were there may be others, which the stream does not have",
		})
	}
	if !c.settled || col.Identity != 0 {
		return
	}
	if old.Default != col.Default {
		c.add(Difference{Kind: DefaultChanged, Column: col.Name, Was: old.Default, Is: col.Default, Safe: true, Certain: true})
	}
	if old.NotNull != col.NotNull {
		c.add(Difference{Kind: NullChanged, Column: col.Name, Was: nullness(old), Is: nullness(col), Safe: true, Certain: true})
	}
}

func nullness(c *schema.Column) string {
	if c.NotNull {
		return "NOT NULL"
	}
	return "nullable"
}

// added takes a new column over. Where the stream, or the target until it is copied anew, may have
// rows without a value, NOT NULL is left for later: it is then a difference of its own.
func (c *comparer) added(s schema.Column) {
	d := Difference{Kind: Added, Column: s.Name, Is: s.Type.SQL, Safe: true, Certain: true}
	cur := c.now.Table.Column(s.Name)
	col := s
	_, constant := c.now.Missing[s.Name]
	switch {
	case cur == nil:
		d.Certain, d.Why = false, "it is gone again, and with it its values in rows that were there"
	case !sameType(cur.Type, s.Type) && c.now.Rewritten, c.now.Uneven[s.Name], !constant && c.now.Rewritten:
		d.Certain, d.Why = false, "rows were written anew, with values that the stream does not have"
	}
	if cur != nil {
		col = *cur
		col.Type, col.Generated = s.Type, false
		col.NotNull = cur.NotNull && c.settled && d.Certain && constant
	}
	c.add(d)
	c.Table.Columns = append(c.Table.Columns, col)
}

// generated takes over the generated columns, which the stream does not carry.
func (c *comparer) generated() {
	for _, n := range c.now.Table.Columns {
		if !n.Generated {
			continue
		}
		c.Table.Columns = append(c.Table.Columns, n)
		if k := c.known.Column(n.Name); c.settled && k == nil {
			c.add(Difference{
				Kind: GeneratedNew, Column: n.Name, Is: n.Type.SQL, Safe: true, Certain: true,
				Why: "generated columns are not in the stream: add it on the target by hand",
			})
		}
	}
}

// keys keeps the key that the mapping has, under new names, for as long as the source has it, too.
// What REPLICA IDENTITY says now may be what Ficus made of it.
func (c *comparer) keys() {
	t := &c.Table
	t.Identity, t.IdentKey, t.Keys = c.known.Identity, c.renamed(c.known.IdentKey), nil
	for _, k := range c.known.Keys {
		k.Columns = c.renamed(k.Columns)
		t.Keys = append(t.Keys, k)
	}
	was := c.known.PrimaryOrFirstKey()
	if was == nil {
		return
	}
	columns := c.renamed(was.Columns)
	has := func(k schema.Key) bool { return k.Immediate && slices.Equal(k.Columns, columns) }
	gone := slices.ContainsFunc(columns, func(name string) bool { return !c.sends(name) && !c.computes(name) })
	moved := c.now.Table.Identity == schema.IdentityIndex && !slices.Equal(c.now.Table.IdentKey, t.IdentKey)
	if !gone && (c.Ahead || slices.ContainsFunc(c.now.Table.Keys, has) && !moved) {
		return
	}
	is := ""
	t.Keys = c.now.Table.Keys
	if k := c.now.Table.PrimaryOrFirstKey(); k != nil {
		is = strings.Join(k.Columns, ", ")
	}
	t.Identity, t.IdentKey = c.now.Table.Identity, c.now.Table.IdentKey
	if t.Identity == schema.IdentityFull && c.known.Identity != schema.IdentityFull {
		t.Identity = schema.IdentityDefault
		if k := c.now.Table.PrimaryOrFirstKey(); k != nil && k.Primary {
			t.IdentKey = k.Columns
		}
	}
	c.add(Difference{
		Kind: KeyChanged, Was: strings.Join(was.Columns, ", "), Is: orNone(is),
		Why: "rows were found by the old key",
	})
}

// renamed returns columns under the names that they have now; one that is gone keeps its name.
func (c *comparer) renamed(columns []string) []string {
	if columns == nil {
		return nil
	}
	out := make([]string, len(columns))
	for i, name := range columns {
		out[i] = name
		if is := c.after(name); is != "" {
			out[i] = is
		}
	}
	return out
}
