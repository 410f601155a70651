package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
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
func (f *follower) emptied(v *view, m *transform.Mapping) error {
	if m.Source.Kind != schema.Partitioned || v.plan.Files == nil {
		return nil
	}
	for _, l := range v.leaves[m.Source.Name] {
		file, known := v.plan.Files[l.OID]
		if !known || file == l.File {
			continue
		}
		w := warning{
			object: l.Name.Display(), check: "partition-rewritten",
			message: fmt.Sprintf("the partition was truncated or written anew (file %d); a TRUNCATE of it alone is not in the stream", l.File),
		}
		if f.watch.warned[w] {
			continue
		}
		if err := f.engine.verifier.unprove(); err != nil {
			return err
		}
		f.engine.migration.Unprove("partition " + l.Name.Display() + " was truncated or written anew")
		f.warn(w.object, w.check, w.message, "ficus verify "+f.engine.job.playbook.Name)
	}
	return nil
}

// repartition follows partitions that came or went: rows that came or went with them are not in the
// stream.
func (f *follower) repartition(ctx context.Context, v *view, m *transform.Mapping, come []inspect.Leaf, gone []schema.Table) error {
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
	told := f.engine.current().Told == mark
	next := *f.engine.current()
	next.Tables = v.within(m.Source.Name, next.Tables)
	next.Mappings = slices.DeleteFunc(slices.Clone(next.Mappings), func(o transform.Mapping) bool { // moved by itself until now
		return slices.ContainsFunc(come, func(l inspect.Leaf) bool { return l.OID == o.Source.OID })
	})
	next.invert()
	next.measure(f.engine.job.playbook.Follow.NoReplicaIdentity)
	v.remember(&next, &evolve.Evolution{Table: m.Source})
	next.Told = ""

	copyAnew := (filled || len(gone) > 0)
	if copyAnew && !f.safe() && !told {
		marked := *f.engine.current()
		marked.Told = mark
		if err := f.engine.replace(f.store, &marked); err != nil {
			return err
		}
		return f.refuse(m.Source.Name, what+"; rows that came or went with it are not in the stream",
			"do the same on the target if its table is partitioned, too, then resume, which copies the table anew: ficus resume "+f.engine.job.playbook.Name+"; with follow.ddl: safe (--ddl safe) Ficus does this by itself")
	}
	if f.safe() {
		if _, err := f.makePartitions(ctx, m, come); err != nil {
			return hint.Wrap(err, "make the partition on the target, then resume: ficus resume %s", f.engine.job.playbook.Name)
		}
		detached, err := f.detachPartitions(ctx, m, gone)
		if err != nil {
			return hint.Wrap(err, "detach the partition on the target, then resume: ficus resume %s", f.engine.job.playbook.Name)
		}
		copyAnew = filled || detached < len(gone)
	} else if !copyAnew {
		f.warn(m.Source.Name.Display(), "new-partition", what+", which is empty", "make it on the target, if its table is partitioned, too")
	}
	if copyAnew || len(gone) > 0 {
		next.Pending = &pending{Why: "table " + mark}
		if copyAnew {
			next.Pending.Resync = []schema.Name{m.Source.Name}
		}
	}
	if err := f.engine.replace(f.store, &next); err != nil {
		return err
	}
	f.tell("follows " + mark)
	if next.Pending == nil {
		return f.engine.sides[migrate.Target].Arm(ctx)
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
func (f *follower) cameWithRows(ctx context.Context, l inspect.Leaf) (bool, error) {
	conn, err := f.engine.job.source.Connect(ctx, "ddl")
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

const partitionsSQL = `
WITH RECURSIVE tree (oid, parent, level) AS (
	SELECT to_regclass($1)::oid, 0::oid, 0
	UNION ALL
	SELECT i.inhrelid, i.inhparent, t.level + 1 FROM tree t
	JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
	JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition
)
SELECT n.nspname, c.relname, pg_catalog.format('CREATE TABLE %I.%I PARTITION OF %I.%I %s%s', n.nspname, c.relname, pn.nspname, p.relname,
	pg_catalog.pg_get_expr(c.relpartbound, c.oid),
	CASE WHEN c.relkind = 'p' THEN ' PARTITION BY ' || pg_catalog.pg_get_partkeydef(c.oid) ELSE '' END),
	pg_catalog.format('ALTER TABLE %I.%I ATTACH PARTITION %I.%I %s', pn.nspname, p.relname, n.nspname, c.relname, pg_catalog.pg_get_expr(c.relpartbound, c.oid))
FROM tree t
JOIN pg_catalog.pg_class c ON c.oid = t.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class p ON p.oid = t.parent JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
ORDER BY t.level, 1, 2`

// makePartitions makes the partitions that a target table of the same structure lacks, and returns
// how many.
func (f *follower) makePartitions(ctx context.Context, m *transform.Mapping, come []inspect.Leaf) (int, error) {
	if len(come) == 0 || m.Reshaped() {
		return 0, nil
	}
	source, err := f.engine.job.source.Connect(ctx, "ddl")
	if err != nil {
		return 0, err
	}
	defer source.Close(context.WithoutCancel(ctx))
	rows, err := source.Query(ctx, partitionsSQL, m.Source.Name.String())
	if err != nil {
		return 0, err
	}
	type partition struct {
		name           schema.Name
		create, attach string
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p partition, err error) {
		return p, row.Scan(&p.name.Schema, &p.name.Name, &p.create, &p.attach)
	})
	if err != nil {
		return 0, fmt.Errorf("read the partitions of %s: %w", m.Source.Name.Display(), err)
	}
	target, err := f.engine.job.target.Connect(ctx, "ddl")
	if err != nil {
		return 0, err
	}
	defer target.Close(context.WithoutCancel(ctx))
	var partitioned bool
	err = target.QueryRow(ctx, `SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = to_regclass($1)`, m.Target.String()).Scan(&partitioned)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && !partitioned {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	made := 0
	for _, p := range all {
		var attached *bool
		err := target.QueryRow(ctx, `SELECT (SELECT relispartition FROM pg_catalog.pg_class WHERE oid = to_regclass($1))`, p.name.String()).Scan(&attached)
		sql := p.create
		switch {
		case err != nil:
			return made, err
		case attached != nil && *attached:
			continue
		case attached != nil: // a table that moved by itself until now
			sql = p.attach
		}
		if err := runDDL(ctx, target, []evolve.Statement{{SQL: sql}}); err != nil {
			return made, fmt.Errorf("partition %s: %w", p.name.Display(), err)
		}
		f.tell("followed DDL: " + sql)
		made++
	}
	return made, nil
}

// detachPartitions detaches those partitions of the target whose namesakes are gone, with their rows,
// and returns how many. The tables stay: whether their rows are wanted is nothing to decide here.
func (f *follower) detachPartitions(ctx context.Context, m *transform.Mapping, gone []schema.Table) (int, error) {
	if len(gone) == 0 || m.Reshaped() {
		return 0, nil
	}
	target, err := f.engine.job.target.Connect(ctx, "ddl")
	if err != nil {
		return 0, err
	}
	defer target.Close(context.WithoutCancel(ctx))
	done := 0
	for _, t := range gone {
		var sql *string
		err := target.QueryRow(ctx, `SELECT (SELECT format('ALTER TABLE %I.%I DETACH PARTITION %I.%I', pn.nspname, p.relname, n.nspname, c.relname)
			FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.oid
			JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
			WHERE c.oid = to_regclass($1) AND c.relispartition)`, t.Name.String()).Scan(&sql)
		if err != nil {
			return done, err
		}
		if sql == nil {
			continue
		}
		if err := runDDL(ctx, target, []evolve.Statement{{SQL: *sql}}); err != nil {
			return done, fmt.Errorf("partition %s: %w", t.Name.Display(), err)
		}
		f.tell("followed DDL: " + *sql)
		done++
	}
	return done, nil
}

// madePartitions looks for partitions that the target lacks after it refused a row for want of one,
// and reports whether it made some: then the link may go on.
func (f *follower) madePartitions(ctx context.Context, err error) (bool, error) {
	if !f.safe() || pg.Code(err) != codeNoPartition {
		return false, nil
	}
	v, lookErr := f.look(ctx)
	if lookErr != nil {
		return false, lookErr
	}
	made := 0
	for i := range v.plan.Mappings {
		m := &v.plan.Mappings[i]
		come, _ := v.partitions(m)
		n, makeErr := f.makePartitions(ctx, m, come)
		if makeErr != nil {
			return false, hint.Wrap(makeErr, "make the partition on the target, then resume: ficus resume %s", f.engine.job.playbook.Name)
		}
		made += n
	}
	return made > 0, nil
}
