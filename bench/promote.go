package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/bench/stat"
	"github.com/ficus-migrate/ficus/examples/shop"
	"github.com/ficus-migrate/ficus/migrate"
)

// promote changes the owner again and again while customers of a shop work through the gateway, and keeps
// their ledger: what a switch costs them, and whether anything was lost.
type promote struct{}

// What docs want of it.
const (
	blackoutGoalP50 = 100 // ms
	blackoutGoalP99 = 300 // ms
)

const (
	promoteWriters = 16
	promoteRest    = time.Second      // between two changes of owner
	promoteSettle  = 30 * time.Second // until both databases are equal, once nobody writes
)

func (promote) name() string { return "promote" }

func (promote) run(ctx context.Context, b *bench) ([]*Result, error) {
	r := &Result{Scenario: "promote", Title: "Promotion and rollback under load", Work: []string{
		fmt.Sprintf("A shop of %s rows; %d clients make about %d transactions a second through the gateway, of one and of several statements, prepared, simple and pipelined. "+
			"The target is promoted %d times in each round, with a rollback after each promotion and %s between two changes. Blackout: from the source's fence closed to the target's open. "+
			"Stall: the longest that any client waited because of one promotion. Transaction: the slowest during one, as its client's clock saw it, work included. Percentiles are over the promotions of a round.",
			thousands(b.size.promoteRows), promoteWriters, b.size.promoteRate, b.size.promotions, promoteRest),
		fmt.Sprintf("Goals: blackout p50 at most %d ms, p99 at most %d ms, rollback as promotion; no transaction failed, lost or doubled. After each round the ledger of what was acknowledged is compared with the owner, "+
			"and both databases with one another; a round in which a transaction was lost, doubled or altered is an error.", blackoutGoalP50, blackoutGoalP99),
	}}
	var err error
	r.Contenders, err = b.compete(ctx, "promote", []contender{&promoter{bench: b, source: "promote_source", target: "promote_target"}}, nil)
	if err != nil {
		return nil, err
	}
	return []*Result{r}, nil
}

// A promoter is one round.
type promoter struct {
	*bench
	source, target string
	front          *front
}

func (p *promoter) about() Contender {
	return Contender{Name: ficusName, Settings: "ficus run, defaults but for lag_window 1s and no steps of reads"}
}

func (p *promoter) run(ctx context.Context, _ int) (Run, error) {
	if err := p.fill(ctx); err != nil {
		return Run{}, err
	}
	var err error
	if p.front, err = p.openFront(ctx, "promote", p.source, p.target); err != nil {
		return Run{}, err
	}
	var ledger shop.Ledger
	var slowest []float64
	clock := p.Clock()
	g, gctx := errgroup.WithContext(ctx)
	working, sendHome := context.WithCancel(gctx)
	defer sendHome()
	g.Go(func() error {
		return shop.Load{Write: p.front.url, Writers: promoteWriters, Rate: p.size.promoteRate, Ledger: &ledger}.Run(working)
	})
	g.Go(func() (err error) {
		defer sendHome()
		slowest, err = p.switches(gctx, &ledger)
		return err
	})
	if err := g.Wait(); err != nil {
		return Run{}, err
	}
	elapsed, used := clock.Stop()
	report, err := p.prove(ctx, &ledger)
	if err != nil {
		return Run{}, err
	}
	status, err := p.front.client.Get(ctx, p.front.name)
	if err != nil {
		return Run{}, err
	}
	run := Run{Metrics: slices.Concat(
		promotionMetrics(status.Promotions),
		distribution("transaction", slowest),
		[]Metric{
			{"failed", "", float64(ledger.Totals().Failed + ledger.Totals().InDoubt)},
			{"lost", "", float64(report.Missing)},
			{"doubled", "", float64(report.Doubled)},
			{"transactions", "", float64(report.Acknowledged)},
			{"rate", "1/s", float64(report.Acknowledged) / elapsed.Seconds()},
			{cpuName, "s", (used.Source + used.Target + p.front.CPU()).Seconds()},
			{memoryName, "MB", float64(p.front.PeakRSS()) / (1 << 20)},
		})}
	return run, nil
}

func (p *promoter) fill(ctx context.Context) error {
	if err := errors.Join(p.Source.Drop(ctx, p.source), p.Target.Drop(ctx, p.target), p.Source.Create(ctx, p.source, ""), p.Target.Create(ctx, p.target, "")); err != nil {
		return err
	}
	conn, err := p.Source.Connect(ctx, p.source)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	_, err = shop.Fill(ctx, conn, p.size.promoteRows)
	return err
}

// switches changes the owner there and back, and returns the slowest transaction during each promotion, in
// milliseconds.
func (p *promoter) switches(ctx context.Context, ledger *shop.Ledger) (slowest []float64, err error) {
	for i := range p.size.promotions {
		for _, verb := range []migrate.Verb{migrate.Promote, migrate.Rollback} {
			if err := rest(ctx, promoteRest); err != nil {
				return nil, err
			}
			from := time.Now()
			if err := p.front.client.Do(ctx, p.front.name, migrate.Command{Verb: verb, Actor: "bench", Wait: true}); err != nil {
				return nil, fmt.Errorf("%s %d: %w", verb, i+1, err)
			}
			if verb == migrate.Promote {
				slowest = append(slowest, milliseconds(ledger.Latency(from, time.Now()).Max))
			}
		}
		if (i+1)%10 == 0 {
			p.say(ctx, "promote: %d of %d promotions", i+1, p.size.promotions)
		}
	}
	return slowest, rest(ctx, promoteRest)
}

// prove compares the owner with the ledger and both databases with one another, when nobody writes.
func (p *promoter) prove(ctx context.Context, ledger *shop.Ledger) (*shop.Report, error) {
	report, err := ledger.Check(ctx, p.Source.URL(p.source))
	if err != nil {
		return nil, err
	}
	if !report.OK() {
		return nil, fmt.Errorf("the ledger and the owner differ: %+v", *report)
	}
	held, err := p.Source.Fingerprint(ctx, p.source)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(promoteSettle); ; {
		err := p.Same(ctx, held, p.target)
		if err == nil || time.Now().After(deadline) {
			return report, err
		}
		if err := rest(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func (p *promoter) discard(ctx context.Context, _ int) error {
	var err error
	if p.front != nil {
		err = p.front.close(ctx)
		p.front = nil
	}
	return errors.Join(err, p.Source.Drop(ctx, p.source), p.Target.Drop(ctx, p.target))
}

// promotionMetrics sums up the changes of owner, promotions first.
func promotionMetrics(all []migrate.Promotion) []Metric {
	var blackouts, stalls, back []float64
	for _, one := range all {
		if one.To != migrate.Target {
			back = append(back, milliseconds(one.Blackout))
			continue
		}
		blackouts = append(blackouts, milliseconds(one.Blackout))
		stalls = append(stalls, milliseconds(one.Stall.Max))
	}
	return slices.Concat(distribution("blackout", blackouts), distribution("stall", stalls), distribution("rollback blackout", back),
		[]Metric{{"promotions", "", float64(len(blackouts))}})
}

// distribution returns what of a figure in milliseconds is told.
func distribution(name string, values []float64) []Metric {
	slices.Sort(values)
	return []Metric{
		{name + " p50", "ms", stat.Quantile(values, 0.5)},
		{name + " p99", "ms", stat.Quantile(values, 0.99)},
		{name + " max", "ms", stat.Quantile(values, 1)},
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// rest lets time pass.
func rest(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
