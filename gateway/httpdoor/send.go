package httpdoor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/buffer"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// A call is a Call, compiled.
type call struct {
	method          string
	path            *url.URL
	payload, answer *program
}

// compileTypes compiles every type for every data server.
func compileTypes(types map[string]CommandType, servers map[Backend]*url.URL) (map[string]map[Backend]*call, error) {
	out := map[string]map[Backend]*call{}
	for _, name := range slices.Sorted(maps.Keys(types)) {
		out[name] = map[Backend]*call{}
		for b := range types[name] {
			if servers[b] == nil {
				return nil, fmt.Errorf("type %s: there is no data server %s", name, b)
			}
		}
		for b := range servers {
			c, err := compileCall(name, types[name][b])
			if err != nil {
				return nil, fmt.Errorf("type %s, %s: %w", name, b, err)
			}
			out[name][b] = c
		}
	}
	return out, nil
}

func compileCall(typ string, c Call) (*call, error) {
	out := &call{method: c.Method}
	if out.method == "" {
		out.method = http.MethodPost
	}
	if !slices.Contains([]string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}, out.method) {
		return nil, fmt.Errorf("method %q: want POST, PUT, PATCH or DELETE", c.Method)
	}
	path := c.Path
	if path == "" {
		path = "/commands/" + url.PathEscape(typ)
	}
	u, err := url.Parse(path)
	if err != nil || !strings.HasPrefix(path, "/") || u.Host != "" {
		return nil, fmt.Errorf("path %q: want one such as /orders", path)
	}
	out.path = u
	for program, source := range map[**program]string{&out.payload: c.Payload, &out.answer: c.Answer} {
		if source == "" {
			continue
		}
		if *program, err = compile(source); err != nil {
			return nil, hint.Wrap(fmt.Errorf("jq program %q: %w", source, err), "try it with jq first")
		}
	}
	return out, nil
}

// callOf returns how a command is sent to a data server; nil when its type is not known.
func (d *Door) callOf(typ string, b Backend) *call {
	if len(d.cfg.Commands.Types) > 0 {
		return d.types[typ][b]
	}
	return &call{method: http.MethodPost, path: &url.URL{Path: "/commands/" + typ}}
}

// unfit says why a command can never be sent, or "". It is asked for both data servers, since either may
// be the owner when the command's turn has come.
func (d *Door) unfit(ctx context.Context, c buffer.Command) (code Code, why string) {
	for b := range d.servers {
		to := d.callOf(c.Type, b)
		if to == nil {
			return CodeUnfit, fmt.Sprintf("commands of type %q are not taken here", c.Type)
		}
		if _, err := to.payload.applyJSON(ctx, c.Payload); err != nil {
			return CodeUnfit, fmt.Sprintf("the payload of a %s: %v", c.Type, err)
		}
	}
	return "", ""
}

// send makes one attempt to get the owner's answer; it is the log's Send.
func (d *Door) send(ctx context.Context, c buffer.Command, attempt int) (buffer.Answer, error) {
	owner, _ := d.owner() // it does not change while a command is on its way: Hold waits for that
	to := d.callOf(c.Type, owner)
	if to == nil {
		return buffer.Answer{}, &buffer.AttemptError{Err: fmt.Errorf("type %q is not in the configuration any more", c.Type), Hopeless: true}
	}
	body, err := to.payload.applyJSON(ctx, c.Payload)
	if err != nil {
		return buffer.Answer{}, &buffer.AttemptError{Err: fmt.Errorf("payload: %w", err), Hopeless: true}
	}
	req, err := http.NewRequestWithContext(ctx, to.method, d.servers[owner].JoinPath(to.path.EscapedPath()).String(), bytes.NewReader(body))
	if err != nil {
		return buffer.Answer{}, &buffer.AttemptError{Err: err, Hopeless: true}
	}
	req.URL.RawQuery = to.path.RawQuery
	for k, v := range c.Headers {
		if !ours(k) {
			req.Header.Set(k, v)
		}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", quoted(c.Key))
	req.Header.Set("Ficus-Command-Type", c.Type)
	req.Header.Set("Ficus-Attempt", strconv.Itoa(attempt))
	resp, err := d.transport.RoundTrip(req)
	if err != nil {
		// Who takes too long had the command.
		return buffer.Answer{}, &buffer.AttemptError{Err: err, Spent: errors.Is(err, context.DeadlineExceeded)}
	}
	defer resp.Body.Close()
	return d.answer(ctx, to, resp)
}

// answer turns a response into the answer to keep, or says what to do without one.
func (d *Door) answer(ctx context.Context, to *call, resp *http.Response) (buffer.Answer, error) {
	if err := judge(resp); err != nil {
		return buffer.Answer{}, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, d.cfg.Commands.MaxAnswer+1))
	if err != nil {
		return buffer.Answer{}, &buffer.AttemptError{Err: fmt.Errorf("read the answer: %w", err)}
	}
	a := buffer.Answer{Status: resp.StatusCode, Headers: map[string]string{}, Body: body}
	for _, name := range []string{"Content-Type", "Content-Language", "Location", "Etag"} {
		if v := resp.Header.Get(name); v != "" {
			a.Headers[name] = v
		}
	}
	if int64(len(body)) > d.cfg.Commands.MaxAnswer {
		a.Body, a.Cut = nil, true
		return a, nil
	}
	if to.answer != nil && resp.StatusCode/100 == 2 && len(body) > 0 {
		// The command is done: an answer that does not fit the program is better than none.
		if made, err := to.answer.applyJSON(ctx, body); err == nil {
			a.Body = made
		}
	}
	return a, nil
}

// judge says what to do with a response that is no answer to keep; nil when it is one.
func judge(resp *http.Response) error {
	again := &buffer.AttemptError{Err: fmt.Errorf("answered %s", resp.Status), After: retryAfter(resp.Header)}
	switch code := resp.StatusCode; {
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests,
		code == http.StatusBadGateway, code == http.StatusServiceUnavailable, code == http.StatusGatewayTimeout,
		code == http.StatusConflict && again.After > 0: // still at work on the same key
		return again
	case code >= 500, code/100 == 3 && code != http.StatusSeeOther && code != http.StatusNotModified:
		again.Spent = true
		return again
	}
	return nil
}

// retryAfter reads Retry-After, of at most an hour; 0 when it is not there.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil && n > 0 {
		return min(time.Duration(n)*time.Second, time.Hour)
	}
	if at, err := http.ParseTime(v); err == nil {
		return min(max(0, time.Until(at)), time.Hour)
	}
	return 0
}

// ours reports whether a header is the door's to set, or of one connection alone.
func ours(name string) bool {
	switch http.CanonicalHeaderKey(name) {
	case "Content-Type", "Content-Length", "Transfer-Encoding", "Idempotency-Key", "Ficus-Command-Type", "Ficus-Attempt", "Host",
		"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Upgrade", "Expect", "Accept-Encoding":
		return true
	}
	return false
}
