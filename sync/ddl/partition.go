package ddl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/evolve"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

// codeNoPartition is the code of a row for which a partitioned table has no partition.
const codeNoPartition = "23514"

// rootOf returns the table that a partition is a part of at last, or its own name.
func rootOf(tables []schema.Table, t *schema.Table) schema.Name {
	for t.Parent != nil {
		i := slices.IndexFunc(tables, func(o schema.Table) bool { return o.Name == *t.Parent })
		if i < 0 {
			break
		}
		t = &tables[i]
	}
	return t.Name
}

// partitions lists the partitions with rows of a moved table that came, and that are gone.
func (v *view) partitions(m *transform.Mapping) (come []inspect.Leaf, gone []schema.Table) {
	if m.Source.Kind != schema.Partitioned {
		return nil, nil
	}
	leaves := v.leaves[m.Source.Name]
	for _, l := range leaves {
		known := func(t schema.Table) bool {
			return t.OID == l.OID && t.Parent != nil && rootOf(v.plan.Tables, &t) == m.Source.Name
		}
		if !slices.ContainsFunc(v.plan.Tables, known) {
			come = append(come, l)
		}
	}
	for i := range v.plan.Tables {
		t := &v.plan.Tables[i]
		if t.Parent == nil || t.Kind != schema.Ordinary || rootOf(v.plan.Tables, t) != m.Source.Name {
			continue
		}
		if !slices.ContainsFunc(leaves, func(l inspect.Leaf) bool { return l.OID == t.OID }) {
			gone = append(gone, *t)
		}
	}
	return come, gone
}

// emptied notices a partition whose rows were written anew: by VACUUM FULL, which changes nothing, or
// by TRUNCATE of the partition alone, which is not in the stream of its table. As nobody can tell which,
// everything has to be compared again before the switch.
func (f *Follower) emptied(v *view, m *transform.Mapping) (found bool, err error) {
	if m.Source.Kind != schema.Partitioned || v.plan.Files == nil {
		return false, nil
	}
	for _, l := range v.leaves[m.Source.Name] {
		file, known := v.plan.Files[l.OID]
		if !known || file == l.File {
			continue
		}
		w := Warning{
			Object: l.Name.Display(), Check: "partition-rewritten", Fix: "ficus verify " + f.cfg.Migration,
			Message: fmt.Sprintf("the partition was truncated or written anew (file %d); a TRUNCATE of it alone is not in the stream", l.File),
		}
		if f.watch.warned[w] {
			continue
		}
		found = true
		if err := f.cfg.Host.Unprove("partition " + l.Name.Display() + " was truncated or written anew"); err != nil {
			return true, err
		}
		f.warn(w)
	}
	return found, nil
}

// repartition follows partitions that came or went: rows that came or went with them are not in the
// stream.
func (f *Follower) repartition(ctx context.Context, v *view, m *transform.Mapping, come []inspect.Leaf, gone []schema.Table) error {
	var names []string
	filled := false
	for _, l := range come {
		names = append(names, "partition "+l.Name.Display()+" came")
		rows, err := f.cameWithRows(ctx, l)
		if err != nil {
			return err
		}
		filled = filled || rows
	}
	for _, t := range gone {
		names = append(names, "partition "+t.Name.Display()+" is gone")
	}
	what := strings.Join(names, ", ")
	mark := m.Source.Name.Display() + ": " + what
	told := f.cfg.Plans.Current().Told == mark
	next := *f.cfg.Plans.Current()
	next.Tables = v.within(m.Source.Name, next.Tables)
	next.Mappings = slices.DeleteFunc(slices.Clone(next.Mappings), func(o transform.Mapping) bool { // moved by itself until now
		return slices.ContainsFunc(come, func(l inspect.Leaf) bool { return l.OID == o.Source.OID })
	})
	f.sort(&next)
	v.remember(&next, &evolve.Evolution{Table: m.Source})
	next.Told, next.Stopped = "", schema.Name{}

	copyAnew := (filled || len(gone) > 0)
	if copyAnew && !f.cfg.Safe && !told {
		marked := *f.cfg.Plans.Current()
		marked.Told, marked.Stopped = mark, m.Source.Name
		if err := f.cfg.Plans.Replace(&marked); err != nil {
			return err
		}
		return f.refuse(m.Source.Name, what+"; rows that came or went with it are not in the stream",
			"do the same on the target if its table is partitioned, too, then resume, which copies the table anew: ficus resume "+f.cfg.Migration+"; with follow.ddl: safe (--ddl safe) Ficus does this by itself")
	}
	if f.cfg.Safe {
		if _, err := f.makePartitions(ctx, m, come); err != nil {
			return hint.Wrap(err, "make the partition on the target, then resume: ficus resume %s", f.cfg.Migration)
		}
		detached, err := f.detachPartitions(ctx, m, gone)
		if err != nil {
			return hint.Wrap(err, "detach the partition on the target, then resume: ficus resume %s", f.cfg.Migration)
		}
		copyAnew = filled || detached < len(gone)
	} else if !copyAnew {
		f.warn(Warning{m.Source.Name.Display(), "new-partition", what + ", which is empty", "make it on the target, if its table is partitioned, too"})
	}
	if copyAnew || len(gone) > 0 {
		next.Pending = &Pending{Why: "table " + mark}
		if copyAnew {
			next.Pending.Resync = []schema.Name{m.Source.Name}
		}
	}
	if err := f.cfg.Plans.Replace(&next); err != nil {
		return err
	}
	f.tell(ctx, "follows "+mark)
	if next.Pending == nil {
		return f.cfg.Host.Arm(ctx)
	}
	return f.finish(ctx)
}

// within returns tables with those under a root as the view has them.
func (v *view) within(root schema.Name, tables []schema.Table) []schema.Table {
	var under []schema.Table
	for _, t := range v.tables {
		if t.Parent != nil && rootOf(v.tables, &t) == root {
			under = append(under, t)
		}
	}
	next := slices.DeleteFunc(slices.Clone(tables), func(t schema.Table) bool {
		return t.Parent != nil && rootOf(tables, &t) == root || slices.ContainsFunc(under, func(u schema.Table) bool { return u.OID == t.OID })
	})
	return append(next, under...)
}

// cameWithRows reports whether a partition may hold rows that it had before it was one. In a
// partition that was created as such, in one transaction, only rows of that transaction are in
// doubt; a table that was attached is in doubt as a whole.
func (f *Follower) cameWithRows(ctx context.Context, l inspect.Leaf) (bool, error) {
	conn, err := f.cfg.Origin.Connect(ctx, "ddl")
	if err != nil {
		return false, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var rows bool
	err = conn.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM `+l.Name.String()+` r WHERE age(r.xmin) >= age(i.xmin) OR i.xmin::text <> a.xmin::text)
		FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_attribute a ON a.attrelid = i.inhrelid AND a.attname = 'ctid'
		WHERE i.inhrelid = $1`, l.OID).Scan(&rows)
	if pg.Code(err) == pg.CodeUndefinedTable || errors.Is(err, pgx.ErrNoRows) { // gone again: the next look tells
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("partition %s: %w", l.Name.Display(), err)
	}
	return rows, nil
}
