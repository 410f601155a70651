package ddl

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/evolve"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

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
func (f *Follower) makePartitions(ctx context.Context, m *transform.Mapping, come []inspect.Leaf) (int, error) {
	if len(come) == 0 || m.Reshaped() {
		return 0, nil
	}
	source, err := f.cfg.Origin.Connect(ctx, "ddl")
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
	target, err := f.cfg.Destination.Connect(ctx, "ddl")
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
		f.tell(ctx, "followed DDL: "+sql)
		made++
	}
	return made, nil
}

// detachPartitions detaches those partitions of the target whose namesakes are gone, with their rows,
// and returns how many. The tables stay: whether their rows are wanted is nothing to decide here.
func (f *Follower) detachPartitions(ctx context.Context, m *transform.Mapping, gone []schema.Table) (int, error) {
	if len(gone) == 0 || m.Reshaped() {
		return 0, nil
	}
	target, err := f.cfg.Destination.Connect(ctx, "ddl")
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
		f.tell(ctx, "followed DDL: "+*sql)
		done++
	}
	return done, nil
}

// unpartitioned looks for partitions that the destination lacks after it refused a row for want of
// one: where it made some, the link may go on.
func (f *Follower) unpartitioned(ctx context.Context, refusal error) error {
	v, err := f.look(ctx)
	if err != nil {
		return err
	}
	made := 0
	for i := range v.plan.Mappings {
		m := &v.plan.Mappings[i]
		come, _ := v.partitions(m)
		n, err := f.makePartitions(ctx, m, come)
		if err != nil {
			return hint.Wrap(err, "make the partition on the target, then resume: ficus resume %s", f.cfg.Migration)
		}
		made += n
	}
	if made == 0 {
		return refusal
	}
	return nil
}
