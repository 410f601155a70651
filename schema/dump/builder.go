package dump

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
)

// A builder runs the stages of one section.
type builder struct {
	d        *Dump
	target   pg.DSN
	roles    roles
	sizes    map[schema.Name]int64
	progress Progress

	mu struct {
		sync.Mutex
		done, total int
	}
}

func (b *builder) run(ctx context.Context, first, last stage) error {
	conn, err := b.d.connect(ctx, b.target)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	todo, err := b.d.todo(ctx, conn, first, last)
	if err != nil {
		return err
	}
	if b.roles, err = readRoles(ctx, conn); err != nil {
		return err
	}
	b.d.checkOwners(b.roles, first, last)
	if b.sizes, err = readSizes(ctx, conn); err != nil {
		return err
	}
	for _, e := range b.d.entries {
		if e.stage >= first && e.stage <= last {
			b.mu.total++
		}
	}
	b.mu.done = b.mu.total - len(todo)

	for s := first; s <= last; s++ {
		var now []*entry
		for _, e := range todo {
			if e.stage == s {
				now = append(now, e)
			}
		}
		if groups := b.groups(s, now); len(groups) > 1 {
			err = b.parallel(ctx, groups)
		} else {
			err = b.serial(ctx, conn, now)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// groups splits a stage into parts that may be built at the same time, the largest tables first;
// the entries of one part follow one another.
func (b *builder) groups(s stage, entries []*entry) [][]*entry {
	var groups [][]*entry
	switch s {
	case stageIndexes: // sessions that index one table share its scan
		for _, e := range entries {
			groups = append(groups, []*entry{e})
		}
	case stageKeys, stageChecks, stageValidate: // the lock on the table lets nobody else in
		at := map[int]int{}
		for _, e := range entries {
			table := b.d.tableOf(e)
			if table == nil {
				groups = append(groups, []*entry{e})
				continue
			}
			i, ok := at[table.id]
			if !ok {
				i = len(groups)
				at[table.id] = i
				groups = append(groups, nil)
			}
			groups[i] = append(groups[i], e)
		}
	case stageTables, stageAttach, stageForeignKeys, stageRest, stageRefresh, stageGrants, stageEvents:
		// Quick, or in need of the order that pg_dump found.
		return [][]*entry{entries}
	}
	slices.SortStableFunc(groups, func(x, y []*entry) int { return cmp.Compare(b.size(y[0]), b.size(x[0])) })
	return groups
}

func (b *builder) size(e *entry) int64 {
	if table := b.d.tableOf(e); table != nil {
		return b.sizes[table.tableName()]
	}
	return 0
}

// tableOf returns the table that e is a part of, or nil.
func (d *Dump) tableOf(e *entry) *entry {
	var first *entry
	for _, id := range e.deps {
		dep := d.archive.byID[id]
		if dep == nil || !dep.isTable() {
			continue
		}
		if dep.schema == e.schema && strings.HasPrefix(e.name, dep.name+" ") { // not one that it references
			return dep
		}
		if first == nil {
			first = dep
		}
	}
	return first
}

// parallel builds groups in up to Workers sessions. The first error stops all.
func (b *builder) parallel(ctx context.Context, groups [][]*entry) error {
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan []*entry)
	g.Go(func() error {
		defer close(work)
		for _, group := range groups {
			select {
			case work <- group:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range min(b.d.cfg.Workers, len(groups)) {
		g.Go(func() error {
			conn, err := b.d.connect(ctx, b.target)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
			for group := range work {
				if err := b.serial(ctx, conn, group); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (b *builder) serial(ctx context.Context, conn *pgx.Conn, entries []*entry) error {
	for _, e := range entries {
		b.report(e)
		if err := b.d.build(ctx, conn, e, b.roles); err != nil {
			return err
		}
		b.mu.Lock()
		b.mu.done++
		b.mu.Unlock()
	}
	return nil
}

func (b *builder) report(e *entry) {
	b.mu.Lock()
	defer b.mu.Unlock() // held while calling: calls come one at a time
	if b.progress != nil {
		b.progress(e.String(), b.mu.done, b.mu.total)
	}
}

func readSizes(ctx context.Context, conn *pgx.Conn) (map[schema.Name]int64, error) {
	rows, err := conn.Query(ctx, `SELECT n.nspname, c.relname, coalesce(pg_catalog.pg_relation_size(c.oid), 0)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND n.nspname !~ '^pg_'`)
	if err != nil {
		return nil, fmt.Errorf("read sizes: %w", err)
	}
	sizes := map[schema.Name]int64{}
	var n schema.Name
	var size int64
	if _, err := pgx.ForEachRow(rows, []any{&n.Schema, &n.Name, &size}, func() error { sizes[n] = size; return nil }); err != nil {
		return nil, fmt.Errorf("read sizes: %w", err)
	}
	return sizes, nil
}
