package gateway

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
)

// A Backend names one of the databases behind the gateway.
type Backend string

// Config holds what a Gateway needs. A field without a stated default is required. In a [Hall] of several,
// Listen, ReadListen, Doors, Elsewhere, TLS and the timeouts of start, stop and retirement are the hall's.
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
	// Answered and Percent go on, with Owner and Epoch, from where another process was: see
	// [Position] (default: a fresh start).
	Answered bool
	Percent  int
	// Doors are open doors of that process, by name (default: Listen and ReadListen are opened).
	Doors map[string]*os.File
	// RetireTimeout is how long clients may stay after HandOver (default 1 h).
	RetireTimeout time.Duration
	// Elsewhere gets cancel requests for sessions that are not here (default: they are dropped).
	Elsewhere func(ctx context.Context, pid, secret uint32)

	// Users is the path of a file with one `"user" "secret"` line per user who may connect; the
	// secret is a password or a SCRAM-SHA-256 secret as pg_authid.rolpassword holds it. A password
	// also opens the server session. With a secret the login itself opens it, where the server holds
	// the same secret. A user without either gets the backend DSN's password if it is the DSN's user,
	// and none otherwise. Default: no file; without AuthQuery everybody is trusted then, and both
	// doors must be on loopback addresses.
	Users string
	// AuthQuery is asked of the owner, over the backend's DSN, for users that the file does not hold.
	// It takes the name as $1 and returns name and secret, or no row. The search_path is empty
	// (default: nobody is asked for).
	AuthQuery string
	// TLS is for clients; that of the server sessions is in the backends' DSNs (default: declined).
	TLS TLS

	// Reads tunes the read-only door.
	Reads Reads
	// Shadow says which reads are run on the other backend, too.
	Shadow Shadow

	// HoldTimeout is how long one client waits for a Release (default 30 s).
	HoldTimeout time.Duration
	// MaxHeld is how many clients may wait at once (default 10,000).
	MaxHeld int
	// MaxHeldBytes is how much all of them may send meanwhile before no more is read (default 64 MiB).
	MaxHeldBytes int64
	// DryRun makes Hold count who would wait, instead of making anybody wait: a change of owner then
	// fails the writes that meet a closed gate (default: off).
	DryRun bool

	// Ask tells who owns the data, from the databases alone. With it the gateway finds the owner when
	// nobody tells, see [Gateway.Lost] (default: it does not).
	Ask func(context.Context) (Ownership, error)
	// AskEvery is the time between two questions (default 1 s).
	AskEvery time.Duration

	// MaxClients is how many clients may be connected at once (default 10,000).
	MaxClients int
	// Pooling says for how long a client has a server session of its own (default SessionPooling).
	Pooling Pooling
	// ServerIdle is how long a server session that nobody uses is kept, where they are shared
	// (default 10 min).
	ServerIdle time.Duration
	// MaxPerUser is how many of them one user may have (default: no limit).
	MaxPerUser int
	// MaxServers is how many server sessions there may be on one backend (default: no limit, and 50
	// with TransactionPooling). More clients than that wait for a place, in their order, for
	// ServerWait (default 30 s).
	MaxServers int
	ServerWait time.Duration
	// MaxMoves is how many sessions move to another backend at once (default 32).
	MaxMoves int
	// MoveTimeout bounds the move of one session, and each connection to a backend (default 10 s).
	MoveTimeout time.Duration
	// ExpectTimeout is how long an expected owner is waited for (default 10 min).
	ExpectTimeout time.Duration
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
	c.MaxHeldBytes = cmp.Or(c.MaxHeldBytes, 64<<20)
	c.AskEvery = cmp.Or(c.AskEvery, time.Second)
	c.MaxClients = cmp.Or(c.MaxClients, 10_000)
	c.Pooling = cmp.Or(c.Pooling, SessionPooling)
	if c.Pooling == TransactionPooling {
		c.MaxServers = cmp.Or(c.MaxServers, 50)
	}
	c.ServerIdle = cmp.Or(c.ServerIdle, 10*time.Minute)
	c.ServerWait = cmp.Or(c.ServerWait, 30*time.Second)
	c.MaxMoves = cmp.Or(c.MaxMoves, 32)
	c.MoveTimeout = cmp.Or(c.MoveTimeout, 10*time.Second)
	c.ExpectTimeout = cmp.Or(c.ExpectTimeout, 10*time.Minute)
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
	switch c.Pooling {
	case "", SessionPooling, TransactionPooling:
	default:
		return hint.Wrap(fmt.Errorf("gateway: pooling %q is not known", c.Pooling), "it is session or transaction")
	}
	return c.validateReads()
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
