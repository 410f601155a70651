package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/gateway"
	"github.com/ficus-migrate/ficus/gateway/control"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/fence"
)

// gatewayFlags are those of the front door as a process of its own.
type gatewayFlags struct {
	source, target string
	owner          string
	control        string
	takeOver       bool
	pooling        string
	cfg            gateway.Config
}

func (f *gatewayFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.source, "source", "", "connection string of the database that is moved")
	fs.StringVar(&f.target, "target", "", "connection string of the database that it is moved to; may be left away before and after a migration")
	fs.StringVar(&f.owner, "owner", "source", "who owns the data as long as neither database says so: source or target")
	fs.StringVar(&f.cfg.Listen, "gateway-listen", "127.0.0.1:7432", "address of the read-write door")
	fs.StringVar(&f.cfg.ReadListen, "gateway-read-listen", "", "address of the read-only door (default: the next port)")
	fs.StringVar(&f.control, "control", "", "Unix socket on which a migration drives this gateway (default: gateway.sock in the data directory)")
	fs.BoolVar(&f.takeOver, "take-over", true, "take the doors over from the gateway that listens at --control, if there is one; no client is dropped")
	fs.StringVar(&f.cfg.Users, "users", "", "file with the users that the gateway lets in")
	fs.StringVar(&f.cfg.AuthQuery, "auth-query", "", "query for users that the file does not hold: takes the name as $1, returns name and secret")
	fs.StringVar(&f.cfg.TLS.Cert, "tls-cert", "", "certificate for clients (PEM)")
	fs.StringVar(&f.cfg.TLS.Key, "tls-key", "", "key of the certificate (PEM)")
	fs.StringVar(&f.cfg.TLS.ClientCA, "tls-client-ca", "", "authorities whose certificates clients must show (PEM)")
	fs.BoolVar(&f.cfg.TLS.Required, "tls-required", false, "refuse clients without TLS")
	fs.IntVar(&f.cfg.MaxClients, "max-clients", 10_000, "connections of clients")
	fs.IntVar(&f.cfg.MaxPerUser, "max-per-user", 0, "of them, those of one user; 0 for no limit")
	fs.IntVar(&f.cfg.MaxServers, "max-servers", 0, "server sessions on each database, for which clients wait in their order; 0 for no limit")
	fs.DurationVar(&f.cfg.ServerWait, "server-wait", 30*time.Second, "how long a client waits for one of --max-servers")
	fs.DurationVar(&f.cfg.HoldTimeout, "hold-timeout", 30*time.Second, "how long a client is held before it gets a retryable error")
	fs.DurationVar(&f.cfg.StopTimeout, "stop-timeout", 5*time.Second, "how long open transactions may run on after a signal")
	fs.DurationVar(&f.cfg.RetireTimeout, "retire-timeout", time.Hour, "how long clients may stay after another process took the doors over")
	fs.StringVar(&f.pooling, "pooling", string(gateway.SessionPooling), "for how long a client has a server session of its own: session or transaction")
	fs.BoolVar(&f.cfg.DryRun, "dry-run", false, "hold nobody, count who would have waited")
}

