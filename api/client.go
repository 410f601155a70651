package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"syscall"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
)

// maxAnswer bounds what the client reads of an answer, and of one line of an event stream.
const maxAnswer = 64 << 20

// A Client talks to a Server. Its methods may be called concurrently. Errors that the server
// answered with are *Problem, and match ErrNotFound, ErrExists, ErrFixed and migrate.ErrNotNow.
type Client struct {
	base  *url.URL
	token string
	http  *http.Client
}

// NewClient returns a client for the API at an http or https address. token may be "". It refuses to send a
// token in the clear over a network.
func NewClient(address, token string) (*Client, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, hint.Wrap(fmt.Errorf("API address %q is no URL", address), "give one such as http://%s with --api", defaultListen)
	}
	if token != "" && u.Scheme == "http" && !loopback(u.Hostname()) {
		return nil, hint.Wrap(fmt.Errorf("send a token to %s: everybody in between could read it", u.Host), "use https://%s", u.Host)
	}
	u.User = nil
	// No overall limit: a command may be waited for, and events stream for days.
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: headerTimeout, IdleConnTimeout: idleTimeout}
	return &Client{base: u, token: token, http: &http.Client{Transport: transport}}, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// List returns the status of every migration.
func (c *Client) List(ctx context.Context) ([]migrate.Status, error) {
	var l List
	err := c.call(ctx, http.MethodGet, c.at(), nil, &l)
	return l.Migrations, err
}

// Get returns the status of one migration.
func (c *Client) Get(ctx context.Context, name string) (migrate.Status, error) {
	var s migrate.Status
	err := c.call(ctx, http.MethodGet, c.at(name), nil, &s)
	return s, err
}

// Do carries a command; see [migrate.Migration.Do].
func (c *Client) Do(ctx context.Context, name string, ask migrate.Command) error {
	return c.call(ctx, http.MethodPost, c.at(name, string(ask.Verb)), CommandRequest{Gate: ask.Gate, Tables: ask.Tables, Force: ask.Force, Wait: ask.Wait, Actor: ask.Actor}, nil)
}

// Amend takes the rules of a changed playbook; see [Service].
func (c *Client) Amend(ctx context.Context, name string, r AmendRequest) error {
	return c.call(ctx, http.MethodPost, c.at(name, "playbook"), r, nil)
}

// Verify compares the databases of a migration at one instant; see [Service].
func (c *Client) Verify(ctx context.Context, name string, r VerifyRequest) (Comparison, error) {
	var out Comparison
	err := c.call(ctx, http.MethodPost, c.at(name, "verify"), r, &out)
	return out, err
}

// Evidence returns the newest report of a comparison; see [Service].
func (c *Client) Evidence(ctx context.Context, name string) ([]byte, error) {
	var report json.RawMessage
	err := c.call(ctx, http.MethodGet, c.at(name, "evidence"), nil, &report)
	return report, err
}

// Start begins a migration.
func (c *Client) Start(ctx context.Context, r StartRequest) (migrate.Status, error) {
	var s migrate.Status
	err := c.call(ctx, http.MethodPost, c.at(), r, &s)
	return s, err
}

// at returns the URL of a migration or of what is under it.
func (c *Client) at(parts ...string) *url.URL {
	path := []string{"v1", "migrations"}
	for _, p := range parts {
		path = append(path, url.PathEscape(p))
	}
	return c.base.JoinPath(path...)
}

// call sends a request and decodes the answer into out, unless that is nil.
func (c *Client) call(ctx context.Context, method string, u *url.URL, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return fmt.Errorf("ask the API: %w", err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return hint.Wrap(fmt.Errorf("read the API's answer: %w", err), "is %s the API of ficus, of the same version?", c.base.Redacted())
	}
	return nil
}

// send returns an answer of status 2xx; any other becomes an error.
func (c *Client) send(req *http.Request) (*http.Response, error) {
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if req.Context().Err() != nil {
			return nil, context.Cause(req.Context())
		}
		err = fmt.Errorf("ask the API: %w", err)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil, hint.Wrap(err, "is ficus run or ficus serve running? give its address with --api")
		}
		return nil, hint.Wrap(err, "give the address of ficus run or ficus serve with --api")
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	var p Problem
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&p); err != nil || p.Code == "" {
		return nil, hint.Wrap(fmt.Errorf("ask the API: %s answered %s", c.base.Redacted(), resp.Status), "is that the API of ficus?")
	}
	p.Status = cmp.Or(p.Status, resp.StatusCode)
	return nil, advised(&p)
}

// advised gives a problem its hint the way the rest of the program looks for it.
func advised(p *Problem) error {
	if p.Hint == "" {
		return p
	}
	return hint.Wrap(p, "%s", p.Hint)
}
