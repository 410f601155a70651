package httpdoor

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/buffer"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// A Backend names one of the data servers.
type Backend string

// A Kind says which data server a request goes to.
type Kind string

// The kinds.
const (
	ByMethod Kind = ""      // GET, HEAD, OPTIONS and TRACE are reads
	Read     Kind = "read"  // by percentage
	Write    Kind = "write" // to the owner, held while it changes
)

// Config holds what a Door needs. A field without a stated default is required.
type Config struct {
	// Listen is the address, host:port; port 0 takes a free one.
	Listen string
	// TLSCert and TLSKey are paths of PEM files (default: no TLS).
	TLSCert, TLSKey string
	// Servers are the addresses of the data servers, one or two: http or https, with a path that is put
	// in front of every request's.
	Servers map[Backend]string
	// Owner is the backend whose database owns the data until a Release says otherwise.
	Owner Backend
	// Epoch is that of the last change of owner: older calls of Hold and Release are refused (default 0).
	Epoch int64

	// Routes say what is special about some requests (default: nothing).
	Routes []Route
	// Sticky names what tells users apart, "cookie:NAME" or "header:NAME": all reads of a user then go
	// the same way (default: each goes its own).
	Sticky string

	// Commands are taken when Log's bucket is there (default: no commands).
	Commands Commands

	// HoldTimeout is how long a write waits for a Release (default 30 s).
	HoldTimeout time.Duration
	// MaxHeld is how many may wait (default 10,000).
	MaxHeld int
	// Timeout bounds the wait for a response's header (default 60 s).
	Timeout time.Duration
	// StopTimeout is how long requests may go on once Run's context ended (default 5 s).
	StopTimeout time.Duration
	// Settle is how long after a shadow read that differs it is made again (default 1 s).
	Settle time.Duration

	// Log gets what an operator should know (default: discarded).
	Log *slog.Logger
}

// A Route is a rule for the requests that a pattern matches.
type Route struct {
	// Match is a pattern of [http.ServeMux] without a host: "/orders/", "GET /orders/{id}". The most
	// special one counts.
	Match string
	Kind  Kind
	// Reads is the highest percentage of its reads that go to the other data server, when reads move;
	// negative for none (default 100).
	Reads int
	// Shadow is the percentage of its reads that is compared (default 0).
	Shadow int
	// Ignore are jq paths that a comparison leaves out, such as ".updated_at" or ".items[].etag".
	Ignore []string
}

// Commands say how commands are taken and sent. The door sets Log's Send and Stalled.
type Commands struct {
	Log buffer.CommandsConfig
	// Path is where they are posted (default /v1/commands).
	Path string
	// Types are the commands that are known, by type (default: all; each is posted, as it is, to
	// /commands/TYPE).
	Types map[string]CommandType
	// Tokens is the path of a file with one token per line, one of which a client must send as
	// Authorization: Bearer. It is needed on any address but loopback (default: none).
	Tokens string
	// MaxAnswer is how large a body may be that is kept (default 64 KiB).
	MaxAnswer int64
	// MaxWait is how long Prefer: wait can keep a client waiting (default 60 s).
	MaxWait time.Duration
}

// A CommandType says how commands of a type are sent, by backend.
type CommandType map[Backend]Call

// A Call is how a data server wants a command.
type Call struct {
	Method  string // default POST
	Path    string // default /commands/TYPE
	Payload string // jq program that makes its body out of the payload (default: the payload itself)
	Answer  string // jq program that makes the client's answer out of a body of JSON (default: the body itself)
}

func (c *Config) setDefaults() {
	c.HoldTimeout = cmp.Or(c.HoldTimeout, 30*time.Second)
	c.MaxHeld = cmp.Or(c.MaxHeld, 10_000)
	c.Timeout = cmp.Or(c.Timeout, time.Minute)
	c.StopTimeout = cmp.Or(c.StopTimeout, 5*time.Second)
	c.Settle = cmp.Or(c.Settle, time.Second)
	c.Commands.Path = cmp.Or(c.Commands.Path, "/v1/commands")
	c.Commands.MaxAnswer = cmp.Or(c.Commands.MaxAnswer, 64<<10)
	c.Commands.MaxWait = cmp.Or(c.Commands.MaxWait, time.Minute)
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	c.Routes = slices.Clone(c.Routes)
	for i, r := range c.Routes {
		c.Routes[i].Reads = cmp.Or(r.Reads, 100)
	}
}

