package main

import (
	"context"
	"errors"
	"fmt"
)

// growth lets Ficus alone do the same work from 1 to 20 times as large: time should grow with the
// work, and memory not at all.
type growth struct{}

func (growth) name() string { return "growth" }

// factors are how many times the work is done.
func factors() []int { return []int{1, 2, 5, 10, 20} }

func times(factor int) string { return fmt.Sprintf("%d ×", factor) }

// memoryGoal is what the process may use, from docs.
const memoryGoal = 256 // MB

func (growth) run(ctx context.Context, b *bench) ([]*Result, error) {
	var results []*Result
	for _, measure := range []func(context.Context, *bench) (*Result, error){growCopy, growCatchUp, growTransaction} {
		r, err := measure(ctx, b)
		if err != nil {
			return nil, err
		}
		near := r.contender(times(1))
		for i := range r.Contenders {
			if c := &r.Contenders[i]; c.Name != near.Name {
				r.Ratios = append(r.Ratios, ratio(c, near))
			}
		}
		r.Base = times(1)
		r.Work = append(r.Work, fmt.Sprintf("Memory of the process is to stay below %d MB at every size.", memoryGoal))
		results = append(results, r)
	}
	return results, nil
}

// growCopy copies tables of several sizes.
func growCopy(ctx context.Context, b *bench) (_ *Result, err error) {
	r := &Result{Scenario: "growth-copy", Title: "Growth: initial copy", Work: []string{
		fmt.Sprintf("ficus follow until it follows, as in copy; 1 × is pgbench at scale %d, %s rows.", b.size.growthScale, thousands(b.size.growthScale*100_000)),
	}}
	var all []contender
	for _, n := range factors() {
		g := &copyGround{bench: b, source: fmt.Sprintf("growth_source_%d", n), target: "growth_target"}
		defer func() { err = errors.Join(err, g.clear(context.WithoutCancel(ctx))) }()
		fill := func(ctx context.Context, b *bench, db string) error {
			return b.pgbenchInit(ctx, b.Source, db, n*b.size.growthScale)
		}
		if err := g.fill(ctx, shape{name: r.Scenario, fill: fill}); err != nil {
			return nil, err
		}
		all = append(all, &copier{g, Contender{Name: times(n), Own: true}, g.ficusFollow})
	}
	r.Contenders, err = b.compete(ctx, r.Scenario, all, nil)
	return r, err
}

// growCatchUp catches up with transactions of several numbers.
func growCatchUp(ctx context.Context, b *bench) (*Result, error) {
	w := workTPCB()
	w.name = "growth"
	return grow(ctx, b, w, &Result{Scenario: "growth-catchup", Title: "Growth: catch-up", Work: []string{
		fmt.Sprintf("As in catchup-tpcb; 1 × is %s transactions.", thousands(b.size.growthTransactions)),
	}}, func(ctx context.Context, db string, factor int) error {
		return b.tpcb(ctx, db, factor*b.size.growthTransactions)
	})
}

// growTransaction catches up with one transaction of several sizes.
func growTransaction(ctx context.Context, b *bench) (*Result, error) {
	w := workInsert()
	w.name = "growth"
	return grow(ctx, b, w, &Result{Scenario: "growth-transaction", Title: "Growth: one large transaction", Work: []string{
		fmt.Sprintf("As in catchup-insert; 1 × is %s rows, all of them in one transaction, and 20 × %s.", thousands(b.size.growthRows), thousands(20*b.size.growthRows)),
	}}, func(ctx context.Context, db string, factor int) error {
		return b.insertItems(ctx, db, factor*b.size.growthRows)
	})
}

func grow(ctx context.Context, b *bench, w work, r *Result, write func(ctx context.Context, db string, factor int) error) (_ *Result, err error) {
	g := newGround(b, w)
	defer func() { err = errors.Join(err, g.clear(context.WithoutCancel(ctx))) }()
	if err := g.fill(ctx); err != nil {
		return nil, err
	}
	var all []contender
	for _, n := range factors() {
		own := *g
		own.work.write = func(ctx context.Context, _ *bench, db string) error { return write(ctx, db, n) }
		all = append(all, &grower{catcher{&own, &ficusFollower{ground: &own}}, n})
	}
	r.Contenders, err = b.compete(ctx, r.Scenario, all, nil)
	return r, err
}

// A grower catches up with writes of its own.
type grower struct {
	catcher
	factor int
}

func (g *grower) about() Contender { return Contender{Name: times(g.factor), Own: true} }

func (g *grower) run(ctx context.Context, round int) (Run, error) {
	if err := g.round(ctx, g.follower); err != nil {
		return Run{}, err
	}
	if err := errors.Join(g.write(ctx), g.Checkpoint(ctx)); err != nil {
		return Run{}, err
	}
	return g.catcher.run(ctx, round)
}
