package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/bench/lab"
	"github.com/ficus-migrate/ficus/bench/stat"
)

// lag writes at a steady rate and measures how long after its commit a row can be seen in the target.
type lag struct{}

const lagWarmup = 2 * time.Second // of the load, not measured

func (lag) name() string { return "lag" }

func (lag) run(ctx context.Context, b *bench) (_ []*Result, err error) {
	w := workTPCB()
	w.name = "lag"
	fill := w.fill
	w.fill = func(ctx context.Context, b *bench, db string) error {
		return errors.Join(fill(ctx, b, db), b.Source.Exec(ctx, db, "CREATE TABLE "+lagProbe+" (id bigint PRIMARY KEY)"))
	}
	g := newGround(b, w)
	defer func() { err = errors.Join(err, g.clear(context.WithoutCancel(ctx))) }()
	if err := g.fill(ctx); err != nil {
		return nil, err
	}
	followers := []follower{&ficusFollower{ground: g}, &nativeFollower{g, "off", "off"}, &nativeFollower{g, "off", "on"}}
	var all []contender
	for _, f := range followers {
		all = append(all, &steady{catcher{g, f}})
	}
	r := &Result{Scenario: "lag", Title: "Lag at a steady rate, commit to visible", Work: []string{
		fmt.Sprintf("%d TPC-B transactions a second for %d s, by %d sessions of pgbench, after the follower has caught up. One session besides inserts a row each %s; "+
			"lag is from the answer to its commit until another session, which asks each %s while any row is missing, finds it in the target; one clock. The first %s do not count.",
			b.size.lagRate, b.size.lagSeconds, generators, probeEvery, lookEvery, lagWarmup),
	}}
	r.Contenders, err = b.compete(ctx, "lag", all, func(ctx context.Context, _ int) error {
		if err := g.round(ctx, followers...); err != nil {
			return err
		}
		return g.mark(ctx)
	})
	if err != nil {
		return nil, err
	}
	r.compare(1.0 / 3)
	return []*Result{r}, nil
}

// steady measures the lag of one follower.
type steady struct{ catcher }

func (s *steady) run(ctx context.Context, _ int) (_ Run, err error) {
	session, err := s.begin(ctx)
	if err != nil {
		return Run{}, err
	}
	defer func() { err = errors.Join(err, session.stop(context.WithoutCancel(ctx))) }()
	if _, err := s.arrived(ctx, s.follower, session.ended); err != nil {
		return Run{}, err
	}
	transactions, lags, used, err := s.load(ctx, session)
	if err != nil {
		return Run{}, err
	}
	if err := s.settled(ctx, session); err != nil {
		return Run{}, err
	}
	slices.Sort(lags)
	n := float64(transactions)
	micros := func(d time.Duration) float64 { return float64(d.Microseconds()) / n }
	run := Run{Metrics: []Metric{
		{"p50", "ms", stat.Quantile(lags, 0.5)},
		{"p95", "ms", stat.Quantile(lags, 0.95)},
		{"p99", "ms", stat.Quantile(lags, 0.99)},
		{"max", "ms", stat.Quantile(lags, 1)},
		{cpuName, "µs/transaction", micros(used.Program + used.Source + used.Target)},
		{"program cpu", "µs/transaction", micros(used.Program)},
		{"source cpu", "µs/transaction", micros(used.Source)},
		{"target cpu", "µs/transaction", micros(used.Target)},
		{"transactions", "", n},
	}}
	if peak := session.peak(); peak > 0 {
		run.Metrics = append(run.Metrics, Metric{memoryName, "MB", float64(peak) / (1 << 20)})
	}
	return run, nil
}

var processed = regexp.MustCompile(`transactions actually processed: (\d+)`)

// load writes for a while, and returns how many transactions, the lags in milliseconds, and what
// was used meanwhile.
func (s *steady) load(ctx context.Context, session *session) (transactions int, lags []float64, used lab.Usage, err error) {
	p := &prober{ground: s.ground, database: s.database(), from: time.Now().Add(lagWarmup)}
	clock, before := s.Clock(), session.cpu()
	g, gctx := errgroup.WithContext(ctx)
	loaded := make(chan struct{})
	var said string
	g.Go(func() (err error) {
		defer close(loaded)
		said, err = s.pgbench(gctx, s.Source.URL(s.source), "-T", strconv.Itoa(s.size.lagSeconds), "--rate", strconv.Itoa(s.size.lagRate))
		return err
	})
	g.Go(func() error { return p.run(gctx, loaded) })
	if err := g.Wait(); err != nil {
		return 0, nil, lab.Usage{}, err
	}
	_, used = clock.Stop()
	used.Program = session.cpu() - before
	if m := processed.FindStringSubmatch(said); m != nil {
		transactions, err = strconv.Atoi(m[1])
	}
	if transactions == 0 || len(p.lags) == 0 {
		return 0, nil, used, errors.Join(errors.New("nothing was measured"), err)
	}
	return transactions, p.lags, used, nil
}

// settled waits until the target has all that the source holds, and makes sure of it.
func (s *steady) settled(ctx context.Context, session *session) error {
	last := time.Now().UnixNano()
	if err := s.Source.Exec(ctx, s.source, fmt.Sprintf("INSERT INTO %s VALUES (%d)", lagProbe, last)); err != nil {
		return err
	}
	conn, err := s.Target.Connect(ctx, s.database())
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	if err := lab.Poll(ctx, conn, session.ended, `SELECT EXISTS (SELECT FROM `+lagProbe+` WHERE id = $1)`, last); err != nil {
		return err
	}
	held, err := s.Source.Fingerprint(ctx, s.source)
	if err != nil {
		return err
	}
	return s.Same(ctx, held, s.database())
}
