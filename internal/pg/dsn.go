package pg

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// connectTimeout bounds one attempt to connect when the DSN does not say connect_timeout.
const connectTimeout = 10 * time.Second

// keepAlive finds a connection dead within a minute, however long a statement takes on the other side.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}
}

// A DSN is a parsed connection string, URL or keyword form. The zero value connects nowhere.
type DSN struct {
	*target
}

// target is what a DSN points to. It is one pointer further away than it has to be, because fmt
// follows one, and does not call String on a DSN in somebody's unexported field.
type target struct {
	cfg *pgx.ConnConfig
	tls map[string]string // libpq's names of the TLS files that the connection string gives
}

// Parse reads a connection string as libpq does (PG* environment variables fill the gaps).
// The error carries a hint and never the password.
func Parse(s string) (DSN, error) {
	cfg, err := pgx.ParseConfig(s)
	if err != nil {
		return DSN{}, hint.Wrap(fmt.Errorf("connection string: %w", err),
			"write it as postgresql://user:password@host:5432/database or as \"host=... dbname=...\"")
	}
	if cfg.ConnectTimeout == 0 || cfg.ConnectTimeout > 2*time.Minute {
		cfg.ConnectTimeout = connectTimeout
	}
	if cfg.RuntimeParams == nil {
		cfg.RuntimeParams = map[string]string{}
	}
	cfg.DialFunc = (&net.Dialer{KeepAliveConfig: keepAlive()}).DialContext
	return DSN{&target{cfg, tlsFiles(s)}}, nil
}

// IsZero reports whether d is the zero DSN.
func (d DSN) IsZero() bool { return d.target == nil }

// Host returns the host name, address or socket directory.
func (d DSN) Host() string { return d.cfg.Host }

// Port returns the TCP port or the socket's number.
func (d DSN) Port() uint16 { return d.cfg.Port }

// Database returns the database's name.
func (d DSN) Database() string { return d.cfg.Database }

// User returns the role to connect as.
func (d DSN) User() string { return d.cfg.User }

// Password returns the password, "" for none. Only the gateway and Env need it.
func (d DSN) Password() string { return d.cfg.Password }

// String returns the connection string without the password: user@host:port/database.
func (d DSN) String() string {
	if d.IsZero() {
		return "(none)"
	}
	return fmt.Sprintf("%s@%s/%s", d.cfg.User, net.JoinHostPort(d.cfg.Host, strconv.Itoa(int(d.cfg.Port))), d.cfg.Database)
}

// GoString keeps %#v from printing the password.
func (d DSN) GoString() string { return "pg.DSN(" + d.String() + ")" }

// WithDatabase returns d for another database of the same server.
func (d DSN) WithDatabase(name string) DSN {
	cfg := d.cfg.Copy()
	cfg.Database = name
	return DSN{&target{cfg, d.tls}}
}

// Config returns a copy of the low-level configuration, for a caller with needs of its own. Its
// ConnString still holds the password: do not print it.
func (d DSN) Config() *pgx.ConnConfig { return d.cfg.Copy() }

// An Option adjusts one connection.
type Option func(*pgx.ConnConfig)

// Setting sets a run-time parameter of the session.
func Setting(name, value string) Option {
	return func(c *pgx.ConnConfig) { c.RuntimeParams[name] = value }
}

// Connect opens a session named "ficus/<purpose>": empty search_path, UTC, no statement, lock or
// idle time-outs, exact output of every type. The error is redacted and carries a hint where one is known.
func (d DSN) Connect(ctx context.Context, purpose string, opts ...Option) (*pgx.Conn, error) {
	cfg := d.session(purpose)
	for _, o := range opts {
		o(cfg)
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, d.connectError(err)
	}
	return conn, nil
}

// ConnectReplication opens a logical replication session (replication=database). Besides
// replication commands it takes simple queries.
func (d DSN) ConnectReplication(ctx context.Context, purpose string, opts ...Option) (*pgconn.PgConn, error) {
	cfg := d.session(purpose)
	cfg.RuntimeParams["replication"] = "database"
	for _, o := range opts {
		o(cfg)
	}
	conn, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		return nil, d.connectError(err)
	}
	return conn, nil
}

func (d DSN) session(purpose string) *pgx.ConnConfig {
	cfg := d.cfg.Copy()
	cfg.RuntimeParams = maps.Clone(cfg.RuntimeParams)
	maps.Copy(cfg.RuntimeParams, map[string]string{
		"application_name":                    "ficus/" + purpose,
		"search_path":                         "",
		"timezone":                            "UTC",
		"datestyle":                           "ISO",
		"intervalstyle":                       "postgres",
		"extra_float_digits":                  "3",
		"bytea_output":                        "hex",
		"client_encoding":                     "UTF8",
		"lc_monetary":                         "C", // money has one text form then
		"xmloption":                           "content",
		"array_nulls":                         "on", // off makes NULL in an array the text 'NULL'
		"transform_null_equals":               "off",
		"quote_all_identifiers":               "off",
		"default_transaction_isolation":       "read committed",
		"statement_timeout":                   "0",
		"lock_timeout":                        "0",
		"idle_in_transaction_session_timeout": "0",
		"tcp_keepalives_idle":                 "30", // the server finds a dead client as fast as we a dead server, with the locks that it holds
		"tcp_keepalives_interval":             "10",
		"tcp_keepalives_count":                "3",
		"tcp_user_timeout":                    "60000", // for what it has sent and nobody took
	})
	return cfg
}

// connectError turns a failure to connect into one line without a password, with advice.
func (d DSN) connectError(err error) error {
	at := fmt.Errorf("connect to %s: %w", d, redact(err, d.cfg.Password))
	switch Code(err) {
	case "28P01", "28000":
		return hint.Wrap(at, "check user and password, and the pg_hba.conf rule for this address")
	case "3D000":
		return hint.Wrap(at, "the server answers, but has no database %q: create it or correct the name", d.Database())
	case "53300":
		return hint.Wrap(at, "the server is out of connection slots: raise max_connections or close idle sessions")
	case "57P03":
		return hint.Wrap(at, "the server is starting up or shutting down: try again in a moment")
	case "42501":
		return hint.Wrap(at, "the role needs the REPLICATION attribute: ALTER ROLE %s REPLICATION", d.User())
	case "":
		return hint.Wrap(at, "check that PostgreSQL runs on %s port %d and accepts connections from here", d.Host(), d.Port())
	}
	return at
}

// redacted hides a password in the text of an error and keeps its chain.
type redacted struct {
	text string
	err  error
}

func (r *redacted) Error() string { return r.text }
func (r *redacted) Unwrap() error { return r.err }

func redact(err error, password string) error {
	text := err.Error()
	if ce, ok := errors.AsType[*pgconn.ConnectError](err); ok { // its text repeats user, host and every attempt; the cause is enough
		if cause := ce.Unwrap(); cause != nil {
			text = cause.Error()
		}
	}
	if password != "" {
		text = strings.ReplaceAll(text, password, "xxxxx")
	}
	return &redacted{strings.Join(strings.Fields(text), " "), err}
}