// Check says what is wrong with a configuration, as far as that can be told without its command log.
func Check(c Config) error {
	c.setDefaults()
	servers, err := c.servers()
	if err != nil {
		return err
	}
	if _, _, err := c.routes(); err != nil {
		return err
	}
	if _, err := compileTypes(c.Commands.Types, servers); err != nil {
		return fmt.Errorf("HTTP door: commands: %w", err)
	}
	return c.checkListen()
}

// takesCommands reports whether there is a log for them.
func (c *Config) takesCommands() bool { return c.Commands.Log.Bucket != nil }

// servers parses and checks the addresses.
func (c *Config) servers() (map[Backend]*url.URL, error) {
	if n := len(c.Servers); n < 1 || n > 2 {
		return nil, fmt.Errorf("HTTP door: %d data servers, want one or two", n)
	}
	if c.Servers[c.Owner] == "" {
		return nil, fmt.Errorf("HTTP door: there is no data server for the owner, the %s", c.Owner)
	}
	out := map[Backend]*url.URL{}
	for _, name := range slices.Sorted(maps.Keys(c.Servers)) {
		u, err := ParseServer(c.Servers[name])
		if err != nil {
			return nil, fmt.Errorf("HTTP door: data server of the %s: %w", name, err)
		}
		out[name] = u
	}
	return out, nil
}

// ParseServer reads the address of a data server.
func ParseServer(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, hint.Wrap(fmt.Errorf("%q is no address", redact(address)), "give one such as http://shop.internal:8080")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, hint.Wrap(errors.New("an address with a user, a query or a fragment"), "clients send what is theirs; the door adds nothing")
	}
	return u, nil
}

// redact cuts off what may be a password.
func redact(address string) string {
	if _, rest, ok := strings.Cut(address, "@"); ok {
		return "…@" + rest
	}
	return address
}

// checkListen refuses an address from which strangers could send commands without a token.
func (c *Config) checkListen() error {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return hint.Wrap(fmt.Errorf("HTTP door: listen address %q: %w", c.Listen, err), "write it as host:port")
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return errors.New("HTTP door: a certificate without its key, or a key alone")
	}
	ip := net.ParseIP(host)
	if local := host == "localhost" || ip != nil && ip.IsLoopback(); !local && c.takesCommands() && c.Commands.Tokens == "" {
		return hint.Wrap(fmt.Errorf("HTTP door: refuse to take commands on %s without tokens", c.Listen),
			"give a file with tokens, or listen on 127.0.0.1")
	}
	return nil
}

// routes returns what finds the route of a request.
func (c *Config) routes() (mux *http.ServeMux, byPattern map[string]*route, err error) {
	mux, byPattern = http.NewServeMux(), map[string]*route{}
	for i := range c.Routes {
		r := &route{Route: c.Routes[i]}
		switch {
		case !slices.Contains([]Kind{ByMethod, Read, Write}, r.Kind):
			return nil, nil, fmt.Errorf("HTTP door: route %s: kind %q: want read or write", r.Match, string(r.Kind))
		case r.Reads > 100 || r.Shadow < 0 || r.Shadow > 100:
			return nil, nil, fmt.Errorf("HTTP door: route %s: not a percentage", r.Match)
		}
		if len(r.Ignore) > 0 {
			if r.ignore, err = compile("del(" + strings.Join(r.Ignore, ", ") + ")"); err != nil {
				return nil, nil, hint.Wrap(fmt.Errorf("HTTP door: route %s: ignore: %w", r.Match, err), "write jq paths, such as .updated_at or .items[].etag")
			}
		}
		if err := register(mux, r.Match); err != nil {
			return nil, nil, hint.Wrap(fmt.Errorf("HTTP door: route: %w", err), `write "/orders/" for all below it, "GET /orders/{id}" for one`)
		}
		byPattern[r.Match] = r
	}
	return mux, byPattern, nil
}

// register turns ServeMux's panic into an error.
func register(mux *http.ServeMux, pattern string) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%v", cause)
		}
	}()
	if !strings.Contains(pattern, "/") {
		return fmt.Errorf("pattern %q has no path", pattern)
	}
	mux.Handle(pattern, http.NotFoundHandler())
	return nil
}
