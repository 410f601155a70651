package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/gateway"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// Config holds what a Server needs.
type Config struct {
	Hall *gateway.Hall
	// Path is the socket's. A file that is there is replaced.
	Path string
	// Before is the process whose doors this one took over, by database; nil for none. It is told
	// everything, too.
	Before map[string]*Client
	Log    *slog.Logger
}

// A Server takes orders for the gateways of one hall.
type Server struct {
	cfg Config
	mux *http.ServeMux

	mu struct {
		sync.Mutex
		leases map[lease]int      // open answers to a hold
		before map[string]*Client // by database; who is gone is not there
		own    *net.UnixListener
		path   string // where own listens
	}
	moved chan *net.UnixListener // where to serve after a hand-over
}

// A lease is an orchestrator's, for one database.
type lease struct {
	database string
	epoch    int64
}

// Status is what a gateway says about itself.
type Status struct {
	Doors    map[string]string `json:"doors"`
	Database string            `json:"database,omitempty"` // as clients name it, where there are several
	Owner    gateway.Backend   `json:"owner"`
	Epoch    int64             `json:"epoch"`
	Percent  int               `json:"reads_percent"`
	Retiring bool              `json:"retiring"`
	Stats    gateway.Stats     `json:"stats"`
	Stalls   gateway.Stalls    `json:"stalls"`
	Reads    gateway.ReadStats `json:"reads"`
	Fault    string            `json:"reads_fault,omitempty"` // why reads stepped back by themselves
	Before   *Status           `json:"before,omitempty"`      // of the process whose doors it took over
}

// A problem is an error as it travels.
type problem struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
	Stale bool   `json:"stale,omitempty"` // it is gateway.ErrStale
	Held  bool   `json:"held,omitempty"`  // it is gateway.ErrHeld
}

// New checks cfg. It opens nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Hall == nil || cfg.Path == "" || cfg.Log == nil {
		return nil, errors.New("gateway control: hall, path and log are required")
	}
	s := &Server{cfg: cfg, mux: http.NewServeMux(), moved: make(chan *net.UnixListener, 1)}
	s.mu.leases = map[lease]int{}
	s.mu.before = maps.Clone(cfg.Before)
	s.mu.path = cfg.Path
	s.mux.HandleFunc("POST /v1/expect", s.expect)
	s.mux.HandleFunc("POST /v1/hold", s.hold)
	s.mux.HandleFunc("POST /v1/release", s.release)
	s.mux.HandleFunc("POST /v1/reads", s.reads)
	s.mux.HandleFunc("POST /v1/cancel", s.cancel)
	s.mux.HandleFunc("GET /v1/status", s.status)
	s.mux.HandleFunc("POST /v1/handover", s.handover)
	return s, nil
}

