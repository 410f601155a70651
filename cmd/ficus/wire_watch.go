package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/evolve"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

// watchEvery is how often the source's catalog is looked at.
const watchEvery = 2 * time.Second

// stampSQL is one value that changes with every DDL of interest: cheap enough to ask for again and
// again. VACUUM and ANALYZE do not move it: they change catalog rows in place.
const stampSQL = `
SELECT concat_ws(' ',
	(SELECT sum(hashtextextended(concat_ws(' ', c.oid, c.xmin, c.relfilenode), 0)) FROM pg_catalog.pg_class c
		WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p', 'i', 'I') AND c.relpersistence <> 't'),
	(SELECT sum(hashtextextended(concat_ws(' ', a.attrelid, a.attnum, a.xmin), 0)) FROM pg_catalog.pg_attribute a
		JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
		WHERE a.attrelid >= 16384 AND a.attnum > 0),
	(SELECT sum(hashtextextended(concat_ws(' ', d.adrelid, d.adnum, d.xmin), 0)) FROM pg_catalog.pg_attrdef d
		JOIN pg_catalog.pg_class c ON c.oid = d.adrelid AND c.relpersistence <> 't'),
	(SELECT sum(hashtextextended(concat_ws(' ', i.inhrelid, i.inhparent), 0)) FROM pg_catalog.pg_inherits i),
	(SELECT sum(hashtextextended(concat_ws(' ', i.indexrelid, i.xmin), 0)) FROM pg_catalog.pg_index i
		JOIN pg_catalog.pg_class c ON c.oid = i.indrelid AND c.relpersistence <> 't' WHERE i.indexrelid >= 16384),
	(SELECT sum(hashtextextended(concat_ws(' ', o.oid, o.xmin), 0)) FROM pg_catalog.pg_constraint o WHERE o.contype = 'f'))`

// A watcher looks for DDL that the stream does not show.
type watcher struct {
	stamp  string           // of the catalog that was looked at last
	warned map[warning]bool // what was told already
}

// A drift is what the watcher found: the link has applied everything that was committed before the
// view was taken, and stands still while it is dealt with.
type drift struct{ view *view }

func (d *drift) Error() string { return "the source's catalog has changed" }

