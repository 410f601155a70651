package ddl

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/manifest"
	"github.com/ficus-migrate/ficus/transform"
)

// A Rename is a table that has another name at the origin now, and what that makes of its name at the
// destination. Tables are known by their OIDs: two of them may have swapped their names.
type Rename struct {
	From       schema.Name `json:"from"`
	To         schema.Name `json:"to"`
	TargetFrom schema.Name `json:"target_from"`
	TargetTo   schema.Name `json:"target_to"`
	Target     uint32      `json:"target"` // OID at the destination
}

func (r Rename) String() string { return r.From.Display() + " is now called " + r.To.Display() }

// renamed lists the moved tables that have other names in a view than in its plan.
func (v *view) renamed() []Rename {
	var list []Rename
	for i := range v.plan.Mappings {
		known := &v.plan.Mappings[i]
		if t := v.table(known.Source.OID); t != nil && t.Name != known.Source.Name && t.Parent == nil {
			list = append(list, Rename{From: known.Source.Name, To: t.Name, TargetFrom: known.Target})
		}
	}
	return list
}

// rename takes the new names of tables, once their operator has been told. Rows are applied to a table
// by its OID, so it does not matter that the stream may come to the new names later, or to others in
// between.
func (f *Follower) rename(ctx context.Context, v *view, list []Rename) error {
	told := slices.Equal(names(list), names(v.plan.Renames)) && v.plan.Told == markOf(list)
	next, err := f.renamedPlan(ctx, v, list)
	if err != nil {
		return err
	}
	if told { // what the tables of the destination were when the operator was told
		for i := range list {
			list[i].Target = v.plan.Renames[i].Target
		}
	} else {
		return f.tellRenames(ctx, list)
	}
	next.Told, next.Stopped, next.Renames = "", schema.Name{}, nil
	next.Pending = next.Pending.and(Pending{ID: rand.Text(), Renames: list, Why: "table " + markOf(list)})
	if err := f.cfg.Plans.Replace(next); err != nil {
		return err
	}
	f.tell(ctx, "takes the new name: "+markOf(list))
	return f.finish(ctx)
}

// names are renames without what is found out about them later.
func names(list []Rename) []Rename {
	bare := slices.Clone(list)
	for i := range bare {
		bare[i].Target, bare[i].TargetTo = 0, schema.Name{}
	}
	return bare
}

func markOf(list []Rename) string {
	var parts []string
	for _, r := range list {
		parts = append(parts, r.String())
	}
	return strings.Join(parts, ", ")
}

// renamedPlan is the plan with the new names, and completes the list.
func (f *Follower) renamedPlan(ctx context.Context, v *view, list []Rename) (*Plan, error) {
	match, err := f.cfg.Choice().Filter.Compile()
	if err != nil {
		return nil, err
	}
	next := *v.plan
	next.Tables, next.Mappings = slices.Clone(next.Tables), slices.Clone(next.Mappings)
	for i := range list {
		r := &list[i]
		if !match.Match(r.To) {
			return nil, f.refuse(r.From, "it is now called "+r.To.Display()+", which select does not choose", "rename it back at the source and resume; or "+f.giveUp())
		}
		at := slices.IndexFunc(v.plan.Mappings, func(m transform.Mapping) bool { return m.Source.Name == r.From })
		known := &v.plan.Mappings[at]
		t := known.Source
		t.Name = r.To
		m, err := f.compile(ctx, &t, known)
		if err != nil {
			return nil, f.refuseRule(known.Source.Name, r.String(), markOf(list), err)
		}
		m.Former = append(slices.Clone(known.Former), known.Source.Name)
		r.TargetTo = m.Target
		next.Mappings[at] = *m
		if j := slices.IndexFunc(v.plan.Tables, func(o schema.Table) bool { return o.OID == t.OID }); j >= 0 {
			next.Tables[j] = t
		}
	}
	for i := range next.Mappings {
		m := &next.Mappings[i]
		if slices.ContainsFunc(next.Mappings[:i], func(o transform.Mapping) bool { return o.Target == m.Target }) {
			return nil, f.refuse(m.Source.Name, "two tables would be called "+m.Target.Display()+" on the target", "rename one of them at the source, and resume")
		}
	}
	for _, r := range list { // partitions name their parents
		next.Tables = v.within(r.To, next.Tables)
	}
	next.Sequences = v.sequences
	next.noteRenamed(v, list)
	f.sort(&next)
	return &next, nil
}

// noteRenamed marks indexes and foreign keys as known of which only the names of tables changed.
func (p *Plan) noteRenamed(v *view, list []Rename) {
	if p.Indexes == nil {
		return
	}
	var back []string
	for _, r := range list {
		back = append(back, r.To.Display(), r.From.Display())
	}
	was := strings.NewReplacer(back...)
	known := map[string]bool{}
	for sql := range p.Indexes {
		known[sql] = true
	}
	for _, x := range v.indexes {
		if p.Indexes[was.Replace(x.SQL)] {
			known[x.SQL] = true
		}
	}
	p.Indexes = known
}

