package ddl

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/evolve"
	"github.com/ficus-migrate/ficus/schema/inspect"
)

// A view is the source's catalog at one instant, compared with what the blueprint knows.
type view struct {
	plan      *Plan
	tables    []schema.Table
	leaves    map[schema.Name][]inspect.Leaf
	sequences []schema.Sequence
	indexes   []inspect.Index
}

// look reads the source's catalog.
func (f *Follower) look(ctx context.Context) (*view, error) {
	conn, err := f.cfg.Origin.Connect(ctx, "ddl")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	v := &view{plan: f.cfg.Plans.Current()}
	// Tables that the filter chose may be called otherwise by now, so all are read.
	if v.tables, err = inspect.Tables(ctx, conn, schema.Filter{}); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	if v.sequences, err = inspect.Sequences(ctx, conn, f.cfg.Choice().Filter); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	var names []schema.Name
	for i := range v.tables {
		if v.tables[i].Parent == nil {
			names = append(names, v.tables[i].Name)
		}
	}
	if v.leaves, err = inspect.Leaves(ctx, conn, names); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	if v.indexes, err = inspect.Indexes(ctx, conn, names); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	return v, nil
}

// table returns the table with an OID, nil when there is none any more.
func (v *view) table(oid uint32) *schema.Table {
	if i := slices.IndexFunc(v.tables, func(t schema.Table) bool { return t.OID == oid }); i >= 0 {
		return &v.tables[i]
	}
	return nil
}

// find returns what became of a known table, or why it cannot be followed under its name.
func (v *view) find(known *schema.Table) (now *evolve.Source, why string) {
	t := v.table(known.OID)
	switch {
	case t == nil:
		return nil, "it was dropped, or dropped and made again"
	case t.Name != known.Name:
		return nil, "it is now called " + t.Name.Display()
	case t.Parent != nil && known.Parent == nil:
		return nil, "it is now a partition of " + t.Parent.Display()
	case t.Unlogged:
		return nil, "it is unlogged now: its changes are not in the WAL"
	}
	now = &evolve.Source{Table: *t, Missing: map[string]string{}, Uneven: map[string]bool{}, Sequences: map[string]schema.Name{}}
	now.Rewritten = v.plan.Files == nil
	first := true
	for _, l := range v.leaves[t.Name] {
		file, old := v.plan.Files[l.OID]
		if !old { // its rows came, or come, in another way
			continue
		}
		now.Rewritten = now.Rewritten || file != l.File
		for c, value := range l.Missing {
			if was, ok := now.Missing[c]; !first && (!ok || was != value) {
				now.Uneven[c] = true
			}
			now.Missing[c] = value
		}
		for c := range now.Missing {
			if _, ok := l.Missing[c]; !ok {
				now.Uneven[c] = true
			}
		}
		first = false
	}
	for _, s := range v.sequences {
		if s.OwnerTable != nil && *s.OwnerTable == t.Name {
			now.Sequences[s.OwnerColumn] = s.Name
		}
	}
	return now, ""
}

// remember notes in a new blueprint what the catalog says beside the table itself. Where it is ahead
// of the stream, the files of the table stay as they were: what they tell is not all followed yet.
func (v *view) remember(next *Plan, e *evolve.Evolution) {
	next.Sequences = v.sequences
	next.Files = maps.Clone(next.Files)
	if next.Files == nil || e.Ahead {
		return
	}
	for _, l := range v.leaves[e.Table.Name] {
		next.Files[l.OID] = l.File
	}
}

// target reads a table of the target.
func (f *Follower) target(ctx context.Context, name schema.Name) (*evolve.Target, error) {
	conn, err := f.cfg.Destination.Connect(ctx, "ddl")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tables, err := inspect.Tables(ctx, conn, schema.Filter{Include: []string{name.String()}})
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	i := slices.IndexFunc(tables, func(t schema.Table) bool { return t.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("the target has no table %s", name.Display())
	}
	t := &evolve.Target{Table: tables[i], Missing: map[string]string{}}
	leaves, err := inspect.Leaves(ctx, conn, []schema.Name{name})
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	for _, l := range leaves[name] {
		maps.Copy(t.Missing, l.Missing)
	}
	return t, nil
}
