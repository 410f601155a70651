package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

const (
	lagProbe   = "public.bench_probe"
	probeEvery = 20 * time.Millisecond  // a row is written
	lookEvery  = 250 * time.Microsecond // for rows that have not come yet
)

// A prober writes rows to a source at even distances, and watches a target for them. A row that is
// late does not hold up the next one, so that a pause counts for all rows that it held.
type prober struct {
	*ground
	database string    // of the target
	from     time.Time // rows before it do not count

	lags []float64 // milliseconds; once run has returned
}

// A probe is a row that is committed. Its number is the time when it was to be written, so that the
// numbers of a later prober are higher.
type probe struct {
	number int64
	at     time.Time // of the answer to its commit
}

// run goes on until ended is closed and every row has come.
func (p *prober) run(ctx context.Context, ended <-chan struct{}) error {
	source, err := p.Source.Connect(ctx, p.source)
	if err != nil {
		return err
	}
	defer closeConn(ctx, source)
	target, err := p.Target.Connect(ctx, p.database)
	if err != nil {
		return err
	}
	defer closeConn(ctx, target)
	probes := make(chan probe, 1<<16) // all rows of half an hour: the writer never waits for the watcher
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(probes)
		return write(ctx, source, probes, ended)
	})
	g.Go(func() error { return p.watch(ctx, target, probes) })
	return g.Wait()
}

func write(ctx context.Context, conn *pgx.Conn, probes chan<- probe, ended <-chan struct{}) error {
	every := time.NewTicker(probeEvery)
	defer every.Stop()
	for {
		var number int64
		select {
		case t := <-every.C:
			number = t.UnixNano()
		case <-ended:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if _, err := conn.Exec(ctx, "INSERT INTO "+lagProbe+" VALUES ($1)", number); err != nil {
			return fmt.Errorf("write a probe: %w", err)
		}
		probes <- probe{number, time.Now()}
	}
}

// watch looks for the rows in the order in which they were written, which is also that in which they
// come.
func (p *prober) watch(ctx context.Context, conn *pgx.Conn, probes <-chan probe) error {
	pause := time.NewTicker(lookEvery)
	defer pause.Stop()
	seen, when := int64(0), time.Time{} // the newest row that was there, and since when at the latest
	for want := range probes {
		for seen < want.number {
			if err := conn.QueryRow(ctx, "SELECT coalesce(max(id), 0) FROM "+lagProbe).Scan(&seen); err != nil {
				return fmt.Errorf("look for a probe: %w", err)
			}
			when = time.Now()
			if seen < want.number {
				<-pause.C
			}
		}
		if want.at.After(p.from) {
			p.lags = append(p.lags, float64(max(0, when.Sub(want.at)))/float64(time.Millisecond))
		}
	}
	return nil
}
