package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/ficus-migrate/ficus/bench/lab"
)

// A scenario is one comparison. Each lives in a file of its own.
type scenario interface {
	// name is what --only takes.
	name() string
	// run prepares, measures all rounds and cleans up. It uses databases named after itself alone.
	run(ctx context.Context, b *bench) ([]*Result, error)
}

// scenarios returns all of them, in the order in which they run.
func scenarios() []scenario {
	return []scenario{
		catchUp{workTPCB()},
		catchUp{workInsert()},
		catchUp{workMixed()},
		copies{shapePgbench()},
		copies{shapeShop()},
		pipe{},
		lag{},
		network{},
	}
}

// A bench is what scenarios share.
type bench struct {
	*lab.Lab
	ficus  string // path of the binary
	rounds int
	size   sizes
	tools  tools
	log    *slog.Logger
}

// say tells people how far it is.
func (b *bench) say(ctx context.Context, format string, args ...any) {
	b.log.LogAttrs(ctx, slog.LevelInfo, "progress", slog.String("doing", fmt.Sprintf(format, args...)))
}

// A contender is one program, with one choice of settings, in a scenario.
type contender interface {
	// about says what it is and what it is told.
	about() Contender
	// run does the work of one round. What it returns counts only when the rows are right, which it
	// has made sure of.
	run(ctx context.Context, round int) (Run, error)
	// discard removes what the round left.
	discard(ctx context.Context, round int) error
}

// compete lets contenders run in turn. Round r begins with contender r, so that none always comes
// first. before prepares a round, for all of them.
func (b *bench) compete(ctx context.Context, scenario string, all []contender, before func(ctx context.Context, round int) error) ([]Contender, error) {
	results := make([]Contender, len(all))
	for i, c := range all {
		results[i] = c.about()
	}
	for round := 1; round <= b.rounds; round++ {
		b.say(ctx, "%s round %d/%d: prepare", scenario, round, b.rounds)
		if err := before(ctx, round); err != nil {
			return nil, fmt.Errorf("prepare round %d: %w", round, err)
		}
		for i := range all {
			at := (i + round - 1) % len(all)
			c := all[at]
			if results[at].Missing != "" {
				continue
			}
			if err := b.Checkpoint(ctx); err != nil {
				return nil, err
			}
			run, err := c.run(ctx, round)
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", results[at].Name, round, err)
			}
			run.Round = round
			results[at].Runs = append(results[at].Runs, run)
			b.say(ctx, "%s round %d/%d: %s %s", scenario, round, b.rounds, results[at].Name, run.first())
			if err := c.discard(ctx, round); err != nil {
				return nil, fmt.Errorf("%s, after round %d: %w", results[at].Name, round, err)
			}
		}
	}
	return results, nil
}