// run watches until ctx ends or a drift is found.
func (w *watcher) run(ctx context.Context, f *follower) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		d, err := w.glance(ctx, f)
		switch {
		case d != nil:
			return d
		case err != nil && ctx.Err() == nil: // a source that does not answer is the link's trouble
			f.log.LogAttrs(ctx, slog.LevelDebug, "could not look at the source's catalog", slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// glance looks at the catalog if it moved since the last time.
func (w *watcher) glance(ctx context.Context, f *follower) (*drift, error) {
	conn, err := f.engine.job.source.Connect(ctx, "watch")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var stamp string
	if err := conn.QueryRow(ctx, stampSQL).Scan(&stamp); err != nil || stamp == w.stamp {
		return nil, err
	}
	v, err := f.look(ctx)
	if err != nil {
		return nil, err
	}
	stands, err := f.concerns(v)
	if err != nil {
		return nil, err
	}
	build := f.newIndexes(v)
	if !stands && !build {
		w.stamp = stamp
		return nil, nil
	}
	nonce := "ddl-" + rand.Text()
	if err := f.engine.sides[migrate.Source].Signal(ctx, nonce); err != nil {
		return nil, err
	}
	if err := f.WaitSignal(ctx, nonce); err != nil { // the link ended, and says why itself
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	if stands {
		return &drift{v}, nil
	}
	return nil, f.index(ctx, v)
}

// concerns reports whether the link must stand still because of something in a view, and warns of
// what needs no more than that.
func (f *follower) concerns(v *view) (found bool, err error) {
	for i := range v.plan.Mappings {
		m := &v.plan.Mappings[i]
		now, why := v.find(&m.Source)
		if why != "" {
			found = true
			continue
		}
		e := evolve.Compare(&m.Source, nil, now)
		found = found || shapeChanged(e) || f.safe() && hasPassive(e)
		for _, d := range e.Differences {
			if passive(d.Kind) && (!f.safe() || d.Kind == evolve.GeneratedNew) {
				f.warn(m.Source.Name.Display(), "ddl", d.String()+" at the source, not on the target", "do the same on the target")
			}
		}
		come, gone := v.partitions(m)
		found = found || len(come)+len(gone) > 0
		if err := f.emptied(v, m); err != nil {
			return false, err
		}
	}
	for _, t := range f.newTables(v) {
		if found = found || f.safe(); !f.safe() {
			f.warn(t.Name.Display(), "new-table", "the table is new at the source and does not move",
				"with follow.ddl: safe it would; or leave it out by select.exclude")
		}
	}
	return found, nil
}

func hasPassive(e *evolve.Evolution) bool {
	return e.Find(func(d evolve.Difference) bool { return passive(d.Kind) && d.Kind != evolve.GeneratedNew }) != nil
}

// A warning is one thing that is told once.
type warning struct{ object, check, message string }

// warn tells something once.
func (f *follower) warn(object, check, message, fix string) {
	w := warning{object, check, message}
	if f.watch.warned[w] {
		return
	}
	if f.watch.warned == nil {
		f.watch.warned = map[warning]bool{}
	}
	f.watch.warned[w] = true
	f.engine.migration.Notice(migrate.Finding{Severity: migrate.SeverityWarning, Check: check, Object: object, Message: object + ": " + message, Fix: fix})
}

// drifted deals with all that a view shows, while the link stands still.
func (f *follower) drifted(ctx context.Context, d *drift) error {
	v := d.view
	for i := range v.plan.Mappings {
		m := &v.plan.Mappings[i]
		now, why := v.find(&m.Source)
		switch {
		case why != "" && v.joined(&m.Source): // its root's matter
			continue
		case why != "":
			if err := f.lost(ctx, m, why); err != nil {
				return err
			}
			continue
		}
		if e := evolve.Compare(&m.Source, nil, now); shapeChanged(e) || f.safe() && hasPassive(e) {
			if err := f.turn(ctx, v, m, e, now); err != nil {
				return err
			}
		}
		if come, gone := v.partitions(m); len(come)+len(gone) > 0 {
			if err := f.repartition(ctx, v, m, come, gone); err != nil {
				return err
			}
		}
	}
	if fresh := f.newTables(v); len(fresh) > 0 && f.safe() {
		return f.takeIn(ctx, v, fresh)
	}
	return nil
}

// lost deals with a table that is there no more under its name: its rows would go unnoticed.
func (f *follower) lost(ctx context.Context, m *transform.Mapping, why string) error {
	mark := m.Source.Name.Display() + ": " + why
	if f.engine.current().Told != mark || !strings.HasPrefix(why, "it was dropped") {
		told := *f.engine.current()
		told.Told = mark
		if err := f.engine.replace(f.store, &told); err != nil {
			return err
		}
		advice := "rename it back at the source and resume; or " + f.giveUp()
		if strings.HasPrefix(why, "it was dropped") {
			advice = "resume, and the migration goes on without the table (what the target has of it stays there): ficus resume " + f.engine.job.playbook.Name + "; or " + f.giveUp()
		}
		return f.refuse(m.Source.Name, why, advice)
	}
	next := *f.engine.current()
	next.Tables = slices.DeleteFunc(slices.Clone(next.Tables), func(t schema.Table) bool { return t.Name == m.Source.Name })
	next.Mappings = slices.DeleteFunc(slices.Clone(next.Mappings), func(o transform.Mapping) bool { return o.Source.Name == m.Source.Name })
	next.Told = ""
	next.invert()
	next.measure(f.engine.job.playbook.Follow.NoReplicaIdentity)
	next.Pending = &pending{Why: "table " + mark}
	if err := f.engine.replace(f.store, &next); err != nil {
		return err
	}
	f.tell("goes on without table " + m.Source.Name.Display())
	return f.finish(ctx)
}

// joined reports whether a moved table became a partition of another one.
func (v *view) joined(known *schema.Table) bool {
	t := v.table(known.OID)
	return t != nil && t.Parent != nil && t.Name == known.Name && v.plan.mapping(rootOf(v.tables, t)) != nil
}

// noteIndexes marks the indexes of tables as known, not their foreign keys: those can be checked once
// the other tables have come as far.
func (b *blueprint) noteIndexes(v *view, tables []schema.Name) {
	known := map[string]bool{}
	for sql := range b.Indexes {
		known[sql] = true
	}
	for _, x := range v.indexes {
		if slices.Contains(tables, x.Table) && x.References.Name == "" {
			known[x.SQL] = true
		}
	}
	b.Indexes = known
}

// freshIndexes lists the indexes and foreign keys of moved tables that the blueprint does not know.
func (v *view) freshIndexes() []inspect.Index {
	if v.plan.Indexes == nil {
		return nil
	}
	var list []inspect.Index
	for _, x := range v.indexes {
		m := v.plan.mapping(x.Table)
		if m == nil || m.Reshaped() || v.plan.Indexes[x.SQL] {
			continue
		}
		if other := v.plan.mapping(x.References); x.References.Name != "" && (other == nil || other.Reshaped()) {
			continue
		}
		list = append(list, x)
	}
	return list
}

// newIndexes reports whether there are indexes to build; where that is not wanted, it warns.
func (f *follower) newIndexes(v *view) bool {
	fresh := v.freshIndexes()
	if !f.safe() {
		for _, x := range fresh {
			f.warn(x.Table.Display(), "new-index", x.Name+" is new at the source", x.SQL)
		}
		return false
	}
	return len(fresh) > 0
}

// index builds new indexes on the target while the link runs. A unique one could not be there before
// everything up to its view was applied: rows that the stream had yet to remove would have stood in
// its way.
func (f *follower) index(ctx context.Context, v *view) error {
	conn, err := f.engine.job.target.Connect(ctx, "ddl")
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
			f.warn(x.Table.Display(), "new-index", x.Name+" is new at the source, and the target refuses it: "+err.Error(), x.SQL)
		default:
			f.tell("followed DDL: " + x.SQL)
		}
		next := *f.engine.current()
		next.Indexes = maps.Clone(next.Indexes)
		next.Indexes[x.SQL] = true
		if err := f.engine.replace(f.store, &next); err != nil {
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
