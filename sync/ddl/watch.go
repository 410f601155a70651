package ddl

import (
	"context"
	"crypto/rand"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/evolve"
	"github.com/ficus-migrate/ficus/transform"
)

// lookEvery is how often the source's catalog is looked at.
const lookEvery = 2 * time.Second

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
	looking lock             // guards the others
	stamp   string           // of the catalog that was looked at last, if it showed nothing to do
	warned  map[Warning]bool // what was told already
}

// A drift is what the watcher found: the link has applied everything that was committed before the
// view was taken, and stands still while it is dealt with.
type drift struct{ view *view }

func (d *drift) Error() string { return "the source's catalog has changed" }

// run watches until ctx ends or a drift is found.
func (w *watcher) run(ctx context.Context, f *Follower) error {
	tick := time.NewTicker(f.cfg.Look)
	defer tick.Stop()
	for {
		d, err := w.glance(ctx, f)
		switch {
		case d != nil:
			return d
		case err != nil && ctx.Err() == nil: // a source that does not answer is the link's trouble
			f.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "could not look at the source's catalog", slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// glance looks at the catalog, and deals with what needs no standstill. It returns a drift once the
// link has applied everything that was committed before the look.
func (w *watcher) glance(ctx context.Context, f *Follower) (*drift, error) {
	found, err := f.glimpse(ctx)
	if err != nil || found == nil || !found.stands && !found.build {
		return nil, err
	}
	nonce := "ddl-" + rand.Text()
	if err := f.cfg.Host.Signal(ctx, nonce); err != nil {
		return nil, err
	}
	if err := f.cfg.Link.WaitSignal(ctx, nonce); err != nil { // the link ended, and says why itself
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	if found.stands {
		return &drift{found.view}, nil
	}
	return nil, f.act(ctx, func(ctx context.Context) error { return f.index(ctx, found.view) })
}

// A finding is what a look at the catalog shows.
type finding struct {
	view *view

	stands  bool // the link must stand still because of it
	build   bool // there are indexes to build
	emptied bool // a partition was truncated or written anew, which was not known
}

func (c *finding) any() bool { return c.stands || c.build || c.emptied }

// glimpse looks at the catalog if it moved since the last time; nil when it did not. What it finds
// is found again by the next look, until it is dealt with.
func (f *Follower) glimpse(ctx context.Context) (*finding, error) {
	w := &f.watch
	if err := w.looking.take(ctx); err != nil {
		return nil, err
	}
	defer w.looking.free()
	var stamp string
	if err := f.watching.QueryRow(ctx, stampSQL).Scan(&stamp); err != nil || stamp == w.stamp {
		return nil, f.cfg.Origin.Redact(err)
	}
	v, err := f.look(ctx)
	if err != nil {
		return nil, err
	}
	found := &finding{view: v}
	if err := f.concerns(found); err != nil {
		return nil, err
	}
	found.build = f.newIndexes(v)
	if !found.stands && !found.build {
		w.stamp = stamp
	}
	return found, nil
}

// concerns finds out whether the link must stand still because of something in a view, and warns of
// what needs no more than that.
func (f *Follower) concerns(found *finding) error {
	v := found.view
	for i := range v.plan.Mappings {
		m := &v.plan.Mappings[i]
		now, why := v.find(&m.Source)
		if why != "" {
			found.stands = true
			continue
		}
		e := evolve.Compare(&m.Source, nil, now)
		found.stands = found.stands || shapeChanged(e) || f.cfg.Safe && hasPassive(e)
		for _, d := range e.Differences {
			if passive(d.Kind) && (!f.cfg.Safe || d.Kind == evolve.GeneratedNew) {
				f.warn(Warning{m.Source.Name.Display(), "ddl", d.String() + " at the source, not on the target", "do the same on the target"})
			}
		}
		come, gone := v.partitions(m)
		found.stands = found.stands || len(come)+len(gone) > 0
		emptied, err := f.emptied(v, m)
		if err != nil {
			return err
		}
		found.emptied = found.emptied || emptied
	}
	for _, t := range f.newTables(v) {
		if found.stands = found.stands || f.cfg.Safe; !f.cfg.Safe {
			f.warn(Warning{t.Name.Display(), "new-table", "the table is new at the source and does not move", "with follow.ddl: safe it would; or leave it out by select.exclude"})
		}
	}
	return nil
}

func hasPassive(e *evolve.Evolution) bool {
	return e.Find(func(d evolve.Difference) bool { return passive(d.Kind) && d.Kind != evolve.GeneratedNew }) != nil
}

// warn tells something once.
func (f *Follower) warn(w Warning) {
	if f.watch.warned[w] {
		return
	}
	if f.watch.warned == nil {
		f.watch.warned = map[Warning]bool{}
	}
	f.watch.warned[w] = true
	f.cfg.Host.Warn(w)
}

// drifted deals with all that a view shows, while the link stands still.
func (f *Follower) drifted(ctx context.Context, d *drift) error {
	v := d.view
	if list := v.renamed(); len(list) > 0 {
		return f.rename(ctx, v, list) // the rest is for the next look
	}
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
		if e := evolve.Compare(&m.Source, nil, now); shapeChanged(e) || f.cfg.Safe && hasPassive(e) {
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
	if fresh := f.newTables(v); len(fresh) > 0 && f.cfg.Safe {
		return f.takeIn(ctx, v, fresh)
	}
	return nil
}

// lost deals with a table that is there no more under its name: its rows would go unnoticed.
func (f *Follower) lost(ctx context.Context, m *transform.Mapping, why string) error {
	mark := m.Source.Name.Display() + ": " + why
	if f.cfg.Plans.Current().Told != mark || !strings.HasPrefix(why, "it was dropped") {
		told := *f.cfg.Plans.Current()
		told.Told, told.Stopped = mark, schema.Name{}
		if err := f.cfg.Plans.Replace(&told); err != nil {
			return err
		}
		advice := "undo that at the source and resume; or " + f.giveUp()
		if strings.HasPrefix(why, "it was dropped") {
			advice = "resume, and the migration goes on without the table (what the target has of it stays there): ficus resume " + f.cfg.Migration + "; or " + f.giveUp()
		}
		return f.refuse(m.Source.Name, why, advice)
	}
	next := *f.cfg.Plans.Current()
	next.Tables = slices.DeleteFunc(slices.Clone(next.Tables), func(t schema.Table) bool { return t.Name == m.Source.Name })
	next.Mappings = slices.DeleteFunc(slices.Clone(next.Mappings), func(o transform.Mapping) bool { return o.Source.Name == m.Source.Name })
	next.Told, next.Stopped = "", schema.Name{}
	f.sort(&next)
	next.Pending = next.Pending.without(m.Source.Name, "table "+mark)
	if err := f.cfg.Plans.Replace(&next); err != nil {
		return err
	}
	f.tell(ctx, "goes on without table "+m.Source.Name.Display())
	return f.finish(ctx)
}

// joined reports whether a moved table became a partition of another one.
func (v *view) joined(known *schema.Table) bool {
	t := v.table(known.OID)
	return t != nil && t.Parent != nil && t.Name == known.Name && v.plan.Mapping(rootOf(v.tables, t)) != nil
}
