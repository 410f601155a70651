package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ficus-migrate/ficus/gateway"
	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// A gatewayPort answers /metrics, /healthz and /readyz for a gateway that is a process of its own. It has
// no secrets and takes no orders.
type gatewayPort struct {
	addr string
	hall *gateway.Hall
	name string // of a database that has none
}

// handler answers: the process is ready as long as its doors are its own.
func (p *gatewayPort) handler() (http.Handler, error) {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "ficus_build_info", Help: "1, with the version of the program.", ConstLabels: prometheus.Labels{"version": versionText()},
	})
	build.Set(1)
	r := prometheus.NewRegistry()
	var errs []error
	for _, c := range []prometheus.Collector{
		build, newGatewayMetrics("database", p.databases),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		errs = append(errs, r.Register(c))
	}
	say := func(w http.ResponseWriter, status int, text string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, "{\"status\":%q,\"version\":%q}\n", text, versionText())
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-p.hall.Retired():
			say(w, http.StatusServiceUnavailable, "retiring")
		default:
			say(w, http.StatusOK, "ok")
		}
	})
	return mux, errors.Join(errs...)
}

func (p *gatewayPort) databases(yield func(string, *gateway.Gateway) bool) {
	for _, name := range p.hall.Databases() {
		if !yield(cmp.Or(name, p.name), p.hall.Database(name)) {
			return
		}
	}
}

// run serves until ctx ends or another process has the doors, which then wants the port, too.
func (p *gatewayPort) run(ctx context.Context) error {
	handler, err := p.handler()
	if err != nil {
		return err
	}
	ln, err := p.listen(ctx)
	if err != nil {
		return hint.Wrap(fmt.Errorf("open the port for metrics: %w", err), "choose another --metrics-listen, or stop what listens there")
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }() // ends with srv, below
	select {
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-p.hall.Retired():
	case err = <-served:
		return fmt.Errorf("serve metrics: %w", err)
	}
	_ = srv.Close()
	if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, ended)
	}
	return err
}

// listen opens the port, which the process before may give up only in a moment.
func (p *gatewayPort) listen(ctx context.Context) (ln net.Listener, err error) {
	retry := backoff.Timer{Min: 10 * time.Millisecond, Max: 200 * time.Millisecond}
	for until := time.Now().Add(2 * time.Second); ; {
		if ln, err = new(net.ListenConfig).Listen(ctx, "tcp", p.addr); err == nil || time.Now().After(until) {
			return ln, err
		}
		if werr := retry.Wait(ctx); werr != nil {
			return nil, werr
		}
	}
}
