package ddl

import (
	"context"
	"errors"
	"slices"

	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/evolve"
	"github.com/ficus-migrate/ficus/transform"
)

// AsPlanned is unchanged for all tables, ahead of the first copy.
func (f *Follower) AsPlanned(ctx context.Context) error {
	source, _ := f.cfg.Plans.Current().Moved()
	return f.unchanged(ctx, source, f.cfg.MakesTables)
}

// unchanged makes sure, while nobody can change tables, that they have the shape that their mappings
// were made from: a column that came between the plan and the copy would be taken for one that came
// after the copy. Otherwise it adopts their shape and returns ErrReshaped: the copy is to begin again.
// ours says that the target's tables are Ficus's to alter.
func (f *Follower) unchanged(ctx context.Context, tables []schema.Name, ours bool) error {
	v, err := f.look(ctx)
	if err != nil {
		return err
	}
	for _, t := range tables {
		known := f.cfg.Plans.Current().Mapping(t)
		now, why := v.find(&known.Source)
		if why != "" {
			return f.refuse(t, why, "rename it back at the source, or "+f.giveUp())
		}
		if e := evolve.Compare(&known.Source, nil, now); shapeChanged(e) {
			return f.reshape(ctx, v, known, e, ours)
		}
	}
	return nil
}

// reshape adopts what became of a table ahead of its copy.
func (f *Follower) reshape(ctx context.Context, v *view, known *transform.Mapping, e *evolve.Evolution, ours bool) error {
	s, err := f.step(ctx, v, known, e)
	switch {
	case err != nil:
		return f.refuseRule(known.Source.Name, describe(e), markOfRows(known, e), err)
	case s.needs() != nil && !ours:
		return f.stop(s)
	}
	conn, err := f.cfg.Destination.Connect(ctx, "ddl")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := runDDL(ctx, conn, s.statements); passing(err) {
		return err
	} else if err != nil {
		return f.refuse(known.Source.Name, describe(e)+": the target refused to follow: "+err.Error(), f.adviceHand(s))
	}
	if err := f.cfg.Plans.Replace(s.next); err != nil {
		return err
	}
	f.tell(ctx, "takes table "+s.String()+", ahead of its copy")
	return ErrReshaped
}

// ErrReshaped says that a table changed between the plan and the copy, and that the plan now knows.
var ErrReshaped = errors.New("a table changed at the source just before its copy")

// shapeChanged reports whether a difference concerns the values of rows.
func shapeChanged(e *evolve.Evolution) bool {
	return e.Find(func(d evolve.Difference) bool { return !passive(d.Kind) }) != nil
}

// passive reports whether a difference is one of definition alone.
func passive(k evolve.Kind) bool {
	return slices.Contains([]evolve.Kind{evolve.DefaultChanged, evolve.NullChanged, evolve.GeneratedNew}, k)
}
