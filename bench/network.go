package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ficus-migrate/ficus/bench/lab"
	"github.com/ficus-migrate/ficus/internal/faultpg"
)

// network lets followers catch up over a network that is longer by some round-trip time, but no
// narrower.
type network struct{}

func (network) name() string { return "network" }

// roundTrips are added to what loopback has.
func roundTrips() []time.Duration {
	return []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond}
}

// A distance is which ways are longer.
type distance struct {
	name           string
	native         bool
	source, target bool
	workers        int // of Ficus; 0: the default
}

func distances() []distance {
	return []distance{
		{name: "ficus, target", target: true},
		{name: "ficus, both", source: true, target: true},
		{name: "ficus 2 workers, target", target: true, workers: 2},
		{name: "ficus 4 workers, target", target: true, workers: 4},
		{name: "ficus 8 workers, target", target: true, workers: 8},
		{name: "native, source", native: true, source: true},
	}
}

func (d distance) at(roundTrip time.Duration) string { return fmt.Sprintf("%s +%s", d.name, roundTrip) }

func (network) run(ctx context.Context, b *bench) (_ []*Result, err error) {
	w := workTPCB()
	w.name = "network"
	w.write = func(ctx context.Context, b *bench, db string) error {
		return b.tpcb(ctx, db, b.size.networkTransactions)
	}
	g := newGround(b, w)
	defer func() { err = errors.Join(err, g.clear(context.WithoutCancel(ctx))) }()
	if err := g.fill(ctx); err != nil {
		return nil, err
	}
	far, err := newFar(ctx, b.Lab)
	if err != nil {
		return nil, err
	}
	defer far.close()
	var all []contender
	for _, rt := range roundTrips() {
		for _, d := range distances() {
			all = append(all, newTraveller(g, far, d, rt))
		}
	}
	r := &Result{Scenario: "network", Title: "Catch-up over a longer network", Base: "+0s", Work: []string{
		fmt.Sprintf("%s TPC-B transactions on scale %d to catch up with, as in catchup-tpcb, through a proxy that delays every byte by half of the added round-trip time and limits no rate. "+
			"Ficus with the target far away, over one session and over several (--apply-workers), and with both servers far away; a native subscription runs in the target, so for it the source is far away. Following is the time without start, and what is compared.",
			thousands(b.size.networkTransactions), b.size.tpcbScale),
	}}
	if r.Contenders, err = b.compete(ctx, "network", all, nil); err != nil {
		return nil, err
	}
	for _, d := range distances() {
		near := r.contender(d.at(0))
		for _, rt := range roundTrips()[1:] {
			if c := r.contender(d.at(rt)); c != nil && near != nil {
				x := ratio(c, near)
				if !d.native && d.workers == 0 {
					x.Goal = "≤ 1.25" // a rate that falls by 20 %
				}
				r.Ratios = append(r.Ratios, x)
			}
		}
	}
	return []*Result{r}, nil
}

// far is a proxy before each cluster.
type far struct {
	lab            *lab.Lab
	source, target *faultpg.Proxy
}

func newFar(ctx context.Context, l *lab.Lab) (*far, error) {
	source, err := faultpg.Listen(ctx, l.Source.DSN("postgres"))
	if err != nil {
		return nil, err
	}
	target, err := faultpg.Listen(ctx, l.Target.DSN("postgres"))
	if err != nil {
		source.Close()
		return nil, err
	}
	return &far{l, source, target}, nil
}

func (f *far) close() {
	f.source.Close()
	f.target.Close()
}

func (f *far) delay(d distance, roundTrip time.Duration) {
	f.source.Delay(0)
	f.target.Delay(0)
	if d.source {
		f.source.Delay(roundTrip)
	}
	if d.target {
		f.target.Delay(roundTrip)
	}
}

// url leads through the proxy, also where nothing is delayed, so that the delay is the one difference.
func (f *far) url(c *lab.Cluster, database string) string {
	p := f.source
	if c == f.lab.Target {
		p = f.target
	}
	dsn := p.DSN(database)
	return fmt.Sprintf("postgresql://%s@%s:%d/%s?sslmode=disable", dsn.User(), dsn.Host(), dsn.Port(), database)
}

// A traveller is a follower over a distance. Unlike in catchUp, each has writes of its own to catch up
// with: one source feeds one Ficus.
type traveller struct {
	catcher
	far       *far
	distance  distance
	roundTrip time.Duration
}

func newTraveller(g *ground, f *far, d distance, roundTrip time.Duration) *traveller {
	own := *g
	own.url = f.url
	t := &traveller{catcher{&own, &ficusFollower{ground: &own, workers: d.workers}}, f, d, roundTrip}
	if d.native {
		t.follower = &nativeFollower{&own, "off", "off"}
	}
	return t
}

func (t *traveller) about() Contender {
	return Contender{Name: t.distance.at(t.roundTrip), Own: !t.distance.native}
}

func (t *traveller) run(ctx context.Context, round int) (Run, error) {
	t.far.delay(t.distance, 0)
	if err := t.round(ctx, t.follower); err != nil {
		return Run{}, err
	}
	if err := errors.Join(t.write(ctx), t.Checkpoint(ctx)); err != nil {
		return Run{}, err
	}
	t.far.delay(t.distance, t.roundTrip)
	defer t.far.delay(t.distance, 0)
	run, err := t.catcher.run(ctx, round)
	if err != nil {
		return Run{}, err
	}
	return run.following(), nil
}

// following puts the time since the slot was read first: the rate of catching up is about that. To
// connect takes so many round trips, however much there is to do.
func (r Run) following() Run {
	var following float64
	for _, m := range r.Metrics {
		switch m.Name {
		case "time":
			following += m.Value
		case "start":
			following -= m.Value
		}
	}
	r.Metrics = append([]Metric{{"following", "s", following}}, r.Metrics...)
	return r
}
