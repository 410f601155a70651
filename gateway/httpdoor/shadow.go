package httpdoor

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/itchyny/gojq"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/internal/backoff"
)

const (
	maxShadows     = 64      // reads that wait to be compared; more are not compared
	shadowWorkers  = 4       // compared at a time
	shadowAttempts = 2       // made again, before a difference counts
	maxShadowBody  = 1 << 20 // bytes; a longer body is not compared
	maxDifferences = 50      // that are remembered
	maxPaths       = 5       // named of one difference
)

// A Difference is a read to which the data servers gave different answers. No value is in it.
type Difference struct {
	Time   time.Time `json:"time"`
	Route  string    `json:"route"`
	Path   string    `json:"path"`  // with names of the query's parameters, no values
	Owner  int       `json:"owner"` // status of the owner's answer
	Other  int       `json:"other"`
	Fields []string  `json:"fields,omitempty"` // jq paths that differ, a few
}

// A response is what a comparison needs of one.
type response struct {
	status   int
	media    string // of Content-Type
	encoding string
	body     []byte
	whole    bool
	took     time.Duration
}

// A shadow is a read that is to be made on the other data server too.
type shadow struct {
	request *http.Request // without a body; its context lives on
	route   *route
	here    Backend // that answered the client
	there   Backend
	first   response
}

// watch keeps the response that the client gets for a comparison with another data server's.
func (d *Door) watch(r *http.Request, rt *route, there Backend) func(*http.Response) {
	began := time.Now()
	request := r.Clone(context.WithoutCancel(r.Context()))
	request.Body, request.ContentLength = nil, 0
	return func(resp *http.Response) {
		var here Backend
		for b := range d.servers {
			if b != there {
				here = b
			}
		}
		s := shadow{request: request, route: rt, here: here, there: there, first: headOf(resp)}
		resp.Body = &capture{ReadCloser: resp.Body, done: func(body []byte, whole bool) {
			s.first.body, s.first.whole, s.first.took = body, whole, time.Since(began)
			select {
			case d.shadows <- s:
			default:
				d.count.dropped.Add(1)
			}
		}}
	}
}

func headOf(resp *http.Response) response {
	media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		media = ""
	}
	return response{status: resp.StatusCode, media: media, encoding: resp.Header.Get("Content-Encoding")}
}

// A capture keeps what is read through it, up to a limit.
type capture struct {
	io.ReadCloser

	kept  bytes.Buffer
	over  bool
	ended bool // the body was read to its end
	done  func(body []byte, whole bool)
}

// Read implements [io.Reader].
func (c *capture) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if !c.over {
		c.kept.Write(p[:n])
		c.over = c.kept.Len() > maxShadowBody
	}
	c.ended = c.ended || errors.Is(err, io.EOF)
	return n, err
}

// Close implements [io.Closer].
func (c *capture) Close() error {
	if c.done != nil {
		c.done(c.kept.Bytes(), c.ended && !c.over)
		c.done = nil
	}
	return c.ReadCloser.Close()
}

// shadowing compares reads until ctx ends.
func (d *Door) shadowing(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for range shadowWorkers {
		group.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return context.Cause(ctx)
				case s := <-d.shadows:
					d.compare(ctx, s)
				}
			}
		})
	}
	return group.Wait()
}

// compare makes a read on the other data server. Where the answers differ both are asked again, since one
// database follows the other with a lag.
func (d *Door) compare(ctx context.Context, s shadow) {
	mine := s.first
	for attempt := range 1 + shadowAttempts {
		theirs, err := d.fetch(ctx, s, s.there)
		if err != nil {
			d.count.shadowFailed.Add(1)
			return
		}
		fields, told := s.route.differ(ctx, &mine, &theirs)
		switch {
		case !told:
			d.count.skipped.Add(1)
			return
		case len(fields) == 0 && attempt == 0:
			d.count.same.Add(1)
			d.count.took.Add(int64(mine.took))
			d.count.tookShadow.Add(int64(theirs.took))
			return
		case len(fields) == 0:
			d.count.settled.Add(1)
			return
		case attempt == shadowAttempts:
			d.differed(s, mine.status, theirs.status, fields)
			return
		}
		if backoff.Sleep(ctx, d.cfg.Settle) != nil {
			return
		}
		if mine, err = d.fetch(ctx, s, s.here); err != nil {
			d.count.shadowFailed.Add(1)
			return
		}
	}
}

// fetch makes the read once more, on one of the data servers.
func (d *Door) fetch(ctx context.Context, s shadow, b Backend) (response, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	began := time.Now()
	out := s.request.Clone(ctx)
	out.RequestURI = ""
	for _, name := range []string{"Connection", "Upgrade", "Te", "Trailer", "If-None-Match", "If-Modified-Since"} {
		out.Header.Del(name)
	}
	out.Header.Set("Ficus-Shadow", "true")
	resp, err := d.to(b)(out)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	r := headOf(resp)
	if r.body, err = io.ReadAll(io.LimitReader(resp.Body, maxShadowBody+1)); err != nil {
		return response{}, err
	}
	r.whole, r.took = len(r.body) <= maxShadowBody, time.Since(began)
	return r, nil
}

