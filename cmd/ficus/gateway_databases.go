package main

import (
	"cmp"
	"fmt"
	"os"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/ficus-migrate/ficus/gateway"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
)

// A databasesFile is what --databases names.
type databasesFile struct {
	Databases map[string]gatewayDatabase `yaml:"databases"`
}

// A gatewayDatabase is one of several behind a gateway. What is left out is as the flags say.
type gatewayDatabase struct {
	Source      string        `yaml:"source"`
	Target      string        `yaml:"target"`
	Owner       string        `yaml:"owner"` // default source
	Users       string        `yaml:"users"`
	AuthQuery   string        `yaml:"auth_query"`
	Pooling     string        `yaml:"pooling"`
	MaxClients  int           `yaml:"max_clients"`
	MaxPerUser  int           `yaml:"max_per_user"`
	MaxServers  int           `yaml:"max_servers"`
	ServerWait  time.Duration `yaml:"server_wait"`
	HoldTimeout time.Duration `yaml:"hold_timeout"`
	DryRun      bool          `yaml:"dry_run"`
}

// hall returns the doors and what is behind them, by the flags and the file that they name. The only
// database of --source and --target has no name.
func (f *gatewayFlags) hall(cmd *cobra.Command) (gateway.HallConfig, error) {
	c := f.cfg
	h := gateway.HallConfig{
		Listen: c.Listen, ReadListen: c.ReadListen, Databases: map[string]gateway.Config{}, MaxClients: c.MaxClients, TLS: c.TLS,
		StopTimeout: c.StopTimeout, RetireTimeout: c.RetireTimeout,
	}
	var err error
	if h.ReadListen == "" {
		if h.ReadListen, err = nextPort(h.Listen); err != nil {
			return h, usageError(cmd, err)
		}
	}
	if f.databases == "" {
		only, err := f.config(gatewayDatabase{Source: f.source, Target: f.target, Owner: f.owner})
		if err != nil {
			return h, usageError(cmd, err)
		}
		h.Databases[""] = only
		return h, nil
	}
	if f.source+f.target != "" {
		return h, usageError(cmd, hint.Wrap(fmt.Errorf("--databases does not go with --source and --target"), "write them into the file"))
	}
	all, err := readDatabases(f.databases)
	if err != nil {
		return h, &statusError{exitUsage, err}
	}
	for name, d := range all {
		if h.Databases[name], err = f.config(d); err != nil {
			return h, &statusError{exitUsage, fmt.Errorf("%s: database %s: %w", f.databases, name, err)}
		}
	}
	return h, nil
}

// readDatabases reads the file. A key that is not known is an error.
func readDatabases(file string) (map[string]gatewayDatabase, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read the databases: %w", err)
	}
	defer f.Close()
	var in databasesFile
	if err := yaml.NewDecoder(f, yaml.Strict()).Decode(&in); err != nil {
		return nil, hint.Wrap(fmt.Errorf("%s: %s", file, yaml.FormatError(err, false, false)), "docs/gateway.md has an example")
	}
	if len(in.Databases) == 0 {
		return nil, hint.Wrap(fmt.Errorf("%s names no database", file), "docs/gateway.md has an example")
	}
	return in.Databases, nil
}

// config turns a database of the file, and the flags, into a gateway's configuration.
func (f *gatewayFlags) config(d gatewayDatabase) (gateway.Config, error) {
	c := f.cfg
	c.Backends = map[gateway.Backend]pg.DSN{}
	for side, s := range map[migrate.Side]string{migrate.Source: d.Source, migrate.Target: d.Target} {
		if s == "" {
			continue
		}
		dsn, err := pg.Parse(s)
		if err != nil {
			return c, fmt.Errorf("%s: %w", side, err)
		}
		c.Backends[gateway.Backend(side)] = dsn
	}
	c.Owner = gateway.Backend(cmp.Or(d.Owner, string(migrate.Source)))
	if _, ok := c.Backends[c.Owner]; !ok {
		return c, hint.Wrap(fmt.Errorf("there is no connection string for the owner, the %s", c.Owner), "give %s, or the other side with owner", c.Owner)
	}
	c.Users, c.AuthQuery = cmp.Or(d.Users, c.Users), cmp.Or(d.AuthQuery, c.AuthQuery)
	c.Pooling = gateway.Pooling(cmp.Or(d.Pooling, f.pooling))
	c.MaxClients, c.MaxPerUser, c.MaxServers = cmp.Or(d.MaxClients, c.MaxClients), cmp.Or(d.MaxPerUser, c.MaxPerUser), cmp.Or(d.MaxServers, c.MaxServers)
	c.ServerWait, c.HoldTimeout = cmp.Or(d.ServerWait, c.ServerWait), cmp.Or(d.HoldTimeout, c.HoldTimeout)
	c.DryRun = c.DryRun || d.DryRun
	return c, nil
}
