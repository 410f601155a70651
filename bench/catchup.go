package main

import (
	"context"
	"errors"
	"fmt"
	"time"

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
	followers := append([]follower{&ficusFollower{ground: g}}, natives(g)...)
	var all []contender
	for _, f := range followers {
		all = append(all, &catcher{g, f})
	}
	r := &Result{Scenario: c.name(), Title: c.work.title, Work: []string{
		c.work.about(&b.size),
		"Time is from the start of the process (native: from ALTER SUBSCRIPTION ENABLE) until the target shows the last transaction; " +
			"start is the part of it until the slot is read.",
	}}
	r.Contenders, err = b.compete(ctx, c.name(), append(all, &walsender{ground: g}), func(ctx context.Context, _ int) error {
		if err := g.round(ctx, followers...); err != nil {
			return err
		}
		return g.write(ctx)
	})
	if err != nil {
		return nil, err
	}
	r.compare(c.work.goal)
	return []*Result{r}, nil
}

// A catcher lets one follower catch up.
type catcher struct {
	*ground
	follower
}

func (c *catcher) run(ctx context.Context, _ int) (Run, error) { return c.catchUp(ctx, c.follower) }

func (c *catcher) discard(ctx context.Context, _ int) error { return c.follower.discard(ctx) }

// catchUp measures from the moment the follower is told to follow until the target shows the marker.
func (g *ground) catchUp(ctx context.Context, f follower) (Run, error) {
	// One reading of the target's tables, so that no follower finds more of them in memory than another.
	if _, err := g.Target.Fingerprint(ctx, f.database()); err != nil {
		return Run{}, err
	}
	clock, began := g.Clock(), time.Now()
	s, err := f.begin(ctx)
	if err != nil {
		return Run{}, err
	}
	reading, err := g.arrived(ctx, f, s.ended)
	elapsed, usage := clock.Stop()
	usage.Program = s.cpu()
	peak := s.peak()
	if err := errors.Join(err, s.stop(context.WithoutCancel(ctx))); err != nil {
		return Run{}, err
	}
	return measured(elapsed, usage, peak, Metric{"start", "s", reading.Sub(began).Seconds()}), g.Same(ctx, g.held, f.database())
}

// arrived waits until the slot is read and then until the target shows the marker, and returns when
// the first of it was.
func (g *ground) arrived(ctx context.Context, f follower, ended <-chan struct{}) (reading time.Time, err error) {
	source, err := g.Source.Connect(ctx, g.source)
	if err != nil {
		return time.Time{}, err
	}
	defer closeConn(ctx, source)
	target, err := g.Target.Connect(ctx, f.database())
	if err != nil {
		return time.Time{}, err
	}
	defer closeConn(ctx, target)
	if err := lab.Poll(ctx, source, ended, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)`, f.slot()); err != nil {
		return time.Time{}, fmt.Errorf("wait until slot %s is read: %w", f.slot(), err)
	}
	reading = time.Now()
	if err := lab.Poll(ctx, target, ended, `SELECT EXISTS (SELECT FROM `+marker+` WHERE id = 1)`); err != nil {
		return time.Time{}, fmt.Errorf("wait for the last transaction: %w", err)
	}
	return reading, nil
}
