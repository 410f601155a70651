package ddl

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

// A Plan is what a link moves and how, and what the origin's catalog said of it.
type Plan struct {
	Tables    []schema.Table      `json:"tables"` // all that were selected, moved or not
	Mappings  []transform.Mapping `json:"mappings"`
	Sequences []schema.Sequence   `json:"sequences"`

	Identities

	// Files and Indexes are what the origin had when Tables were read: the file of each relation
	// that holds rows, by OID, and the definition of each index. By them DDL that the stream does
	// not carry is noticed.
	Files   map[uint32]uint32 `json:"files"`
	Indexes map[string]bool   `json:"indexes"`
	// Told is the change of the origin that the link stopped at last, and that its operator was told
	// of: whoever runs it again has seen to it.
	Told string `json:"told,omitempty"`
	// Stopped is the table that Told is about: the rules for it may be others when it goes on.
	Stopped schema.Name `json:"stopped,omitzero"`
	// Renames are the new names of which the operator was told.
	Renames []Rename `json:"renames,omitempty"`
	// Pending is a change of the tables that is not yet through.
	Pending *Pending `json:"pending,omitempty"`
	// Taken is the number of the newest request that became Pending.
	Taken int64 `json:"taken,omitempty"`
}

// A Pending change is written down before it begins, so that a process which is killed in the middle
// is followed by one that ends it. Every part of it may be repeated.
type Pending struct {
	New    []schema.Name `json:"new,omitempty"`    // tables that came to be, and whose indexes are to be built
	Since  time.Time     `json:"since,omitzero"`   // by the destination's clock: what was built of New was built later
	Resync []schema.Name `json:"resync,omitempty"` // tables that are copied anew
	Why    string        `json:"why"`

	Renames []Rename `json:"renames,omitempty"`
	ID      string   `json:"id,omitempty"` // of Renames, which must not be carried out twice
}

// and returns a change that is both, with the tables of the first under their new names.
func (p *Pending) and(next Pending) *Pending {
	if p == nil {
		return &next
	}
	both := *p
	now := func(n schema.Name) schema.Name {
		for _, r := range next.Renames {
			if r.From == n {
				return r.To
			}
		}
		return n
	}
	both.New, both.Resync = slices.Clone(p.New), slices.Clone(p.Resync)
	for _, list := range [][]schema.Name{both.New, both.Resync} {
		for i, n := range list {
			list[i] = now(n)
		}
	}
	both.Renames, both.ID, both.Why = next.Renames, next.ID, p.Why+"; "+next.Why
	return &both
}

// without returns the change without a table that is gone.
func (p *Pending) without(table schema.Name, why string) *Pending {
	if p == nil {
		return &Pending{Why: why}
	}
	rest := *p
	gone := func(n schema.Name) bool { return n == table }
	rest.New, rest.Resync = slices.DeleteFunc(slices.Clone(p.New), gone), slices.DeleteFunc(slices.Clone(p.Resync), gone)
	rest.Why += "; " + why
	return &rest
}

// Identities are the tables of a link that need another replica identity than they have.
type Identities struct {
	Full       []schema.Name          `json:"full"`
	InsertOnly []schema.Name          `json:"insert_only"`
	Why        map[schema.Name]string `json:"-"`
}

// A Choice says what of a database moves, and how: what a playbook says of it.
type Choice struct {
	Filter schema.Filter
	Rules  map[string]transform.Rule // by table, see [transform.Compile]
	// InsertsOnly leaves tables without a key as they are and moves only their inserts.
	InsertsOnly bool
}

// Read reads what a link would find at its origin, over a session that shows one snapshot: a table must
// not be written anew between its columns and its files. Compile says what becomes of it.
func Read(ctx context.Context, conn *pgx.Conn, filter schema.Filter) (*Plan, error) {
	var p Plan
	var err error
	if p.Tables, err = inspect.Tables(ctx, conn, filter); err != nil {
		return nil, err
	}
	if p.Sequences, err = inspect.Sequences(ctx, conn, filter); err != nil {
		return nil, err
	}
	var names []schema.Name
	for i := range p.Tables {
		if p.Tables[i].Parent == nil {
			names = append(names, p.Tables[i].Name)
		}
	}
	leaves, err := inspect.Leaves(ctx, conn, names)
	if err != nil {
		return nil, err
	}
	p.Files = map[uint32]uint32{}
	for _, list := range leaves {
		for _, l := range list {
			p.Files[l.OID] = l.File
		}
	}
	indexes, err := inspect.Indexes(ctx, conn, names)
	if err != nil {
		return nil, err
	}
	p.Indexes = map[string]bool{}
	for _, x := range indexes {
		p.Indexes[x.SQL] = true
	}
	return &p, nil
}

// Compile makes the mappings of the tables that were read. conn tells the types of expressions.
func (p *Plan) Compile(ctx context.Context, conn *pgx.Conn, c Choice) (err error) {
	if p.Mappings, err = transform.Compile(p.Tables, c.Rules, describer(ctx, conn)); err != nil {
		return err
	}
	p.Identities = needs(p.Mappings, p.Tables, c.InsertsOnly)
	return nil
}

// describer asks a database for the types of expressions.
func describer(ctx context.Context, conn *pgx.Conn) transform.Describe {
	return func(table schema.Name, expr string) (schema.Type, error) {
		return inspect.Describe(ctx, conn, table, expr)
	}
}

