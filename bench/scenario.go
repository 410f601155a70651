package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

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
		verify{},
		promote{},
		gateway{},
		growth{},
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

// compete lets contenders run in turn, each after a checkpoint. before prepares a round, for all of
// them; nil for nothing.
func (b *bench) compete(ctx context.Context, scenario string, all []contender, before func(ctx context.Context, round int) error) ([]Contender, error) {
	c := contest{scenario, b.rounds, all, before, b.Checkpoint, b.say}
	return c.run(ctx)
}

// patience bounds one run: what takes longer hangs, and would never be found out.
const patience = time.Hour

// A contest is several rounds in which contenders run in turn.
type contest struct {
	scenario string
	rounds   int
	all      []contender
	before   func(ctx context.Context, round int) error // each round
	calm     func(ctx context.Context) error            // before each run
	say      func(ctx context.Context, format string, args ...any)
}

// run returns the contenders with their runs. Round r begins with contender r, so that none always
// comes first.
func (c *contest) run(ctx context.Context) ([]Contender, error) {
	results := make([]Contender, len(c.all))
	for i, one := range c.all {
		results[i] = one.about()
	}
	for round := 1; round <= c.rounds; round++ {
		if c.before != nil {
			c.say(ctx, "%s round %d/%d: prepare", c.scenario, round, c.rounds)
			if err := c.before(ctx, round); err != nil {
				return nil, fmt.Errorf("prepare round %d: %w", round, err)
			}
		}
		for i := range c.all {
			at := (i + round - 1) % len(c.all)
			if results[at].Missing != "" {
				continue
			}
			run, err := c.one(ctx, c.all[at], round)
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", results[at].Name, round, err)
			}
			results[at].Runs = append(results[at].Runs, run)
			c.say(ctx, "%s round %d/%d: %s %s", c.scenario, round, c.rounds, results[at].Name, run.first())
		}
	}
	return results, nil
}

// one is one run. What it left is removed also when it failed, as far as that goes.
func (c *contest) one(ctx context.Context, who contender, round int) (Run, error) {
	if err := c.calm(ctx); err != nil {
		return Run{}, err
	}
	limited, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("took longer than %s", patience))
	defer cancel()
	run, err := who.run(limited, round)
	run.Round = round
	return run, errors.Join(err, who.discard(context.WithoutCancel(ctx), round))
}
