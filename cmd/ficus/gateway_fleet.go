package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/gateway"
	"github.com/ficus-migrate/ficus/gateway/control"
	"github.com/ficus-migrate/ficus/migrate"
)

// A fleet is every gateway that runs as a process of its own, as the workflow wants it. It implements
// [migrate.Router].
type fleet struct {
	gateways []*control.Client
	log      *slog.Logger

	mu struct {
		sync.Mutex
		traffic migrate.Traffic
		at      time.Time // of traffic
	}
}

// trafficAge is how old the traffic of other processes may be: a status is asked for often.
const trafficAge = time.Second

func newFleet(sockets []string, database string, log *slog.Logger) *fleet {
	f := &fleet{log: log}
	for _, path := range sockets {
		f.gateways = append(f.gateways, control.NewClient(path, database))
	}
	return f
}

// Close lets go of what is held: the gateways then ask the databases.
func (f *fleet) Close() {
	for _, g := range f.gateways {
		g.Close()
	}
}

func (f *fleet) each(ctx context.Context, do func(context.Context, *control.Client) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, g := range f.gateways {
		group.Go(func() error { return do(ctx, g) })
	}
	return group.Wait()
}

// Reads implements [migrate.Router].
func (f *fleet) Reads(ctx context.Context, percent int) error {
	return f.each(ctx, func(ctx context.Context, g *control.Client) error { return g.Reads(ctx, percent) })
}

// Expect implements [migrate.Expecter].
func (f *fleet) Expect(ctx context.Context, owner migrate.Side) error {
	return f.each(ctx, func(ctx context.Context, g *control.Client) error { return g.Expect(ctx, gateway.Backend(owner)) })
}

// Hold implements [migrate.Router]. Every gateway must answer: who is not held would meet the fence.
func (f *fleet) Hold(ctx context.Context, epoch int64) error {
	return f.each(ctx, func(ctx context.Context, g *control.Client) error { return g.Hold(ctx, epoch) })
}

// Release implements [migrate.Router]. A gateway that is gone holds nobody, and asks the databases when
// it comes back.
func (f *fleet) Release(ctx context.Context, owner migrate.Side, epoch int64) error {
	return f.each(ctx, func(ctx context.Context, g *control.Client) error {
		err := g.Release(ctx, gateway.Backend(owner), epoch)
		if errors.Is(err, control.ErrGone) {
			f.log.LogAttrs(ctx, slog.LevelWarn, "a gateway is gone, nobody is released there", slog.Any("err", err))
			return nil
		}
		return err
	})
}

// Traffic implements [migrate.Observer]: sums over all gateways, of times the longest. One that is away is left out.
func (f *fleet) Traffic() migrate.Traffic {
	f.mu.Lock()
	known, fresh := f.mu.traffic, time.Since(f.mu.at) < trafficAge
	f.mu.Unlock()
	if fresh {
		return known
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	t := migrate.Traffic{Clients: &migrate.ClientFigures{}}
	for _, g := range f.gateways {
		st, err := g.Status(ctx)
		if err != nil {
			continue // the steps that need it say so
		}
		for s := &st; s != nil; s = s.Before {
			addTraffic(&t, s)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.traffic, f.mu.at = t, time.Now()
	return t
}

// addTraffic adds what one process says.
func addTraffic(t *migrate.Traffic, st *control.Status) {
	r, c := readTraffic(st.Reads), clientFigures(st.Stats, st.Stalls)
	t.Percent, t.Waited, t.OnOwner, t.Fault = max(t.Percent, r.Percent), t.Waited+r.Waited, t.OnOwner+r.OnOwner, cmp.Or(t.Fault, st.Fault)
	for sum, one := range map[*migrate.ReadFigures]migrate.ReadFigures{&t.Owner: r.Owner, &t.Other: r.Other} {
		sum.Reads, sum.Failed = sum.Reads+one.Reads, sum.Failed+one.Failed
		sum.P50, sum.P95 = max(sum.P50, one.P50), max(sum.P95, one.P95)
	}
	all := t.Clients
	all.Connected, all.Held, all.Transactions = all.Connected+c.Connected, all.Held+c.Held, all.Transactions+c.Transactions
	all.Moved, all.Ended, all.Refused, all.Asks = all.Moved+c.Moved, all.Ended+c.Ended, all.Refused+c.Refused, all.Asks+c.Asks
	all.Stall.Clients += c.Stall.Clients
	all.Stall.P50, all.Stall.P99, all.Stall.Max = max(all.Stall.P50, c.Stall.P50), max(all.Stall.P99, c.Stall.P99), max(all.Stall.Max, c.Stall.Max)
}

// Stalls implements [migrate.Router]: the clients of all gateways, and the longest waits among them.
func (f *fleet) Stalls() (all migrate.StallStats) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, g := range f.gateways {
		st, err := g.Status(ctx)
		if err != nil {
			f.log.LogAttrs(ctx, slog.LevelWarn, "a gateway does not tell its stalls", slog.Any("err", err))
			continue
		}
		all.Clients += st.Stalls.Clients
		all.P50, all.P99, all.Max = max(all.P50, st.Stalls.P50), max(all.P99, st.Stalls.P99), max(all.Max, st.Stalls.Max)
	}
	return all
}
