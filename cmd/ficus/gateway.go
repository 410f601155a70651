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
	databases      string
	metrics        string
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
	fs.StringVar(&f.databases, "databases", "", "file with several databases behind the same doors, by the name that clients ask for; instead of --source, --target and --owner")
	fs.StringVar(&f.cfg.Listen, "gateway-listen", "127.0.0.1:7432", "address of the read-write door")
	fs.StringVar(&f.cfg.ReadListen, "gateway-read-listen", "", "address of the read-only door (default: the next port)")
	fs.StringVar(&f.control, "control", "", "Unix socket on which a migration drives this gateway (default: gateway.sock in the data directory)")
	fs.StringVar(&f.metrics, "metrics-listen", "", "address that answers /metrics, /healthz and /readyz, for anybody who reaches it (default: none)")
	fs.BoolVar(&f.takeOver, "take-over", true, "take the doors over from the gateway that listens at --control, if there is one; no client is dropped")
	fs.StringVar(&f.cfg.Users, "users", "", "file with the users that the gateway lets in")
	fs.StringVar(&f.cfg.AuthQuery, "auth-query", "", "query for users that the file does not hold: takes the name as $1, returns name and secret")
	fs.StringVar(&f.cfg.TLS.Cert, "tls-cert", "", "certificate for clients (PEM)")
	fs.StringVar(&f.cfg.TLS.Key, "tls-key", "", "key of the certificate (PEM)")
	fs.StringVar(&f.cfg.TLS.ClientCA, "tls-client-ca", "", "authorities whose certificates clients must show (PEM)")
	fs.BoolVar(&f.cfg.TLS.Required, "tls-required", false, "refuse clients without TLS")
	fs.IntVar(&f.cfg.MaxClients, "max-clients", 10_000, "connections of clients; of all databases together, and of each")
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

func (a *app) runGateway(cmd *cobra.Command, f gatewayFlags) error {
	ctx := cmd.Context()
	h, err := f.hall(cmd)
	if err != nil {
		return err
	}
	if h.Log, err = a.log(); err != nil {
		return err
	}
	if f.control == "" {
		if err := os.MkdirAll(a.dataDir, 0o700); err != nil {
			return fmt.Errorf("make the data directory: %w", err)
		}
		f.control = filepath.Join(a.dataDir, "gateway.sock")
	}
	for name, c := range h.Databases {
		o, err := newOwners(ctx, c.Backends)
		if err != nil {
			return err
		}
		defer o.Close()
		if h.Databases[name], err = asked(ctx, c, o); err != nil && name != "" {
			return fmt.Errorf("database %s: %w", name, err)
		} else if err != nil {
			return err
		}
	}
	cc := control.Config{Path: f.control, Log: h.Log}
	if f.takeOver {
		in, err := control.TakeOver(ctx, f.control)
		if err != nil {
			return hint.Wrap(err, "start it with --take-over=false on another --control and address to leave that one alone")
		}
		if in != nil {
			inherit(ctx, &h, in)
			cc.Before = in.Before
		}
	}
	return a.serveGateway(ctx, h, cc, f.metrics)
}

// asked lets the databases say who owns, now and later.
func asked(ctx context.Context, c gateway.Config, o owners) (gateway.Config, error) {
	c.Ask = o.ask
	said, err := o.ask(ctx)
	if err != nil {
		return c, hint.Wrap(fmt.Errorf("ask who owns the data: %w", err), "one of the databases must answer when the gateway starts")
	}
	if said.Owner != "" {
		c.Owner, c.Epoch, c.Answered = said.Owner, said.Epoch, true
	}
	return c, nil
}

// inherit goes on from where the process before is.
func inherit(ctx context.Context, h *gateway.HallConfig, in *control.Inheritance) {
	for name, was := range in.Databases {
		c, ok := h.Databases[name]
		if !ok {
			h.Log.LogAttrs(ctx, slog.LevelWarn, "clients of a database that is not there any more stay with the process before, which follows what the database says",
				slog.String("database", name))
			continue
		}
		c.Owner, c.Epoch, c.Answered, c.Percent = was.Owner, was.Epoch, was.Answered, was.Percent
		h.Databases[name] = c
	}
	h.Doors = in.Doors
	h.Elsewhere = func(ctx context.Context, pid, secret uint32) {
		if err := in.Cancel(ctx, pid, secret); err != nil {
			h.Log.LogAttrs(ctx, slog.LevelWarn, "cancel request did not reach the process before", slog.Any("err", err))
		}
	}
}

// serveGateway runs the gateways with their control beside them.
func (a *app) serveGateway(ctx context.Context, hc gateway.HallConfig, cc control.Config, metrics string) error {
	h, err := gateway.NewHall(hc)
	if err != nil {
		return err
	}
	cc.Hall = h
	server, err := control.New(cc)
	if err != nil {
		return err
	}
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return h.Run(running) })
	group.Go(func() error {
		select {
		case <-h.Listening():
		case <-running.Done():
			return context.Cause(running)
		}
		a.line("listening", map[string]any{"gateway": h.Addr().String(), "gateway_read_only": h.ReadAddr().String(), "control": cc.Path},
			fmt.Sprintf("application connects to %s (reads only: %s), migrations to %s", h.Addr(), h.ReadAddr(), cc.Path))
		return server.Run(running)
	})
	if metrics != "" {
		p := gatewayPort{addr: metrics, hall: h}
		if only, ok := hc.Databases[""]; ok {
			p.name = only.Backends[only.Owner].Database()
		}
		group.Go(func() error { return p.run(running) })
	}
	group.Go(func() error { return a.reloads(running, h, hc.Log) })
	err = group.Wait()
	if errors.Is(err, gateway.ErrRetired) {
		return nil
	}
	return ignoreEnd(ctx, err)
}

// reloads reads users and certificate again at each SIGHUP.
func (a *app) reloads(ctx context.Context, h *gateway.Hall, log *slog.Logger) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-hup:
			if err := h.Reload(); err != nil {
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
