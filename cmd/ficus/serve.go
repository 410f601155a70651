package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/web"
)

// serverFlags say where and for whom the API is.
type serverFlags struct {
	listen          string
	tokens          string
	tlsCert, tlsKey string
}

func (f *serverFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.listen, "listen", "127.0.0.1:7070", "address of API and dashboard")
	fs.StringVar(&f.tokens, "tokens", "", "file with API tokens; needed on any address but loopback")
	fs.StringVar(&f.tlsCert, "tls-cert", "", "certificate of the API (PEM)")
	fs.StringVar(&f.tlsKey, "tls-key", "", "key of the certificate (PEM)")
}

func (a *app) newServer(m *manager, f serverFlags, log *slog.Logger) (*api.Server, error) {
	return api.New(api.Config{
		Service: m, Listen: f.listen, Tokens: f.tokens, TLSCert: f.tlsCert, TLSKey: f.tlsKey,
		Web: web.FS(), Version: versionText(), Log: log.With(slog.String("part", "api")),
		Collectors: []prometheus.Collector{newGatewayMetrics("migration", m.gateways), newDoorMetrics(m)},
	})
}

func (a *app) serveCommand() *cobra.Command {
	var f serverFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run many migrations as a daemon, driven over the API",
		Long: `Serve the API and the dashboard and run every migration that is started over it. Migrations that
an earlier ficus serve with the same --data-dir was running go on where they were.

The data directory then holds the connection strings of its migrations: keep it private.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serve(cmd.Context(), f) },
	}
	f.register(cmd)
	return cmd
}

func (a *app) serve(ctx context.Context, f serverFlags) (err error) {
	log, err := a.log()
	if err != nil {
		return err
	}
	store, err := a.openStore(log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	running, cancel := context.WithCancel(ctx)
	m := newManager(running, store, dumpDir(a.dataDir), log)
	defer m.Wait()
	defer cancel()
	if err := m.recover(ctx); err != nil {
		return err
	}
	server, err := a.newServer(m, f, log)
	if err != nil {
		return err
	}
	go func() { // ends with the server
		select {
		case <-server.Listening():
			a.line("listening", map[string]any{"api": server.URL()}, "dashboard and API "+server.URL())
		case <-running.Done():
		}
	}()
	return ignoreEnd(ctx, server.Run(ctx))
}

// keep remembers how a migration was started.
func (m *manager) keep(name string, r api.StartRequest) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("remember migration %s: %w", name, err)
	}
	return m.store.Bucket(requests).Put(name, data)
}

// started returns what keep remembers.
func (m *manager) started(name string) (r api.StartRequest, err error) {
	data, _, err := m.store.Bucket(requests).Get(name)
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return r, fmt.Errorf("read how migration %s was started: %w", name, err)
	}
	if r.Params == nil {
		r.Params = map[string]string{}
	}
	return r, nil
}

// recover goes on with the migrations of an earlier process. One that cannot is logged and left
// alone: the others must not wait for it.
func (m *manager) recover(ctx context.Context) error {
	names, err := m.store.Bucket(requests).Keys("")
	if err != nil {
		return err
	}
	for _, name := range names {
		r, err := m.started(name)
		if err != nil {
			return err
		}
		_, _, phase, err := m.present(name)
		if err != nil {
			return err
		}
		if phase.Final() { // begun again it would be another migration
			if err := m.store.Bucket(requests).Delete(name); err != nil {
				return err
			}
			continue
		}
		e, err := m.begin(ctx, r)
		if err != nil {
			m.log.LogAttrs(ctx, slog.LevelError, "migration cannot go on", slog.String("migration", name), slog.Any("err", err))
			continue
		}
		m.drive(e)
	}
	return nil
}