// tellRenames stops the link, and notes which tables the destination has now.
func (f *Follower) tellRenames(ctx context.Context, list []Rename) error {
	conn, err := f.cfg.Destination.Connect(ctx, "ddl")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var moves []string
	for i := range list {
		r := &list[i]
		err := conn.QueryRow(ctx, `SELECT coalesce(coalesce(to_regclass($1), to_regclass($2))::oid, 0)`, r.TargetFrom.String(), r.TargetTo.String()).Scan(&r.Target)
		if err != nil {
			return err
		}
		if r.TargetFrom != r.TargetTo {
			moves = append(moves, r.TargetFrom.Display()+" to "+r.TargetTo.Display())
		}
	}
	told := *f.cfg.Plans.Current()
	told.Told, told.Stopped, told.Renames = markOf(list), list[0].From, list
	if err := f.cfg.Plans.Replace(&told); err != nil {
		return err
	}
	advice := "resume, and the migration takes the new name: ficus resume " + f.cfg.Migration + " (or the same command again)"
	if len(moves) > 0 {
		advice += "; it renames on the target, too, unless you have done that: " + strings.Join(moves, ", ")
	}
	return f.refuse(list[0].From, markOf(list), advice+"; or rename it back at the source, and resume")
}

// carryRenames brings the names at the destination, and what it remembers under them, up to date.
func (f *Follower) carryRenames(ctx context.Context, p *Pending) error {
	if len(p.Renames) == 0 {
		return nil
	}
	conn, err := f.cfg.Destination.Connect(ctx, "ddl")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	pairs := map[schema.Name]schema.Name{}
	for _, r := range p.Renames {
		pairs[r.From] = r.To
	}
	var done []string
	err = patiently(ctx, conn, func(tx pgx.Tx) error {
		if done, err = renameTables(ctx, tx, p.Renames); err != nil {
			return err
		}
		return manifest.Rename(ctx, tx, f.cfg.Link.Name(), p.ID, pairs)
	})
	if err != nil {
		return err
	}
	for _, sql := range done {
		f.tell(ctx, "followed DDL: "+sql)
	}
	f.cfg.Link.Renamed(pairs)
	return nil
}

// renameTables gives the destination's tables their new names, by way of names that nobody has.
func renameTables(ctx context.Context, tx pgx.Tx, list []Rename) (done []string, err error) {
	var all []string
	for step := range 2 {
		for _, r := range list {
			var now schema.Name
			err := tx.QueryRow(ctx, `SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1`, r.Target).
				Scan(&now.Schema, &now.Name)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil, fmt.Errorf("table %s: %w on the target: it is not there any more", r.TargetFrom.Display(), apply.ErrSchemaChanged)
			}
			if err != nil {
				return nil, err
			}
			to := r.TargetTo
			if now == to {
				continue
			}
			taken := slices.ContainsFunc(list, func(o Rename) bool { return o.TargetFrom == to })
			switch {
			case step == 0 && taken:
				to.Name = fmt.Sprintf("ficus_renamed_%d", r.Target)
			case step == 0:
				continue
			}
			all = append(all, moveSQL(now, to)...)
			for _, sql := range moveSQL(now, to) {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return nil, fmt.Errorf("%s: %w", sql, err)
				}
			}
		}
	}
	return all, nil
}

// moveSQL are the statements that give a table another name, in another schema perhaps.
func moveSQL(from, to schema.Name) []string {
	var sql []string
	if from.Schema != to.Schema {
		sql = append(sql, "CREATE SCHEMA IF NOT EXISTS "+schema.QuoteIdent(to.Schema), "ALTER TABLE "+from.String()+" SET SCHEMA "+schema.QuoteIdent(to.Schema))
		from.Schema = to.Schema
	}
	if from.Name != to.Name {
		sql = append(sql, "ALTER TABLE "+from.String()+" RENAME TO "+schema.QuoteIdent(to.Name))
	}
	return sql
}

// misfit deals with a destination whose tables do not fit, where that is because somebody gave them
// their new names ahead of the link.
func (f *Follower) misfit(ctx context.Context, refusal error) error {
	v, err := f.look(ctx)
	if err != nil {
		return err
	}
	if list := v.renamed(); len(list) > 0 {
		return f.rename(ctx, v, list)
	}
	return refusal
}

// seen notes a name under which the stream shows a table, though the catalog has another by now.
func (f *Follower) seen(ctx context.Context, change *apply.SchemaChange) error {
	plan := f.cfg.Plans.Current()
	known := plan.Mapping(change.Table)
	m := *known
	m.Former = append(slices.Clone(known.Former), schema.Name{Schema: change.Relation.Namespace, Name: change.Relation.Name})
	if len(known.Former) == 0 { // its first name stays the first
		m.Former = append([]schema.Name{known.Source.Name}, m.Former...)
	}
	next := plan.replace(known.Source.Name, known.Source, m)
	next.Pending = &Pending{Why: "table " + known.Source.Name.Display() + " was called otherwise for a while"}
	if err := f.cfg.Plans.Replace(next); err != nil {
		return err
	}
	return f.finish(ctx)
}
