package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/internal/hint"
)

const (
	defaultListen = "127.0.0.1:7070"

	// grace is how long requests may go on once Run's context is done.
	grace = 5 * time.Second
	// headerTimeout and bodyTimeout bound how slowly a client may send.
	headerTimeout = 10 * time.Second
	bodyTimeout   = 30 * time.Second
	// sendTimeout is how long a client may take nothing of its event stream.
	sendTimeout = 30 * time.Second
	idleTimeout = 2 * time.Minute
)

// errStopping is the cause with which requests end when the server does.
var errStopping = errors.New("the server stops")

// A Config holds what a Server needs.
type Config struct {
	Service Service // what it shows and drives. Required
	Listen  string  // host:port. Default 127.0.0.1:7070; port 0 takes a free one
	// Tokens is the path of a file with lines "token role[,role] name"; roles are viewer, operator
	// and approver; a token may be given as sha256:<hexadecimal sum>. Default: no tokens, loopback
	// addresses only.
	Tokens string
	// TLSCert and TLSKey are paths of PEM files, both or none.
	TLSCert, TLSKey string
	Web             fs.FS  // the dashboard's files, index.html among them. Default: no dashboard
	Version         string // shown by /healthz, /metrics and the dashboard
	Log             *slog.Logger
	// Collectors adds metrics, such as those of the gateway.
	Collectors []prometheus.Collector

	Heartbeat   time.Duration // between comments on an idle event stream. Default 15 s
	StatusEvery time.Duration // least time between status events of a stream. Default 500 ms
}

// A Server answers HTTP requests about a Service's migrations. Run it once.
type Server struct {
	cfg       Config
	tokens    grants
	tls       *tls.Config
	handler   http.Handler
	routes    gin.RoutesInfo
	origins   *http.CrossOriginProtection
	traffic   *traffic
	listening chan struct{}

	mu struct {
		sync.Mutex
		addr net.Addr // nil before it listens
	}
}

// New reads tokens and certificate and checks that nobody but this machine's users can do without
// them. It opens no port.
func New(cfg Config) (*Server, error) {
	cfg.Listen = cmp.Or(cfg.Listen, defaultListen)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	cfg.Heartbeat = cmp.Or(cfg.Heartbeat, 15*time.Second)
	cfg.StatusEvery = cmp.Or(cfg.StatusEvery, 500*time.Millisecond)
	if cfg.Service == nil {
		return nil, errors.New("make the API server: no service")
	}
	s := &Server{cfg: cfg, origins: http.NewCrossOriginProtection(), traffic: newTraffic(), listening: make(chan struct{})}
	if err := s.checkListen(); err != nil {
		return nil, err
	}
	var err error
	if cfg.Tokens != "" {
		if s.tokens, err = readTokens(cfg.Tokens); err != nil {
			return nil, err
		}
	}
	if cfg.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
		if err != nil {
			return nil, fmt.Errorf("read the API's certificate: %w", err)
		}
		s.tls = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	}
	if err := s.route(); err != nil {
		return nil, fmt.Errorf("make the API server: %w", err)
	}
	return s, nil
}

// checkListen refuses an address that others could reach without tokens and TLS.
func (s *Server) checkListen() error {
	host, _, err := net.SplitHostPort(s.cfg.Listen)
	if err != nil {
		return hint.Wrap(fmt.Errorf("listen on %q: %w", s.cfg.Listen, err), "give host:port, such as %s", defaultListen)
	}
	if (s.cfg.TLSCert == "") != (s.cfg.TLSKey == "") {
		return hint.Wrap(errors.New("a certificate without its key, or a key alone"), "give both --tls-cert and --tls-key")
	}
	if loopback(host) {
		return nil
	}
	if s.cfg.Tokens == "" || s.cfg.TLSCert == "" {
		return hint.Wrap(fmt.Errorf("listen on %s: others can reach this address, which needs tokens and TLS", s.cfg.Listen),
			"give --tokens, --tls-cert and --tls-key, or listen on %s and use an SSH tunnel", defaultListen)
	}
	return nil
}

// Listening is closed once the port is open.
func (s *Server) Listening() <-chan struct{} { return s.listening }

// URL returns the address to give to a browser or to --api. Before Listening it is the configured one.
func (s *Server) URL() string {
	s.mu.Lock()
	addr := s.cfg.Listen
	if s.mu.addr != nil {
		addr = s.mu.addr.String()
	}
	s.mu.Unlock()
	if host, port, err := net.SplitHostPort(addr); err == nil {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			addr = net.JoinHostPort("localhost", port)
		}
	}
	if s.tls != nil {
		return "https://" + addr
	}
	return "http://" + addr
}

// Run answers requests until ctx is done, then ends event streams and waits, lets other requests
// finish for a few seconds, and returns ctx's cause.
func (s *Server) Run(ctx context.Context) error {
	ln, err := s.listen(ctx)
	if err != nil {
		return err
	}
	requests, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	srv := &http.Server{
		Handler:           s.handler,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		TLSConfig:         s.tls,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), // TLS handshakes of strangers
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		serve := func() error { return srv.Serve(ln) }
		if s.tls != nil {
			serve = func() error { return srv.ServeTLS(ln, "", "") }
		}
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the API: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		end(errStopping)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if err := srv.Shutdown(last); err != nil {
			return srv.Close()
		}
		return nil
	})
	close(s.listening)
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", s.cfg.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, hint.Wrap(fmt.Errorf("serve the API: %w", err), "is another ficus running? --listen takes another address, and port 0 any free one")
	}
	if err != nil {
		return nil, fmt.Errorf("serve the API: %w", err)
	}
	s.mu.Lock()
	s.mu.addr = ln.Addr()
	s.mu.Unlock()
	return ln, nil
}
