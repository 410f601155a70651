package httpdoor

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/buffer"
)

// write passes a request on to the owner, when it is its turn.
func (d *Door) write(w http.ResponseWriter, r *http.Request) {
	owner, err := d.enter(r.Context())
	if err != nil {
		d.refuseHeld(w, err)
		return
	}
	defer d.leave()
	d.count.writes.Add(1)
	d.pass(w, r, d.to(owner), nil)
}

// refuseHeld answers a write for which nothing was done.
func (d *Door) refuseHeld(w http.ResponseWriter, err error) {
	full, ok := errors.AsType[*buffer.Error](err)
	if !ok {
		return // the client went away
	}
	d.count.refused.Add(1)
	const advice = "nothing was done: send the same request again"
	switch full.Reason {
	case buffer.Expired:
		refuse(w, http.StatusServiceUnavailable, CodeHeld, time.Second, "the owner of the data changes, and that takes long", advice)
	case buffer.Full:
		refuse(w, http.StatusServiceUnavailable, CodeCrowded, time.Second, "the owner of the data changes, and many wait already", advice)
	case buffer.Closed:
		refuse(w, http.StatusServiceUnavailable, CodeStopping, time.Second, "the door stops", advice)
	}
}

// read passes a request on to where its percentage leads, and to both data servers if it is compared.
func (d *Door) read(w http.ResponseWriter, r *http.Request, rt *route) {
	owner, other := d.owner()
	d.mu.Lock()
	percent := min(d.mu.percent, rt.Reads)
	d.mu.Unlock()
	d.count.reads.Add(1)
	way, shadowed := d.to(owner), other
	if r.Header.Get("Upgrade") != "" { // a WebSocket writes, too
		d.pass(w, r, way, nil)
		return
	}
	if other != "" && d.number(r) < float64(percent) {
		d.count.readsAway.Add(1)
		way, shadowed = d.toFirst(other, owner), owner
	}
	var look func(*http.Response)
	if other != "" && r.Method == http.MethodGet && rt.Shadow > 0 && rand.Float64()*100 < float64(rt.Shadow) {
		look = d.watch(r, rt, shadowed) //nolint:bodyclose // it only looks: the proxy closes
	}
	d.pass(w, r, way, look)
}

// A way is how a request gets to a data server.
type way func(*http.Request) (*http.Response, error)

// RoundTrip implements [http.RoundTripper].
func (f way) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (d *Door) to(b Backend) way {
	return func(r *http.Request) (*http.Response, error) {
		return d.transport.RoundTrip(at(r, d.servers[b]))
	}
}

// toFirst goes to one data server, and when that does not answer to the other one: reads may be made twice.
func (d *Door) toFirst(first, second Backend) way {
	return func(r *http.Request) (*http.Response, error) {
		resp, err := d.to(first)(r)
		if err == nil || r.Context().Err() != nil || r.Body != nil && r.Body != http.NoBody {
			return resp, err
		}
		d.count.fellBack.Add(1)
		d.cfg.Log.LogAttrs(r.Context(), slog.LevelWarn, "read goes back to the owner", slog.String("backend", string(first)), slog.Any("err", err))
		return d.to(second)(r)
	}
}

// at returns a request for a data server.
func at(r *http.Request, server *url.URL) *http.Request {
	out := r.WithContext(r.Context()) // a copy
	u := *r.URL
	u.Scheme, u.Host = server.Scheme, server.Host
	if base := strings.TrimSuffix(server.EscapedPath(), "/"); base != "" { // JoinPath would clean what the client wrote
		u.Path, u.RawPath = strings.TrimSuffix(server.Path, "/")+r.URL.Path, base+r.URL.EscapedPath()
	}
	out.URL = &u
	return out
}

// pass relays request and response as they are. look sees the response first, unless it is nil.
func (d *Door) pass(w http.ResponseWriter, r *http.Request, by way, look func(*http.Response)) {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.Host, p.Out.URL.RawQuery = p.In.Host, p.In.URL.RawQuery
			for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if v := p.In.Header[name]; v != nil {
					p.Out.Header[name] = v
				}
			}
			host, proto := p.In.Header["X-Forwarded-Host"], p.In.Header["X-Forwarded-Proto"]
			p.SetXForwarded()
			if host != nil { // of the proxy in front of us: nearer to the client
				p.Out.Header["X-Forwarded-Host"] = host
			}
			if proto != nil {
				p.Out.Header["X-Forwarded-Proto"] = proto
			}
		},
		Transport:     by,
		FlushInterval: -1, // as it comes
		ErrorHandler:  d.unreachable,
		ErrorLog:      slog.NewLogLogger(d.cfg.Log.Handler(), slog.LevelDebug),
	}
	if look != nil {
		proxy.ModifyResponse = func(resp *http.Response) error {
			look(resp)
			return nil
		}
	}
	proxy.ServeHTTP(w, r)
}

// unreachable answers for a data server that did not.
func (d *Door) unreachable(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil && !errors.Is(context.Cause(r.Context()), errStopping) {
		return // the client went away
	}
	d.count.failed.Add(1)
	d.cfg.Log.LogAttrs(r.Context(), slog.LevelWarn, "data server does not answer", slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Any("err", err))
	refuse(w, http.StatusBadGateway, CodeUnreachable, 0, "the data server does not answer", "whether it acted is not known; a command with a key can be sent again safely")
}
