package ddl

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/evolve"
	"github.com/ficus-migrate/ficus/schema/inspect"
)

// noteIndexes marks the indexes of tables as known, not their foreign keys: those can be checked once
// the other tables have come as far.
func (p *Plan) noteIndexes(v *view, tables []schema.Name) {
	known := map[string]bool{}
	for sql := range p.Indexes {
		known[sql] = true
	}
	for _, x := range v.indexes {
		if slices.Contains(tables, x.Table) && x.References.Name == "" {
			known[x.SQL] = true
		}
	}
	p.Indexes = known
}

// freshIndexes lists the indexes and foreign keys of moved tables that the blueprint does not know.
func (v *view) freshIndexes() []inspect.Index {
	if v.plan.Indexes == nil {
		return nil
	}
	var list []inspect.Index
	for _, x := range v.indexes {
		m := v.plan.Mapping(x.Table)
		if m == nil || m.Reshaped() || v.plan.Indexes[x.SQL] {
			continue
		}
		if other := v.plan.Mapping(x.References); x.References.Name != "" && (other == nil || other.Reshaped()) {
			continue
		}
		list = append(list, x)
	}
	return list
}

// newIndexes reports whether there are indexes to build; where that is not wanted, it warns.
func (f *Follower) newIndexes(v *view) bool {
	fresh := v.freshIndexes()
	if !f.cfg.Safe {
		for _, x := range fresh {
			f.warn(Warning{x.Table.Display(), "new-index", x.Name + " is new at the source", x.SQL})
		}
		return false
	}
	return len(fresh) > 0
}

// index builds new indexes on the target while the link runs. A unique one could not be there before
// everything up to its view was applied: rows that the stream had yet to remove would have stood in
// its way.
func (f *Follower) index(ctx context.Context, v *view) error {
	conn, err := f.cfg.Destination.Connect(ctx, "ddl")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, x := range v.freshIndexes() {
		err := buildIndex(ctx, conn, x)
		switch {
		case pg.Retryable(err) || ctx.Err() != nil:
			return err
		case err != nil:
			f.warn(Warning{x.Table.Display(), "new-index", x.Name + " is new at the source, and the target refuses it: " + err.Error(), x.SQL})
		default:
			f.tell(ctx, "followed DDL: "+x.SQL)
		}
		next := *f.cfg.Plans.Current()
		next.Indexes = maps.Clone(next.Indexes)
		next.Indexes[x.SQL] = true
		if err := f.cfg.Plans.Replace(&next); err != nil {
			return err
		}
	}
	return nil
}

// buildIndex builds an index if it is not there. One that an interrupted build left behind is made
// again.
func buildIndex(ctx context.Context, conn *pgx.Conn, x inspect.Index) error {
	name := schema.Name{Schema: x.Table.Schema, Name: x.Name}
	var valid, partitioned *bool
	err := conn.QueryRow(ctx, `SELECT (SELECT indisvalid FROM pg_catalog.pg_index WHERE indexrelid = to_regclass($1)),
		(SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = to_regclass($2))`, name.String(), x.Table.String()).Scan(&valid, &partitioned)
	switch {
	case err != nil:
		return err
	case partitioned == nil:
		return fmt.Errorf("table %s is not there", x.Table.Display())
	case valid != nil && *valid:
		return nil
	case valid != nil:
		if _, err := conn.Exec(ctx, `DROP INDEX CONCURRENTLY `+name.String()); err != nil {
			return err
		}
	}
	sql := x.SQL
	switch {
	case x.References.Name != "":
		var there bool
		err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = to_regclass($1) AND conname = $2)`, x.Table.String(), x.Name).Scan(&there)
		if err != nil || there {
			return err
		}
		return runDDL(ctx, conn, []evolve.Statement{{SQL: sql}})
	case x.Constraint:
		return runDDL(ctx, conn, []evolve.Statement{{SQL: sql}})
	case *partitioned: // pg_get_indexdef says ONLY, which would leave the partitions out
		return runDDL(ctx, conn, []evolve.Statement{{SQL: strings.Replace(sql, " ON ONLY ", " ON ", 1)}})
	}
	_, err = conn.Exec(ctx, strings.Replace(sql, "INDEX ", "INDEX CONCURRENTLY ", 1))
	return err
}
