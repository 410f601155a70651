package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ficus-migrate/ficus/bench/lab"
)

// copies copies a database that nobody writes to into an empty one, from one command line to the end
// of it: schema, rows, keys, indexes, foreign keys, sequences.
type copies struct{ shape shape }

// A shape is what is copied.
type shape struct {
	name, title string
	about       func(*sizes) string
	fill        func(ctx context.Context, b *bench, database string) error
	goal        float64 // against the fastest peer, from docs
}

func (c copies) name() string { return c.shape.name }

func (c copies) run(ctx context.Context, b *bench) (_ []*Result, err error) {
	g := &copyGround{bench: b, source: "copy_source", target: "copy_target"}
	defer func() { err = errors.Join(err, g.clear(context.WithoutCancel(ctx))) }()
	if err := g.fill(ctx, c.shape); err != nil {
		return nil, err
	}
	r := &Result{Scenario: c.name(), Title: c.shape.title, Work: []string{
		c.shape.about(&b.size),
		"Time is from the start of the program to its end, into a new database: schema, rows, keys, indexes, foreign keys, sequences; " +
			"Ficus and pgcopydb also gather statistics.",
	}}
	peers, err := g.peers(ctx, r)
	if err != nil {
		return nil, err
	}
	all := []contender{
		&copier{g, Contender{Name: ficusName, Settings: "ficus copy, defaults"}, g.ficusCopy},
		&copier{g, Contender{Name: "ficus follow", Own: true, Settings: "ficus follow, defaults, until it follows: with a slot, a publication and the event store"}, g.ficusFollow},
	}
	r.Contenders, err = b.compete(ctx, c.name(), append(all, peers...), nil)
	if err != nil {
		return nil, err
	}
	r.compare(c.shape.goal)
	return []*Result{r}, nil
}

// A copyGround is one source that stands still, and the name of the database that everybody fills.
type copyGround struct {
	*bench
	source, target string

	held    lab.Fingerprint
	indexes string
}

func (g *copyGround) fill(ctx context.Context, s shape) (err error) {
	if err := errors.Join(g.clear(ctx), g.Source.Create(ctx, g.source, "")); err != nil {
		return err
	}
	g.say(ctx, "%s: make the source's rows", s.name)
	if err := s.fill(ctx, g.bench, g.source); err != nil {
		return err
	}
	if err := g.Source.Exec(ctx, g.source, "VACUUM ANALYZE"); err != nil {
		return err
	}
	if g.held, err = g.Source.Fingerprint(ctx, g.source); err != nil {
		return err
	}
	g.indexes, err = g.Source.Indexes(ctx, g.source)
	return err
}

func (g *copyGround) clear(ctx context.Context) error {
	return errors.Join(g.Source.Drop(ctx, g.source), g.Target.Drop(ctx, g.target))
}

// A copier is one way to copy.
type copier struct {
	*copyGround
	what Contender
	copy func(ctx context.Context) (copied, error)
}

// copied is what a copy took.
type copied struct {
	cpu   time.Duration
	peak  int64                           // most memory of the program, 0 where that is not known
	after func(ctx context.Context) error // what is left to do when the clock has stopped; nil for nothing
}

func (c *copier) about() Contender { return c.what }

func (c *copier) run(ctx context.Context, _ int) (Run, error) {
	if err := errors.Join(c.Target.Drop(ctx, c.target), c.Target.Create(ctx, c.target, "")); err != nil {
		return Run{}, err
	}
	clock := c.Clock()
	done, err := c.copy(ctx)
	elapsed, usage := clock.Stop()
	if err == nil {
		err = c.complete(ctx)
	}
	if done.after != nil {
		err = errors.Join(err, done.after(context.WithoutCancel(ctx)))
	}
	usage.Program = done.cpu
	return measured(elapsed, usage, done.peak), err
}

func (c *copier) discard(ctx context.Context, _ int) error { return c.Target.Drop(ctx, c.target) }

// complete makes sure that rows, indexes and constraints have arrived.
func (g *copyGround) complete(ctx context.Context) error {
	if err := g.Same(ctx, g.held, g.target); err != nil {
		return err
	}
	got, err := g.Target.Indexes(ctx, g.target)
	if err == nil && got != g.indexes {
		err = fmt.Errorf("the target has %s, the source %s", got, g.indexes)
	}
	return err
}

// ficusCopy copies and leaves nothing behind.
func (g *copyGround) ficusCopy(ctx context.Context) (copied, error) {
	p, err := lab.Start(ctx, g.ficus, "copy", "--json", "--source", g.Source.URL(g.source), "--target", g.Target.URL(g.target))
	if err != nil {
		return copied{}, err
	}
	err = p.Wait()
	return copied{cpu: p.CPU(), peak: p.PeakRSS()}, err
}

// ficusFollow copies as a migration does.
func (g *copyGround) ficusFollow(ctx context.Context) (copied, error) {
	link := &lab.Ficus{Program: g.ficus, Name: "copied", Source: g.Source.URL(g.source), Target: g.Target.URL(g.target)}
	p, err := link.Follow(ctx, g.Lab)
	if err != nil {
		return copied{}, err
	}
	_, err = p.Line(ctx, map[string]any{"type": "phase", "phase": "following"})
	return copied{p.CPU(), p.PeakRSS(), func(ctx context.Context) error { return errors.Join(p.Stop(), link.Remove(ctx)) }}, err
}
