package ddl

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/dump"
	"github.com/ficus-migrate/ficus/schema/evolve"
	"github.com/ficus-migrate/ficus/transform"
)

// newTables lists the tables that the playbook selects and that the blueprint does not know.
func (f *Follower) newTables(v *view) []schema.Table {
	match, err := f.cfg.Choice().Filter.Compile()
	if err != nil { // it was compiled when the migration began
		return nil
	}
	var fresh []schema.Table
	for _, t := range v.tables {
		movable, _ := transform.Movable(&t)
		if t.Parent != nil || !movable || !match.Match(t.Name) {
			continue
		}
		if slices.ContainsFunc(v.plan.Tables, func(o schema.Table) bool { return o.OID == t.OID || o.Name == t.Name }) {
			continue
		}
		// A slot reads WAL from before the publication of inserts, which cannot come later.
		if f.cfg.Choice().InsertsOnly && len(t.IdentKey) == 0 && t.Identity != schema.IdentityFull && len(v.plan.InsertOnly) == 0 {
			f.warn(Warning{t.Name.Display(), "new-table", "the table is new at the source, has no key, and does not move", "give it a primary key or REPLICA IDENTITY FULL"})
			continue
		}
		fresh = append(fresh, t)
	}
	return fresh
}

// takeIn lets new tables move, too.
func (f *Follower) takeIn(ctx context.Context, v *view, fresh []schema.Table) error {
	next := f.cfg.Plans.Current()
	var names []schema.Name
	var err error
	for i := range fresh {
		m, err := f.compile(ctx, &fresh[i], nil)
		if err != nil {
			return err
		}
		next = next.replace(fresh[i].Name, fresh[i], *m)
		names = append(names, fresh[i].Name)
		v.remember(next, &evolve.Evolution{Table: fresh[i]})
	}
	f.sort(next)
	next.noteIndexes(v, names)
	next.Pending = &Pending{New: names, Resync: names, Why: display(names) + ", new at the source"}
	if next.Pending.Since, err = f.targetClock(ctx); err != nil {
		return err
	}
	if err := f.cfg.Plans.Replace(next); err != nil {
		return err
	}
	f.tell(ctx, "takes in "+next.Pending.Why)
	return f.finish(ctx)
}

// targetClock reads the target's clock.
func (f *Follower) targetClock(ctx context.Context) (now time.Time, err error) {
	conn, err := f.cfg.Destination.Connect(ctx, "ddl")
	if err != nil {
		return time.Time{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return now, conn.QueryRow(ctx, `SELECT now()`).Scan(&now)
}

// makeTables makes new tables on the target, those that its operator has not made yet.
func (f *Follower) makeTables(ctx context.Context, names []schema.Name) error {
	missing, err := f.missing(ctx, names)
	if err != nil || len(missing) == 0 {
		return err
	}
	if !f.cfg.MakesTables {
		return f.refuse(missing[0], "the table is new, and the playbook leaves the target's tables to you", "make it on the target, then resume: ficus resume "+f.cfg.Migration)
	}
	d, err := f.dump(ctx, missing)
	if err == nil {
		err = d.PreData(ctx, f.cfg.Destination)
	}
	if err != nil {
		return hint.Wrap(fmt.Errorf("new at the source: %s: %w", display(missing), err), "make what is missing on the target by hand, then resume: ficus resume %s", f.cfg.Migration)
	}
	return nil
}

// buildTables builds indexes, constraints and the rest of new tables that makeTables has made.
func (f *Follower) buildTables(ctx context.Context, p *Pending) error {
	if len(p.New) == 0 {
		return nil
	}
	conn, err := f.cfg.Destination.Connect(ctx, "ddl")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var ours []schema.Name
	for _, n := range p.New {
		var built bool
		err := conn.QueryRow(ctx, `SELECT to_regclass('ficus.built') IS NOT NULL`).Scan(&built)
		if err == nil && built {
			err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM ficus.built WHERE object = $1 AND at >= $2)`, "table "+n.Display(), p.Since).Scan(&built)
		}
		if err != nil {
			return err
		}
		if built {
			ours = append(ours, n)
		}
	}
	if len(ours) == 0 {
		return nil
	}
	d, err := f.dump(ctx, ours)
	if err == nil {
		err = d.Indexes(ctx, f.cfg.Destination, nil)
	}
	if err == nil {
		err = d.Final(ctx, f.cfg.Destination, nil)
	}
	if err != nil {
		return fmt.Errorf("new at the source: %s: %w", display(ours), err)
	}
	return nil
}

// dump reads the source's schema of some tables.
func (f *Follower) dump(ctx context.Context, names []schema.Name) (*dump.Dump, error) {
	tools, err := f.cfg.Tools(ctx)
	if err != nil {
		return nil, err
	}
	var include []string
	for _, n := range names {
		include = append(include, n.String())
	}
	return dump.Open(ctx, dump.Config{Source: f.cfg.Origin, Tools: tools, Dir: f.cfg.Dir, Log: f.cfg.Log, Filter: schema.Filter{Include: include}})
}

// missing lists the tables that the target does not have.
func (f *Follower) missing(ctx context.Context, names []schema.Name) ([]schema.Name, error) {
	if len(names) == 0 {
		return nil, nil
	}
	conn, err := f.cfg.Destination.Connect(ctx, "ddl")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var list []schema.Name
	for _, n := range names {
		var there bool
		if err := conn.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, n.String()).Scan(&there); err != nil {
			return nil, err
		}
		if !there {
			list = append(list, n)
		}
	}
	return list, nil
}

func display(names []schema.Name) string {
	list := make([]string, len(names))
	for i, n := range names {
		list[i] = n.Display()
	}
	return strings.Join(list, ", ")
}
