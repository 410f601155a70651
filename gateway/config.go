package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
)

// A Backend names one of the databases behind the gateway.
type Backend string

// Config holds what a Gateway needs. A field without a stated default is required.
type Config struct {
	// Listen is the address of the read-write door, host:port; port 0 takes a free one.
	Listen string
	// ReadListen is the address of the read-only door (default: there is none).
	ReadListen string
	// Backends are the databases, one or two. Clients connect to the database that the DSN names,
	// as the user and with the password described at Users.
	Backends map[Backend]pg.DSN
	// Owner is the backend that owns the data until a Release says otherwise.
	Owner Backend
	// Epoch is that of the last change of owner: older calls of Hold and Release are refused (default 0).
	Epoch int64

	// Users is the path of a file with one `"user" "secret"` line per user who may connect; the
	// secret is a password or a SCRAM-SHA-256 secret as pg_authid.rolpassword holds it. A password
	// also serves for the server session; a user without one gets the backend DSN's password if it
	// is the DSN's user, and none otherwise. Default: no file, everybody is trusted, and both doors
	// must be on loopback addresses.
	Users string

	// Reads tunes the read-only door.
	Reads Reads
	// Shadow says which reads are run on the other backend, too.
	Shadow Shadow

	// HoldTimeout is how long one client waits for a Release (default 30 s).
	HoldTimeout time.Duration
	// MaxHeld is how many clients may wait at once (default 10,000).
	MaxHeld int
	// MaxClients is how many clients may be connected at once (default 10,000).
	MaxClients int
	// MaxMoves is how many sessions move to another backend at once (default 32).
	MaxMoves int
	// MoveTimeout bounds the move of one session, and each connection to a backend (default 10 s).
	MoveTimeout time.Duration
	// StartupTimeout bounds what a client takes to introduce and authenticate itself (default 15 s).
	StartupTimeout time.Duration
	// StopTimeout is how long open transactions may run on after Run's context ended (default 5 s).
	StopTimeout time.Duration

	// Log gets what an operator should know (default: discarded).
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	c.Reads, c.Shadow = c.Reads.withDefaults(), c.Shadow.withDefaults()
	c.HoldTimeout = cmp.Or(c.HoldTimeout, 30*time.Second)
	c.MaxHeld = cmp.Or(c.MaxHeld, 10_000)
	c.MaxClients = cmp.Or(c.MaxClients, 10_000)
	c.MaxMoves = cmp.Or(c.MaxMoves, 32)
	c.MoveTimeout = cmp.Or(c.MoveTimeout, 10*time.Second)
	c.StartupTimeout = cmp.Or(c.StartupTimeout, 15*time.Second)
	c.StopTimeout = cmp.Or(c.StopTimeout, 5*time.Second)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) validate() error {
	if n := len(c.Backends); n < 1 || n > 2 {
		return fmt.Errorf("gateway: %d backends, want one or two", n)
	}
	for name, dsn := range c.Backends {
		if dsn.IsZero() {
			return fmt.Errorf("gateway: backend %s has no connection string", name)
		}
	}
	if _, ok := c.Backends[c.Owner]; !ok {
		return fmt.Errorf("gateway: owner %q is not among the backends", c.Owner)
	}
	if err := errors.Join(c.Reads.validate(), c.Shadow.validate(c.Reads)); err != nil {
		return err
	}
	if c.Listen == "" {
		return errors.New("gateway: no address to listen on")
	}
	for _, addr := range []string{c.Listen, c.ReadListen} {
		if addr == "" {
			continue
		}
		local, err := loopback(addr)
		if err != nil {
			return err
		}
		if !local && c.Users == "" {
			return hint.Wrap(fmt.Errorf("gateway: refuse to listen on %s without a users file", addr),
				"give a users file, so that clients must authenticate, or listen on 127.0.0.1")
		}
	}
	return nil
}

// loopback reports whether addr can be reached from this machine only.
func loopback(addr string) (bool, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false, hint.Wrap(fmt.Errorf("gateway: listen address %q: %w", addr, err), "write it as host:port")
	}
	if host == "localhost" {
		return true, nil
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback(), nil
}
