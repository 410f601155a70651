package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/bench/lab"
)

// catchUp lets followers that have copied a database and then stood still catch up with what was
// written meanwhile.
//
// Every round has a source of its own, a copy of one that was filled once. All contenders get their
// copy of it, then the writes happen, then the contenders read the same WAL in turn: one that needs a
// slot gets a copy of one that was made before the writes. The clock runs from the start of the
// process, or from ENABLE, until the target shows the last transaction.
type catchUp struct{ work work }

// A work is what is written while nobody follows.
type work struct {
	name, title string
	about       func(*sizes) string
	// fill makes the tables and their rows, write writes the changes to them.
	fill, write func(ctx context.Context, b *bench, database string) error
	// streams says that there are transactions large enough for streaming to matter.
	streams bool
	goal    float64 // against native replication, from docs
}

// marker is the table whose row is the last thing written.
const marker = "public.bench_marker"

func (c catchUp) name() string { return "catchup-" + c.work.name }

func (c catchUp) run(ctx context.Context, b *bench) (_ []*Result, err error) {
	g := newGround(b, c.work)
	defer func() { err = errors.Join(err, g.clear(context.WithoutCancel(ctx))) }()
	if err := g.fill(ctx); err != nil {
		return nil, err
	}
	followers := []follower{&ficusFollower{ground: g}, &nativeFollower{ground: g}}
	if c.work.streams && b.Target.Install().Major >= 14 {
		followers = append(followers, &nativeFollower{ground: g, streaming: true})
	}
	all := []contender{}
	for _, f := range followers {
		all = append(all, f)
	}
	r := &Result{Scenario: c.name(), Title: c.work.title, Work: []string{
		c.work.about(&b.size),
		"Time is from the start of the process (native: from ALTER SUBSCRIPTION ENABLE) until the target shows the last transaction; " +
			"start is the part of it until the slot is read.",
	}}
	r.Contenders, err = b.compete(ctx, c.name(), append(all, &walsender{ground: g}), func(ctx context.Context, _ int) error {
		return g.round(ctx, followers)
	})
	if err != nil {
		return nil, err
	}
	r.compare(c.work.goal, 0)
	return []*Result{r}, nil
}

// A follower is a contender that has copied the source before it changes.
type follower interface {
	contender
	// copied brings the follower to where it holds the source's rows and stands still.
	copied(ctx context.Context) error
}

// A ground is where one catch-up happens: a source that stands still, and what it holds.
type ground struct {
	*bench
	work     work
	template string // database, on both clusters: the rows before the writes
	source   string // database of the round
	slot     string // made before the writes

	held lab.Fingerprint // of the source, after the writes
	end  string          // LSN after them
}

func newGround(b *bench, w work) *ground {
	return &ground{bench: b, work: w, template: w.name + "_template", source: w.name + "_source", slot: "bench_" + w.name}
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

// round makes a source, lets the followers copy it, and then changes it.
func (g *ground) round(ctx context.Context, followers []follower) error {
	if err := errors.Join(g.Source.DropSlot(ctx, g.slot), g.Source.Drop(ctx, g.source), g.Source.Create(ctx, g.source, g.template)); err != nil {
		return err
	}
	// Not FOR ALL TABLES: Ficus has tables of its own there, which nobody else follows.
	const publish = `DO $$ BEGIN EXECUTE 'CREATE PUBLICATION bench FOR TABLE ' || (SELECT string_agg(format('%I.%I', schemaname, tablename), ', ')
		FROM pg_tables WHERE schemaname = 'public'); END $$`
	if err := g.Source.Exec(ctx, g.source, publish, fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", g.slot)); err != nil {
		return err
	}
	for _, f := range followers {
		if err := f.copied(ctx); err != nil {
			return fmt.Errorf("%s: %w", f.about().Name, err)
		}
	}
	return g.write(ctx)
}

// write writes what is to be caught up with, and the marker.
func (g *ground) write(ctx context.Context) (err error) {
	if err := g.work.write(ctx, g.bench, g.source); err != nil {
		return err
	}
	if err := g.Source.Exec(ctx, g.source, "INSERT INTO "+marker+" VALUES (1)"); err != nil {
		return err
	}
	if g.end, err = g.Source.Text(ctx, g.source, "SELECT pg_current_wal_insert_lsn()"); err != nil {
		return err
	}
	g.held, err = g.Source.Fingerprint(ctx, g.source)
	return err
}

// copySlot makes a slot that stands before the writes.
func (g *ground) copySlot(ctx context.Context, name string) error {
	return g.Source.Exec(ctx, g.source, fmt.Sprintf("SELECT pg_copy_logical_replication_slot('%s', '%s')", g.slot, name))
}

// warm reads all of a target's tables once, so that no run finds more of them in memory than another.
func (g *ground) warm(ctx context.Context, database string) error {
	_, err := g.Target.Fingerprint(ctx, database)
	return err
}

// arrived waits until the slot is read and then until the target shows the marker, and returns when
// the first of it was. ended is closed when nobody follows any more.
func (g *ground) arrived(ctx context.Context, slot, database string, ended <-chan struct{}) (reading time.Time, err error) {
	source, err := g.Source.Connect(ctx, g.source)
	if err != nil {
		return time.Time{}, err
	}
	defer closeConn(ctx, source)
	target, err := g.Target.Connect(ctx, database)
	if err != nil {
		return time.Time{}, err
	}
	defer closeConn(ctx, target)
	if err := lab.Poll(ctx, source, ended, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)`, slot); err != nil {
		return time.Time{}, fmt.Errorf("wait until slot %s is read: %w", slot, err)
	}
	reading = time.Now()
	if err := lab.Poll(ctx, target, ended, `SELECT EXISTS (SELECT FROM `+marker+` WHERE id = 1)`); err != nil {
		return time.Time{}, fmt.Errorf("wait for the last transaction: %w", err)
	}
	return reading, nil
}

func (g *ground) clear(ctx context.Context) error {
	return errors.Join(g.Source.DropSlot(ctx, g.slot), g.Source.Drop(ctx, g.source, g.template), g.Target.Drop(ctx, g.template))
}

// closeConn ends a session, also when ctx is over.
func closeConn(ctx context.Context, conn *pgx.Conn) { _ = conn.Close(context.WithoutCancel(ctx)) }
