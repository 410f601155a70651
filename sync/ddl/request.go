package ddl

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
)

// errAsked ends a round because of a request.
var errAsked = errors.New("somebody asked for tables to be copied anew")

// Known returns the tables of the given names, which may be those of either side, as the origin calls
// them. The error names the one that the link does not move.
func (f *Follower) Known(names []string) ([]schema.Name, error) {
	plan := f.cfg.Plans.Current()
	var tables []schema.Name
	for _, name := range names {
		t, err := plan.named(name)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(tables, t) {
			tables = append(tables, t)
		}
	}
	return tables, nil
}

// named finds a moved table by what an operator calls it: with or without its schema, as either side has it.
func (p *Plan) named(name string) (schema.Name, error) {
	var found, known []string
	var table schema.Name
	for i := range p.Mappings {
		m := &p.Mappings[i]
		known = append(known, m.Source.Name.Display())
		for _, n := range []schema.Name{m.Source.Name, m.Target} {
			if (n.Display() == name || n.Name == name) && !slices.Contains(found, m.Source.Name.Display()) {
				table, found = m.Source.Name, append(found, m.Source.Name.Display())
			}
		}
	}
	switch len(found) {
	case 0:
		return schema.Name{}, hint.Suggest(fmt.Errorf("table %q is not one that moves", name), name, known)
	case 1:
		return table, nil
	}
	return schema.Name{}, hint.Wrap(fmt.Errorf("table %q is ambiguous", name), "write %s or %s", found[0], found[1])
}

// Wake tells that there may be a new request.
func (f *Follower) Wake() {
	select {
	case f.woken <- struct{}{}:
	default: // one is there already
	}
}

// answer fulfils what was asked for.
func (f *Follower) answer(ctx context.Context) error {
	plan := f.cfg.Plans.Current()
	asks := f.cfg.Requests.Asked()
	if len(asks) == 0 {
		return nil
	}
	next, why := *plan, ""
	var tables []schema.Name
	for _, a := range asks {
		if a.Number <= plan.Taken { // done: the process ended before it could say so
			continue
		}
		next.Taken, why = a.Number, "asked for by "+a.By
		for _, t := range a.Tables {
			if plan.Mapping(t) != nil && !slices.Contains(tables, t) { // it may have gone meanwhile
				tables = append(tables, t)
			}
		}
	}
	if len(tables) > 0 {
		next.Pending = &Pending{Resync: tables, Why: why}
	}
	if next.Taken > plan.Taken {
		if err := f.cfg.Plans.Replace(&next); err != nil {
			return err
		}
		if err := f.finish(ctx); err != nil {
			return err
		}
	}
	f.cfg.Requests.Answered(next.Taken)
	return nil
}