// Inverse returns the plan of the way back, or why it would lose data.
func (p *Plan) Inverse(insertsOnly bool) (back Plan, lossy []string) {
	for i := range p.Mappings {
		inverse, err := p.Mappings[i].Inverse()
		if e, ok := errors.AsType[*transform.LossyError](err); ok {
			for _, reason := range e.Reasons {
				lossy = append(lossy, e.Table.Display()+": "+reason)
			}
			continue
		}
		back.Mappings = append(back.Mappings, inverse)
	}
	if len(lossy) > 0 {
		return Plan{}, lossy
	}
	back.Identities = needs(back.Mappings, p.Tables, insertsOnly)
	return back, nil
}

// Mapping returns the mapping of an origin's table, nil for none.
func (p *Plan) Mapping(table schema.Name) *transform.Mapping {
	if i := slices.IndexFunc(p.Mappings, func(m transform.Mapping) bool { return m.Source.Name == table }); i >= 0 {
		return &p.Mappings[i]
	}
	return nil
}

// Moved lists the moved tables by their names on each side.
func (p *Plan) Moved() (origin, destination []schema.Name) {
	for i := range p.Mappings {
		origin = append(origin, p.Mappings[i].Source.Name)
		destination = append(destination, p.Mappings[i].Target)
	}
	return origin, destination
}

// StoppedAt returns the names, of now and of before, of the table whose DDL the link stands in front of;
// none when it does not.
func (p *Plan) StoppedAt() []schema.Name {
	m := p.Mapping(p.Stopped)
	if m == nil {
		return nil
	}
	names := append([]schema.Name{m.Source.Name}, m.Former...)
	for _, r := range p.Renames {
		if r.From == m.Source.Name {
			names = append(names, r.To)
		}
	}
	return names
}

// replace returns a plan in which a table and its mapping are others; a new one is added.
func (p *Plan) replace(name schema.Name, t schema.Table, m transform.Mapping) *Plan {
	next := *p
	next.Tables, next.Mappings = slices.Clone(p.Tables), slices.Clone(p.Mappings)
	if i := slices.IndexFunc(next.Tables, func(o schema.Table) bool { return o.Name == name }); i >= 0 {
		next.Tables[i] = t
	} else {
		next.Tables = append(next.Tables, t)
	}
	if i := slices.IndexFunc(next.Mappings, func(o transform.Mapping) bool { return o.Source.Name == name }); i >= 0 {
		next.Mappings[i] = m
	} else {
		next.Mappings = append(next.Mappings, m)
	}
	return &next
}

// needs sorts out which tables cannot be followed with the replica identity they have. tables holds
// their partitions: what a partition logs, and whether PostgreSQL lets the application update a
// published one at all, is decided by the partition's own identity.
func needs(mappings []transform.Mapping, tables []schema.Table, insertsOnly bool) Identities {
	ids := Identities{Why: map[schema.Name]string{}}
	for i := range mappings {
		m := &mappings[i]
		full, why := transform.NeedsFull(m)
		keyless := len(m.Source.IdentKey) == 0 && m.Source.Identity != schema.IdentityFull
		if !full && keyless {
			full, why = true, "it has no primary key that finds a row"
		}
		if odd := oddPartition(&m.Source, tables); odd != nil && !full {
			full, why, keyless = true, "its partition "+odd.Name.Display()+" has another replica identity", len(odd.IdentKey) == 0
		}
		switch {
		case !full || m.Source.Identity == schema.IdentityFull && oddPartition(&m.Source, tables) == nil:
		case keyless && insertsOnly:
			ids.InsertOnly = append(ids.InsertOnly, m.Source.Name)
			ids.Why[m.Source.Name] = why
		default:
			ids.Full = append(ids.Full, m.Source.Name)
			ids.Why[m.Source.Name] = why
		}
	}
	return ids
}

// oddPartition returns a partition of the table that does not log what the table's own replica
// identity says, or nil.
func oddPartition(root *schema.Table, tables []schema.Table) *schema.Table {
	if root.Kind != schema.Partitioned {
		return nil
	}
	key := slices.Sorted(slices.Values(root.IdentKey))
	for i := range tables {
		t := &tables[i]
		switch {
		case t.Parent == nil || *t.Parent != root.Name || t.Identity == schema.IdentityFull:
		case t.Kind == schema.Partitioned:
			below := *root
			below.Name = t.Name
			if odd := oddPartition(&below, tables); odd != nil {
				return odd
			}
		case root.Identity == schema.IdentityFull || !slices.Equal(slices.Sorted(slices.Values(t.IdentKey)), key):
			return t
		}
	}
	return nil
}

// Of says how changes of a table find their row, and why where that is not as the table has it.
func (ids *Identities) Of(t *schema.Table) (what, why string) {
	switch {
	case slices.Contains(ids.InsertOnly, t.Name):
		return "inserts only", ids.Why[t.Name]
	case slices.Contains(ids.Full, t.Name):
		return "full, set by Ficus", ids.Why[t.Name]
	}
	switch t.Identity {
	case schema.IdentityDefault:
		return "primary key", ""
	case schema.IdentityIndex:
		return "index", ""
	case schema.IdentityFull:
		return "full", ""
	case schema.IdentityNothing:
	}
	return "nothing", ""
}
