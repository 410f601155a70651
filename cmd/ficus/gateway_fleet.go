package main

import (
	"context"
	"errors"
	"log/slog"
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
}

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
