package dump

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
)

// A builder builds one section.
type builder struct {
	d        *Dump
	target   pg.DSN
	roles    roles
	sizes    map[schema.Name]int64 // of the target's tables, as far as they are known
	means    means
	progress Progress

	mu struct {
		sync.Mutex
		done, total int
	}
}

// run builds what is left of some stages. Where ready is not closed, it begins only as much as ready
// lets it.
func (b *builder) run(ctx context.Context, first, last stage, ready <-chan Ready) error {
	conn, err := b.d.connect(ctx, b.target, pg.Setting("synchronous_commit", "off")) // flush makes up for it
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
	if b.means, err = readMeans(ctx, conn, b.d.cfg.Workers); err != nil {
		return err
	}
	for _, e := range b.d.entries {
		if e.stage >= first && e.stage <= last {
			b.mu.total++
		}
	}
	b.mu.done = b.mu.total - len(todo)

	s := &schedule{builder: b, conn: conn, graph: b.d.graph(todo), ready: ready}
	if err := s.run(ctx); err != nil {
		return err
	}
	return flush(ctx, conn)
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

// build builds one entry and counts it.
func (b *builder) build(ctx context.Context, conn *pgx.Conn, e *entry) error {
	b.report(e)
	if err := b.d.build(ctx, conn, e, b.roles); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.done++
	return nil
}

func (b *builder) report(e *entry) {
	b.mu.Lock()
	defer b.mu.Unlock() // held while calling: calls come one at a time
	if b.progress != nil {
		b.progress(e.String(), b.mu.done, b.mu.total)
	}
}

// measure learns how large tables are.
func (b *builder) measure(ctx context.Context, conn *pgx.Conn, tables []schema.Name) error {
	schemas, names := make([]string, len(tables)), make([]string, len(tables))
	for i, t := range tables {
		schemas[i], names[i] = t.Schema, t.Name
	}
	rows, err := conn.Query(ctx, `SELECT n.nspname, c.relname, coalesce(pg_catalog.pg_relation_size(c.oid), 0)
FROM unnest($1::text[], $2::text[]) AS i(s, t) JOIN pg_catalog.pg_namespace n ON n.nspname = i.s
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = i.t AND c.relkind IN ('r', 'm')`, schemas, names)
	if err != nil {
		return fmt.Errorf("read sizes: %w", err)
	}
	if b.sizes == nil {
		b.sizes = map[schema.Name]int64{}
	}
	var n schema.Name
	var size int64
	if _, err := pgx.ForEachRow(rows, []any{&n.Schema, &n.Name, &size}, func() error { b.sizes[n] = size; return nil }); err != nil {
		return fmt.Errorf("read sizes: %w", err)
	}
	return nil
}
