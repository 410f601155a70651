package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"syscall"

	"github.com/ficus-migrate/ficus/gateway"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// ErrGone says that no gateway listens at the socket.
var ErrGone = errors.New("no gateway is there")

// A Client drives the gateway behind a socket. Its methods may be called concurrently.
type Client struct {
	path     string
	database string
	http     *http.Client

	mu struct {
		sync.Mutex
		epoch int64  // of the lease
		end   func() // ends the lease, nil without one
	}
}

// NewClient returns a client for one database behind the socket at path; "" is the only one there. It
// connects when it is used.
func NewClient(path, database string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	return &Client{path: path, database: database, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Close ends the lease of a hold, if there is one, and idle connections.
func (c *Client) Close() {
	c.take(0, nil)
	c.http.CloseIdleConnections()
}

// take puts one lease in the place of another.
func (c *Client) take(epoch int64, end func()) {
	c.mu.Lock()
	old := c.mu.end
	c.mu.epoch, c.mu.end = epoch, end
	c.mu.Unlock()
	if old != nil {
		old()
	}
}

// drop ends the lease of that epoch.
func (c *Client) drop(epoch int64) {
	c.mu.Lock()
	old := c.mu.end
	if c.mu.epoch != epoch {
		old = nil
	} else {
		c.mu.end = nil
	}
	c.mu.Unlock()
	if old != nil {
		old()
	}
}

// Expect is [gateway.Gateway.Expect].
func (c *Client) Expect(ctx context.Context, owner gateway.Backend) error {
	return c.call(ctx, "/v1/expect", url.Values{"owner": {string(owner)}})
}

// Hold is [gateway.Gateway.Hold]. When this process ends before it calls Release, the gateway asks the
// databases who owns.
func (c *Client) Hold(ctx context.Context, epoch int64) error {
	lease, end := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, end)
	resp, err := c.send(lease, http.MethodPost, "/v1/hold", url.Values{"epoch": {strconv.FormatInt(epoch, 10)}})
	if !stop() && err == nil {
		_ = resp.Body.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		end()
		if ctx.Err() != nil {
			return fmt.Errorf("hold at epoch %d: transactions are still open: %w", epoch, context.Cause(ctx))
		}
		return err
	}
	c.take(epoch, func() {
		end()
		_ = resp.Body.Close()
	})
	return nil
}

// Release is [gateway.Gateway.Release].
func (c *Client) Release(ctx context.Context, owner gateway.Backend, epoch int64) error {
	err := c.call(ctx, "/v1/release", url.Values{"owner": {string(owner)}, "epoch": {strconv.FormatInt(epoch, 10)}})
	if err == nil {
		c.take(0, nil)
	}
	return err
}

// Reads is [gateway.Gateway.Reads].
func (c *Client) Reads(ctx context.Context, percent int) error {
	return c.call(ctx, "/v1/reads", url.Values{"percent": {strconv.Itoa(percent)}})
}

// Cancel is [gateway.Gateway.Cancel].
func (c *Client) Cancel(ctx context.Context, pid, secret uint32) error {
	return c.call(ctx, "/v1/cancel", url.Values{"pid": {strconv.FormatUint(uint64(pid), 10)}, "secret": {strconv.FormatUint(uint64(secret), 10)}})
}

// Status asks the gateway about itself.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	resp, err := c.send(ctx, http.MethodGet, "/v1/status", nil)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&st); err != nil {
		return st, fmt.Errorf("gateway at %s: %w", c.path, err)
	}
	return st, nil
}

func (c *Client) call(ctx context.Context, path string, form url.Values) error {
	resp, err := c.send(ctx, http.MethodPost, path, form)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// send returns the answer when it is a good one.
func (c *Client) send(ctx context.Context, method, path string, form url.Values) (*http.Response, error) {
	if c.database != "" {
		form = maps.Clone(form)
		if form == nil {
			form = url.Values{}
		}
		form.Set("database", c.database)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://gateway"+path+"?"+form.Encode(), http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("gateway at %s: %w", c.path, ErrGone)
	case err != nil:
		return nil, fmt.Errorf("gateway at %s: %w", c.path, err)
	case resp.StatusCode < 300:
		return resp, nil
	}
	defer resp.Body.Close()
	var p problem
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&p); err != nil {
		return nil, fmt.Errorf("gateway at %s: %s", c.path, resp.Status)
	}
	said := &answered{p}
	if p.Hint != "" {
		return nil, hint.Wrap(fmt.Errorf("gateway at %s: %w", c.path, said), "%s", p.Hint)
	}
	return nil, fmt.Errorf("gateway at %s: %w", c.path, said)
}

// An answered error is one that the gateway sent.
type answered struct{ problem }

func (a *answered) Error() string { return a.problem.Error }

// Is lets errors.Is find what the gateway meant.
func (a *answered) Is(target error) bool {
	return target == gateway.ErrStale && a.Stale || target == gateway.ErrHeld && a.Held
}