func (a *app) gatewayCommand() *cobra.Command {
	var f gatewayFlags
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Run the front door as a process of its own",
		Long: `Lead clients to the database that owns the data, in a process that outlives the migration: before it, while
it runs (router.control of the playbook names this gateway's --control), and after it. The databases
themselves say who owns; a migration only tells the gateway when to hold.

Started again with the same --control, the new process takes the doors over, and the old one stays until its
clients have left: no connection is refused and none is cut. A signal HUP reads users and certificate again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runGateway(cmd, f) },
	}
	f.register(cmd)
	return cmd
}

// config turns the flags into a gateway's configuration.
func (f *gatewayFlags) config(cmd *cobra.Command) (gateway.Config, error) {
	c := f.cfg
	c.Pooling = gateway.Pooling(f.pooling)
	c.Backends = map[gateway.Backend]pg.DSN{}
	for side, s := range map[migrate.Side]string{migrate.Source: f.source, migrate.Target: f.target} {
		if s == "" {
			continue
		}
		dsn, err := pg.Parse(s)
		if err != nil {
			return c, &statusError{exitUsage, fmt.Errorf("--%s: %w", side, err)}
		}
		c.Backends[gateway.Backend(side)] = dsn
	}
	c.Owner = gateway.Backend(f.owner)
	if _, ok := c.Backends[c.Owner]; !ok {
		return c, usageError(cmd, hint.Wrap(fmt.Errorf("there is no connection string for the owner, the %s", f.owner), "give --%s, or the other side with --owner", f.owner))
	}
	if c.ReadListen == "" {
		var err error
		if c.ReadListen, err = nextPort(c.Listen); err != nil {
			return c, usageError(cmd, err)
		}
	}
	return c, nil
}

func (a *app) runGateway(cmd *cobra.Command, f gatewayFlags) error {
	ctx := cmd.Context()
	c, err := f.config(cmd)
	if err != nil {
		return err
	}
	if c.Log, err = a.log(); err != nil {
		return err
	}
	if f.control == "" {
		if err := os.MkdirAll(a.dataDir, 0o700); err != nil {
			return fmt.Errorf("make the data directory: %w", err)
		}
		f.control = filepath.Join(a.dataDir, "gateway.sock")
	}
	o, err := newOwners(ctx, c.Backends)
	if err != nil {
		return err
	}
	defer o.Close()
	c.Ask = o.ask
	if said, err := o.ask(ctx); err != nil {
		return hint.Wrap(fmt.Errorf("ask who owns the data: %w", err), "one of the databases must answer when the gateway starts")
	} else if said.Owner != "" {
		c.Owner, c.Epoch, c.Answered = said.Owner, said.Epoch, true
	}
	var before *control.Client
	if f.takeOver {
		in, err := control.TakeOver(ctx, f.control)
		if err != nil {
			return hint.Wrap(err, "start it with --take-over=false on another --control and address to leave that one alone")
		}
		if in != nil {
			c.Owner, c.Epoch, c.Answered, c.Percent = in.Owner, in.Epoch, in.Answered, in.Percent
			c.Doors, before = in.Doors, in.Before
			c.Elsewhere = func(ctx context.Context, pid, secret uint32) {
				if err := before.Cancel(ctx, pid, secret); err != nil && !errors.Is(err, control.ErrGone) {
					c.Log.LogAttrs(ctx, slog.LevelWarn, "cancel request did not reach the process before", slog.Any("err", err))
				}
			}
			defer before.Close()
		}
	}
	return a.serveGateway(ctx, c, control.Config{Path: f.control, Before: before, Log: c.Log})
}

// serveGateway runs the gateway with its control beside it.
func (a *app) serveGateway(ctx context.Context, c gateway.Config, cc control.Config) error {
	g, err := gateway.New(c)
	if err != nil {
		return err
	}
	cc.Gateway = g
	server, err := control.New(cc)
	if err != nil {
		return err
	}
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return g.Run(running) })
	group.Go(func() error {
		select {
		case <-g.Listening():
		case <-running.Done():
			return context.Cause(running)
		}
		a.line("listening", map[string]any{"gateway": g.Addr().String(), "gateway_read_only": g.ReadAddr().String(), "control": cc.Path},
			fmt.Sprintf("application connects to %s (reads only: %s), migrations to %s", g.Addr(), g.ReadAddr(), cc.Path))
		return server.Run(running)
	})
	group.Go(func() error { return a.reloads(running, g, c.Log) })
	err = group.Wait()
	if errors.Is(err, gateway.ErrRetired) {
		return nil
	}
	return ignoreEnd(ctx, err)
}

// reloads reads users and certificate again at each SIGHUP.
func (a *app) reloads(ctx context.Context, g *gateway.Gateway, log *slog.Logger) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-hup:
			if err := g.Reload(); err != nil {
				log.LogAttrs(ctx, slog.LevelError, "reload failed, users and certificate stay as they were", slog.Any("err", err))
			} else {
				log.LogAttrs(ctx, slog.LevelInfo, "users and certificate read again")
			}
		}
	}
}

// owners ask the databases who owns the data.
type owners map[migrate.Side]*fence.Database

func newOwners(ctx context.Context, backends map[gateway.Backend]pg.DSN) (owners, error) {
	o := owners{}
	for b, dsn := range backends {
		side := migrate.Side(b)
		db, err := fence.New(ctx, fence.Config{DSN: dsn, Self: side})
		if err != nil {
			o.Close()
			return nil, err
		}
		o[side] = db
	}
	return o, nil
}

func (o owners) Close() {
	for _, db := range o {
		db.Close()
	}
}

// ask returns what the databases say. The one that owns must answer itself: only it knows whether it
// lets writes through. Where no migration has been, nobody says anything and nothing is fenced.
func (o owners) ask(ctx context.Context) (gateway.Ownership, error) {
	said := map[migrate.Side]migrate.Ownership{}
	var best migrate.Ownership
	var failed error
	for side, db := range o {
		own, err := db.Ownership(ctx)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		said[side] = own
		if own.Epoch > best.Epoch {
			best = own
		}
	}
	if best.Epoch == 0 {
		if failed != nil {
			return gateway.Ownership{}, failed
		}
		return gateway.Ownership{Open: true}, nil
	}
	self, ok := said[best.Owner]
	if !ok {
		return gateway.Ownership{}, errors.Join(fmt.Errorf("the %s owns the data and does not answer", best.Owner), failed)
	}
	return gateway.Ownership{Owner: gateway.Backend(best.Owner), Epoch: best.Epoch, Open: self.GateOpen}, nil
}