// differed remembers a difference.
func (d *Door) differed(s shadow, mine, theirs int, fields []string) {
	d.count.different.Add(1)
	diff := Difference{Time: time.Now().UTC(), Route: s.route.Match, Path: masquerade(s.request.URL), Owner: mine, Other: theirs, Fields: fields}
	if owner, _ := d.owner(); owner != s.here {
		diff.Owner, diff.Other = theirs, mine
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.differ = append(d.mu.differ, diff)
	if n := len(d.mu.differ); n > maxDifferences {
		d.mu.differ = slices.Clone(d.mu.differ[n-maxDifferences:])
	}
}

// Differences returns the newest reads to which the data servers gave different answers, newest last.
func (d *Door) Differences() []Difference {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.mu.differ)
}

// masquerade returns a path with its query's parameters, but not what they are set to.
func masquerade(u *url.URL) string {
	var names []string
	for name := range u.Query() {
		names = append(names, name+"=…")
	}
	if len(names) == 0 {
		return u.Path
	}
	slices.Sort(names)
	return u.Path + "?" + strings.Join(names, "&")
}

// differ names the fields in which two responses differ; told is false when that cannot be told.
func (rt *route) differ(ctx context.Context, a, b *response) (fields []string, told bool) {
	if a.status != b.status {
		return []string{"status"}, true
	}
	if !a.whole || !b.whole {
		return nil, false
	}
	bodyA, okA := a.plain()
	bodyB, okB := b.plain()
	if !okA || !okB {
		return nil, false
	}
	if !isJSON(a.media) || !isJSON(b.media) {
		if a.media != b.media {
			return []string{"content type"}, true
		}
		if !bytes.Equal(bodyA, bodyB) {
			return []string{"body"}, true
		}
		return nil, true
	}
	x, errX := decode(bodyA)
	y, errY := decode(bodyB)
	if errX != nil || errY != nil {
		return nil, false
	}
	x, errX = rt.ignore.apply(ctx, x)
	y, errY = rt.ignore.apply(ctx, y)
	if errX != nil || errY != nil { // of a shape that the rule does not fit
		return nil, false
	}
	unlike("", x, y, &fields)
	return fields, true
}

func isJSON(media string) bool {
	return media == "application/json" || strings.HasSuffix(media, "+json")
}

// plain returns the body without its encoding.
func (r *response) plain() ([]byte, bool) {
	switch strings.ToLower(r.encoding) {
	case "", "identity":
		return r.body, true
	case "gzip":
		z, err := gzip.NewReader(bytes.NewReader(r.body))
		if err != nil {
			return nil, false
		}
		out, err := io.ReadAll(io.LimitReader(z, 8*maxShadowBody))
		return out, err == nil && len(out) < 8*maxShadowBody
	}
	return nil, false
}

// unlike adds to fields where two JSON values differ.
func unlike(path string, a, b any, fields *[]string) {
	if len(*fields) >= maxPaths {
		return
	}
	switch x := a.(type) {
	case map[string]any:
		y, ok := b.(map[string]any)
		if !ok {
			break
		}
		keys := map[string]struct{}{}
		for k := range x {
			keys[k] = struct{}{}
		}
		for k := range y {
			keys[k] = struct{}{}
		}
		for _, k := range sorted(keys) {
			v, inX := x[k]
			w, inY := y[k]
			if inX != inY {
				add(fields, path+"."+k)
				continue
			}
			unlike(path+"."+k, v, w, fields)
		}
		return
	case []any:
		y, ok := b.([]any)
		if !ok {
			break
		}
		if len(x) != len(y) {
			add(fields, path+"[]")
			return
		}
		for i := range x {
			unlike(fmt.Sprintf("%s[%d]", path, i), x[i], y[i], fields)
		}
		return
	}
	if !sameScalar(a, b) {
		add(fields, path)
	}
}

func add(fields *[]string, path string) {
	if path == "" {
		path = "."
	}
	if len(*fields) < maxPaths {
		*fields = append(*fields, path)
	}
}

// sameScalar compares numbers by value: 1.50 is 1.5.
func sameScalar(a, b any) bool {
	x, isX := a.(json.Number)
	y, isY := b.(json.Number)
	if isX && isY && x == y {
		return true
	}
	return gojq.TypeOf(a) == gojq.TypeOf(b) && gojq.Compare(a, b) == 0
}

func sorted(set map[string]struct{}) []string {
	out := make([]string, 0, len(set))
	for k := range set {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
