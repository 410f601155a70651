package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/bench/lab"
)

// A ground is where one catch-up happens: a source that stands still, and what it holds.
type ground struct {
	*bench
	work     work
	template string // database, on both clusters: the rows before the writes
	source   string // database of the round
	baseSlot string // made before the writes

	// url is how a follower reaches a database.
	url func(c *lab.Cluster, database string) string

	held lab.Fingerprint // of the source, after the writes
	end  string          // LSN after them
}

func newGround(b *bench, w work) *ground {
	return &ground{
		bench: b, work: w, template: w.name + "_template", source: w.name + "_source", baseSlot: "bench_" + w.name,
		url: func(c *lab.Cluster, database string) string { return c.URL(database) },
	}
}

// fill makes the rows, and the same in the target cluster for those who do not copy by themselves.
func (g *ground) fill(ctx context.Context) error {
	if err := errors.Join(g.clear(ctx), g.Source.Create(ctx, g.template, ""), g.Target.Create(ctx, g.template, "")); err != nil {
		return err
	}
	if err := g.work.fill(ctx, g.bench, g.template); err != nil {
		return err
	}
	if err := g.Source.Exec(ctx, g.template, "CREATE TABLE "+marker+" (id int PRIMARY KEY)", "VACUUM ANALYZE"); err != nil {
		return err
	}
	if _, err := lab.Pipe(ctx, []string{g.tools.pgDump, g.Source.URL(g.template)}, g.tools.psqlInto(g.Target.URL(g.template))); err != nil {
		return err
	}
	return g.Target.Exec(ctx, g.template, "VACUUM ANALYZE")
}

// round makes a source and lets the followers copy it.
func (g *ground) round(ctx context.Context, followers ...follower) error {
	if err := errors.Join(g.Source.DropSlot(ctx, g.baseSlot), g.Source.Drop(ctx, g.source), g.Source.Create(ctx, g.source, g.template)); err != nil {
		return err
	}
	// Not FOR ALL TABLES: Ficus has tables of its own there, which nobody else follows.
	const publish = `DO $$ BEGIN EXECUTE 'CREATE PUBLICATION bench FOR TABLE ' || (SELECT string_agg(format('%I.%I', schemaname, tablename), ', ')
		FROM pg_tables WHERE schemaname = 'public'); END $$`
	if err := g.Source.Exec(ctx, g.source, publish, fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", g.baseSlot)); err != nil {
		return err
	}
	for _, f := range followers {
		if err := f.copied(ctx); err != nil {
			return fmt.Errorf("%s: %w", f.about().Name, err)
		}
	}
	return nil
}

// write writes what is to be caught up with, and the marker.
func (g *ground) write(ctx context.Context) (err error) {
	if err := g.work.write(ctx, g.bench, g.source); err != nil {
		return err
	}
	if err := g.mark(ctx); err != nil {
		return err
	}
	if g.end, err = g.Source.Text(ctx, g.source, "SELECT pg_current_wal_insert_lsn()"); err != nil {
		return err
	}
	g.held, err = g.Source.Fingerprint(ctx, g.source)
	return err
}

// mark writes the row that says that all before it has come.
func (g *ground) mark(ctx context.Context) error {
	return g.Source.Exec(ctx, g.source, "INSERT INTO "+marker+" VALUES (1)")
}

// copySlot makes a slot that stands before the writes.
func (g *ground) copySlot(ctx context.Context, name string) error {
	return g.Source.Exec(ctx, g.source, fmt.Sprintf("SELECT pg_copy_logical_replication_slot('%s', '%s')", g.baseSlot, name))
}

func (g *ground) clear(ctx context.Context) error {
	return errors.Join(g.Source.DropSlot(ctx, g.baseSlot), g.Source.Drop(ctx, g.source, g.template), g.Target.Drop(ctx, g.template))
}

// closeConn ends a session, also when ctx is over.
func closeConn(ctx context.Context, conn *pgx.Conn) { _ = conn.Close(context.WithoutCancel(ctx)) }