// Run takes orders until ctx ends, and returns its cause.
func (s *Server) Run(ctx context.Context) error {
	ln, err := listen(ctx, s.cfg.Path)
	if err != nil {
		return hint.Wrap(fmt.Errorf("gateway control: %w", err), "the directory must exist, and the path be shorter than 100 bytes")
	}
	s.mu.Lock()
	s.mu.own = ln
	s.mu.Unlock()
	srv := &http.Server{
		Handler: s.mux, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	group, ctx := errgroup.WithContext(ctx)
	serve := func(ln net.Listener) {
		group.Go(func() error {
			if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("gateway control: %w", err)
			}
			return nil
		})
	}
	serve(ln)
	group.Go(func() error {
		for {
			select {
			case next := <-s.moved:
				serve(next)
			case <-ctx.Done():
				_ = srv.Close()
				return context.Cause(ctx)
			}
		}
	})
	err = group.Wait()
	for _, before := range s.cfg.Before {
		before.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = os.Remove(s.mu.path) // ours alone: after a hand-over it is the one with our process id
	return err
}

// listen opens the socket for its owner alone. A file left by a process that is gone, or that handed
// over, makes way: clients go by the path.
func listen(ctx context.Context, path string) (*net.UnixListener, error) {
	fresh := fmt.Sprintf("%s.%d.new", path, os.Getpid())
	_ = os.Remove(fresh)
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", fresh)
	if err != nil {
		return nil, err
	}
	u, ok := ln.(*net.UnixListener)
	if !ok {
		_ = ln.Close()
		return nil, errors.New("not a Unix socket")
	}
	u.SetUnlinkOnClose(false) // the next process may be at that path already
	err = os.Chmod(fresh, 0o600)
	if err == nil {
		err = os.Rename(fresh, path) // never a moment without one
	}
	if err != nil {
		_ = u.Close()
		_ = os.Remove(fresh)
		return nil, err
	}
	return u, nil
}

func number(r *http.Request, name string) (int64, error) {
	n, err := strconv.ParseInt(r.FormValue(name), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

// gateway returns that of the database which a request names. It answers when there is none.
func (s *Server) gateway(w http.ResponseWriter, r *http.Request) (name string, g *gateway.Gateway) {
	name = r.FormValue("database")
	if g = s.cfg.Hall.Database(name); g == nil {
		err := fmt.Errorf("database %q is not behind this gateway", name)
		if name == "" {
			err = errors.New("there are several databases behind this gateway")
		}
		refuse(w, hint.Wrap(err, "name one of %s; in a playbook it is router.database", strings.Join(s.cfg.Hall.Databases(), ", ")))
	}
	if all := s.cfg.Hall.Databases(); len(all) == 1 {
		name = all[0]
	}
	return name, g
}

// both tells the gateway, and the one before it, at the same time.
func (s *Server) both(ctx context.Context, name string, here func(context.Context) error, there func(context.Context, *Client) error) error {
	s.mu.Lock()
	before := s.mu.before[name]
	s.mu.Unlock()
	if before == nil {
		return here(ctx)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return here(ctx) })
	group.Go(func() error {
		err := there(ctx, before)
		if !errors.Is(err, ErrGone) {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.mu.before, name)
		return nil
	})
	return group.Wait()
}

func (s *Server) hold(w http.ResponseWriter, r *http.Request) {
	name, g := s.gateway(w, r)
	if g == nil {
		return
	}
	epoch, err := number(r, "epoch")
	if err != nil {
		refuse(w, err)
		return
	}
	s.lease(g, lease{name, epoch}, 1)
	defer s.lease(g, lease{name, epoch}, -1)
	err = s.both(r.Context(), name,
		func(ctx context.Context) error { return g.Hold(ctx, epoch) },
		func(ctx context.Context, before *Client) error { return before.Hold(ctx, epoch) })
	if err != nil {
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err == nil {
		<-r.Context().Done()
	}
}

// lease counts the orchestrators that are alive. When the last one has gone nobody will decide.
func (s *Server) lease(g *gateway.Gateway, l lease, n int) {
	s.mu.Lock()
	s.mu.leases[l] += n
	last := s.mu.leases[l] == 0
	if last {
		delete(s.mu.leases, l)
	}
	before := s.mu.before[l.database]
	s.mu.Unlock()
	if !last {
		return
	}
	g.Lost(l.epoch)
	if before != nil {
		before.drop(l.epoch)
	}
}

func (s *Server) expect(w http.ResponseWriter, r *http.Request) {
	name, g := s.gateway(w, r)
	if g == nil {
		return
	}
	owner := gateway.Backend(r.FormValue("owner"))
	s.answer(w, s.both(r.Context(), name,
		func(ctx context.Context) error { return g.Expect(ctx, owner) },
		func(ctx context.Context, before *Client) error { return before.Expect(ctx, owner) }))
}

func (s *Server) release(w http.ResponseWriter, r *http.Request) {
	name, g := s.gateway(w, r)
	if g == nil {
		return
	}
	epoch, err := number(r, "epoch")
	if err != nil {
		refuse(w, err)
		return
	}
	owner := gateway.Backend(r.FormValue("owner"))
	s.answer(w, s.both(r.Context(), name,
		func(ctx context.Context) error { return g.Release(ctx, owner, epoch) },
		func(ctx context.Context, before *Client) error { return before.Release(ctx, owner, epoch) }))
}

func (s *Server) reads(w http.ResponseWriter, r *http.Request) {
	name, g := s.gateway(w, r)
	if g == nil {
		return
	}
	percent, err := number(r, "percent")
	if err != nil {
		refuse(w, err)
		return
	}
	s.answer(w, s.both(r.Context(), name,
		func(ctx context.Context) error { return g.Reads(ctx, int(percent)) },
		func(ctx context.Context, before *Client) error { return before.Reads(ctx, int(percent)) }))
}

func (s *Server) cancel(w http.ResponseWriter, r *http.Request) {
	pid, err := number(r, "pid")
	secret, err2 := number(r, "secret")
	if err := errors.Join(err, err2); err != nil {
		refuse(w, err)
		return
	}
	s.cfg.Hall.Cancel(r.Context(), uint32(pid), uint32(secret))
	s.answer(w, nil)
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	name, g := s.gateway(w, r)
	if g == nil {
		return
	}
	st := s.Status(r.Context(), name, g)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(st)
}

// Status returns that of a database's gateway, and of the one before it as long as it is there.
func (s *Server) Status(ctx context.Context, name string, g *gateway.Gateway) Status {
	h, p := s.cfg.Hall, g.Position()
	st := Status{
		Doors: map[string]string{}, Database: name, Owner: p.Owner, Epoch: p.Epoch, Percent: p.Percent, Retiring: h.Retiring(),
		Stats: g.Stats(), Stalls: g.Stalls(), Reads: g.ReadStats(),
	}
	if err := g.ReadFault(); err != nil {
		st.Fault = err.Error()
	}
	if a := h.Addr(); a != nil {
		st.Doors["read-write"] = a.String()
	}
	if a := h.ReadAddr(); a != nil {
		st.Doors["read-only"] = a.String()
	}
	s.mu.Lock()
	before := s.mu.before[name]
	s.mu.Unlock()
	if before != nil {
		if b, err := before.Status(ctx); err == nil {
			st.Before = &b
		}
	}
	return st
}

func (s *Server) answer(w http.ResponseWriter, err error) {
	if err != nil {
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func refuse(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusConflict)
	_ = json.NewEncoder(w).Encode(problem{
		Error: err.Error(), Hint: hint.Of(err), Stale: errors.Is(err, gateway.ErrStale), Held: errors.Is(err, gateway.ErrHeld),
	})
}
