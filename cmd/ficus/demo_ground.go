package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/examples/shop"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pgserver"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/schema/dump"
)

const (
	demoDatabase = "shop"
	demoRole     = "shop" // of the clients: an ordinary role, not the superuser
)

// A demoGround is two clusters, and a directory for Ficus' state. Close it whatever became of it.
type demoGround struct {
	source, target *pgserver.Server // nil until they run
	dir            string
	remove         func() error
	rows           int64
}

// prepare finds PostgreSQL, starts two clusters and fills the shop in the older one.
func (d *demo) prepare(ctx context.Context) error {
	found, err := pgserver.Find()
	if err != nil {
		return err
	}
	source, target, err := chooseInstalls(found, d.flags.sourceVersion, d.flags.targetVersion)
	if err != nil {
		return &statusError{exitUsage, err}
	}
	if _, err := dump.FindTools(ctx, source.Major); err != nil {
		return err
	}

	g := d.ground
	if g.dir, err = os.MkdirTemp("", "ficus-demo-"); err != nil {
		return fmt.Errorf("make a directory for the demo: %w", err)
	}
	if g.remove, err = pgserver.Watch(ctx, `rm -rf "$1"`, g.dir); err != nil {
		return errors.Join(err, os.RemoveAll(g.dir))
	}
	d.story.step("start two clusters: PostgreSQL %s, and PostgreSQL %s", source.Version, target.Version)
	if err := g.start(ctx, source, target, d.log); err != nil {
		return err
	}
	d.story.fact("clusters", map[string]any{
		"source": map[string]any{"version": source.Version, "port": g.source.Port()},
		"target": map[string]any{"version": target.Version, "port": g.target.Port()},
	}, fmt.Sprintf("the old one, source, on port %d; the new one, target, on port %d", g.source.Port(), g.target.Port()))

	d.story.step("fill the shop on the old one: about %s rows", units.Count(int64(d.flags.rows)))
	began := time.Now()
	if err := g.fill(ctx, d.flags.rows); err != nil {
		return err
	}
	d.story.fact("filled", map[string]any{"rows": g.rows, "seconds": time.Since(began).Seconds()},
		fmt.Sprintf("%s rows in %s: orders, payments, a partitioned table, one without a key, sequences, triggers", units.Count(g.rows), units.Duration(time.Since(began))))
	return nil
}

// chooseInstalls takes the versions that were asked for; else the oldest as the source and the
// newest as the target, which are one and the same where only one version is installed.
func chooseInstalls(found []pgserver.Install, source, target int) (from, to pgserver.Install, err error) {
	pick := func(major, otherwise int) (pgserver.Install, error) {
		if major == 0 {
			return found[otherwise], nil
		}
		i := slices.IndexFunc(found, func(f pgserver.Install) bool { return f.Major == major })
		if i < 0 {
			var there []string
			for _, f := range found {
				there = append(there, strconv.Itoa(f.Major))
			}
			return pgserver.Install{}, hint.Wrap(fmt.Errorf("PostgreSQL %d is not on this machine", major),
				"there are: %s; more folders can be named in FICUS_PG_BIN", strings.Join(there, ", "))
		}
		return found[i], nil
	}
	if from, err = pick(source, len(found)-1); err != nil {
		return from, to, err
	}
	to, err = pick(target, 0)
	return from, to, err
}

// start starts both clusters at once, with the shop's empty database and role in each.
func (g *demoGround) start(ctx context.Context, source, target pgserver.Install, log *slog.Logger) error {
	one := func(in pgserver.Install, server **pgserver.Server) func() error {
		return func() error {
			s, err := pgserver.Start(ctx, pgserver.Config{Install: in, Log: log, Settings: map[string]string{
				"wal_level": "logical", "max_replication_slots": "20", "max_wal_senders": "20",
			}})
			if err != nil {
				return err
			}
			*server = s
			return execAll(ctx, s, "postgres", "CREATE ROLE "+demoRole+" LOGIN", "CREATE DATABASE "+demoDatabase)
		}
	}
	var both errgroup.Group // each is stopped by close, whatever became of the other
	both.Go(one(source, &g.source))
	both.Go(one(target, &g.target))
	return both.Wait()
}

// fill makes the shop and lets its clients in.
func (g *demoGround) fill(ctx context.Context, rows int) error {
	conn, err := g.source.DSN(demoDatabase).Connect(ctx, "demo")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if g.rows, err = shop.Fill(ctx, conn, rows); err != nil {
		return err
	}
	return execAll(ctx, g.source, demoDatabase,
		"GRANT USAGE ON SCHEMA shop TO "+demoRole,
		"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA shop TO "+demoRole,
		"GRANT USAGE ON ALL SEQUENCES IN SCHEMA shop TO "+demoRole)
}

func execAll(ctx context.Context, s *pgserver.Server, database string, statements ...string) error {
	conn, err := s.DSN(database).Connect(ctx, "demo")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// close stops the clusters and removes all that the demo made. Their data is of no use any more, so
// they need not shut down in an orderly way.
func (g *demoGround) close(ctx context.Context) error {
	var errs []error
	for _, s := range []*pgserver.Server{g.source, g.target} {
		if s != nil {
			errs = append(errs, s.Kill(), s.Stop(ctx))
		}
	}
	if g.remove != nil {
		errs = append(errs, g.remove())
	}
	return errors.Join(errs...)
}

// gatewayURL is how a client of the shop connects at a door.
func gatewayURL(door net.Addr) string {
	return fmt.Sprintf("postgresql://%s@%s/%s?sslmode=disable", demoRole, door, demoDatabase)
}
