package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	rnd "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Shadow reads: a share of the reads that the owner has answered on the read-only door is run once more, on
// the other backend, and the answers are compared. The client waits for none of it. What is compared is
//
//	A   the owner's answer, as the client got it
//	B   the other backend's, once that has applied all that the owner had written when it was asked
//	A'  the owner's once more
//
// Where A and A' differ the read says something else each time, or its rows are just changing: that is noise,
// and tells nothing of B. Where they are the same, B has to be.

// Shadow says which reads are run twice.
type Shadow struct {
	// Share is how many of them, from 0 to 1 (default 0: none).
	Share float64
	// Workers is how many are run at once (default 2), Queue how many wait (default 64): more are left out.
	Workers, Queue int
	// Timeout bounds one, the wait until the other backend has come as far included (default 5 s).
	Timeout time.Duration
	// Ignore names columns of results that are not compared (default: none).
	Ignore []string
	// Floats is by how much floating point numbers may differ, relative to their size (default 1e-9).
	Floats float64
}

func (c Shadow) withDefaults() Shadow {
	c.Workers = cmp.Or(c.Workers, 2)
	c.Queue = cmp.Or(c.Queue, 64)
	c.Timeout = cmp.Or(c.Timeout, 5*time.Second)
	c.Floats = cmp.Or(c.Floats, 1e-9)
	return c
}

func (c Shadow) validate(r Reads) error {
	switch {
	case c.Share < 0 || c.Share > 1:
		return fmt.Errorf("gateway: shadow reads: a share of %g: want 0 to 1", c.Share)
	case c.Share > 0 && r.Passed == nil:
		return errors.New("gateway: nobody says how far the other backend has come, which shadow reads need")
	}
	return nil
}

// ShadowStats are the figures of shadow reads since the process began.
type ShadowStats struct {
	Sampled    int64 // reads that were taken for it
	Compared   int64 // of them, those whose answer was the same twice on the owner
	Mismatched int64 // of the compared, those that the other backend answered otherwise
	Noise      int64 // reads that the owner itself answered otherwise the second time: the A/A baseline
	Dropped    int64 // left out because the queue was full, or the answer too long
	Late       int64 // left out because the other backend did not come as far in time
	Failed     int64 // left out because a backend did not answer

	OwnerP50, OwnerP95, OtherP50, OtherP95 time.Duration // of the second and the third run
	Mismatches                             []Mismatch    // by shape of the query, the most frequent first
}

// Rate returns the share of compared reads that mismatched.
func (s ShadowStats) Rate() float64 {
	if s.Compared == 0 {
		return 0
	}
	return float64(s.Mismatched) / float64(s.Compared)
}

// A Mismatch is what is known of a query that is answered differently. It holds no values.
type Mismatch struct {
	Shape       string   // the query, with its constants masked
	Kind        string   // "rows", "order", "values", "columns", "error"
	Columns     []string // values: that differ
	Count       int64
	First, Last time.Time
}

// Bounds of what shadow reads keep.
const (
	maxTape   = 256 << 10 // bytes of a query, and of its answer
	maxShapes = 100
	maxPairs  = 8 // pairs of server sessions of a worker
	restAfter = 5 * time.Second
)

// shadow runs reads twice.
type shadow struct {
	g    *Gateway
	jobs chan *tape

	count        struct{ sampled, compared, mismatched, noise, dropped, late, failed atomic.Int64 }
	owner, other histogram

	mu struct {
		sync.Mutex
		shapes map[string]*Mismatch
	}
}

func newShadow(g *Gateway) *shadow {
	sh := &shadow{g: g, jobs: make(chan *tape, g.cfg.Shadow.Queue)}
	sh.mu.shapes = map[string]*Mismatch{}
	return sh
}

// ShadowStats returns the present figures.
func (g *Gateway) ShadowStats() ShadowStats {
	sh := g.shadow
	st := ShadowStats{
		Sampled: sh.count.sampled.Load(), Compared: sh.count.compared.Load(), Mismatched: sh.count.mismatched.Load(), Noise: sh.count.noise.Load(),
		Dropped: sh.count.dropped.Load(), Late: sh.count.late.Load(), Failed: sh.count.failed.Load(),
		OwnerP50: sh.owner.at(0.50), OwnerP95: sh.owner.at(0.95), OtherP50: sh.other.at(0.50), OtherP95: sh.other.at(0.95),
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, m := range sh.mu.shapes {
		st.Mismatches = append(st.Mismatches, *m)
	}
	slices.SortFunc(st.Mismatches, func(a, b Mismatch) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Shape, b.Shape)) })
	return st
}

// Shadows reports whether reads are run twice.
func (g *Gateway) Shadows() bool { return g.cfg.Shadow.Share > 0 }

// draws reports whether the next read is taken.
func (sh *shadow) draws() bool { return rnd.Float64() < sh.g.cfg.Shadow.Share }

// submit hands a read over. It never waits.
func (sh *shadow) submit(t *tape) {
	sh.count.sampled.Add(1)
	if t.spoiled {
		sh.count.dropped.Add(1)
		return
	}
	select {
	case sh.jobs <- t:
	default:
		sh.count.dropped.Add(1)
	}
}

// work compares one read after the other until ctx ends.
func (sh *shadow) work(ctx context.Context) error {
	w := shadower{shadow: sh, pairs: map[string]*pair{}}
	defer w.close()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case t := <-sh.jobs:
			w.compare(ctx, t)
		}
	}
}

// A shadower has server sessions of its own on both sides, as those whose reads it runs.
type shadower struct {
	*shadow

	pairs map[string]*pair
	rests time.Time // until when nothing is run, after a backend did not answer
}

// A pair is one session on each side.
type pair struct {
	owner, other *server
	used         time.Time
}

func (w *shadower) compare(ctx context.Context, t *tape) {
	if time.Now().Before(w.rests) {
		w.count.failed.Add(1)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, w.g.cfg.Shadow.Timeout)
	defer cancel()
	was, err := t.read()
	owner := w.g.route.Load().owner
	if err != nil || was.code != "" || t.backend != owner {
		w.count.dropped.Add(1)
		return
	}
	at, err := w.g.reads.pos.ask(ctx, owner)
	if err != nil || w.g.cfg.Reads.Passed(owner) < at && !w.g.awaitPassed(ctx, owner, at) {
		w.count.late.Add(1)
		return
	}
	b, again, err := w.run(ctx, t, owner)
	if err != nil {
		if ctx.Err() == nil {
			w.rests = time.Now().Add(restAfter)
			w.g.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "shadow reads rest", slog.Any("err", logged(err)))
		}
		w.count.failed.Add(1)
		return
	}
	how := comparison{ignore: w.g.cfg.Shadow.Ignore, floats: w.g.cfg.Shadow.Floats, ordered: ordered(t.sql), columns: again.columns}
	if kind, _ := how.differ(was, again); kind != "" {
		w.count.noise.Add(1)
		return
	}
	w.owner.add(again.took)
	w.other.add(b.took)
	w.count.compared.Add(1)
	if kind, columns := how.differ(was, b); kind != "" {
		w.count.mismatched.Add(1)
		w.note(shape(t.sql), kind, columns)
	}
}

// run has the read answered by the other backend, then by the owner.
func (w *shadower) run(ctx context.Context, t *tape, owner Backend) (other, again *answer, err error) {
	key := t.key()
	p, err := w.pair(ctx, key, t, owner)
	if err == nil {
		if other, err = p.other.answer(t, w.g.cfg.Shadow.Timeout); err == nil {
			again, err = p.owner.answer(t, w.g.cfg.Shadow.Timeout)
		}
	}
	if err != nil && p != nil {
		p.bye()
		delete(w.pairs, key)
	}
	return other, again, err
}

// pair returns sessions for whom a read was.
func (w *shadower) pair(ctx context.Context, key string, t *tape, owner Backend) (*pair, error) {
	if p := w.pairs[key]; p != nil {
		if p.owner.backend == owner {
			p.used = time.Now()
			return p, nil
		}
		p.bye()
		delete(w.pairs, key)
	}
	if len(w.pairs) >= maxPairs {
		w.evict()
	}
	p := &pair{used: time.Now()}
	for b := range w.g.cfg.Backends {
		srv, err := w.g.connect(ctx, b, t.who, nil)
		if err == nil {
			err = srv.settings(t.sets, w.g.cfg.Shadow.Timeout)
		}
		if b == owner {
			p.owner = srv
		} else {
			p.other = srv
		}
		if err != nil {
			p.bye()
			return nil, err
		}
	}
	w.pairs[key] = p
	return p, nil
}

// settings makes a session what its client made it, and keeps it from waiting for long.
func (s *server) settings(sets []string, within time.Duration) error {
	texts := append([]string{fmt.Sprintf("SET statement_timeout = %d", within.Milliseconds()), "SET lock_timeout = '200ms'"}, sets...)
	for _, text := range texts {
		if _, err := s.exchange(appendMessage(nil, &pgproto3.Query{String: text}), within, func([][]byte) {}); err != nil {
			return fmt.Errorf("settings: %w", err)
		}
	}
	return nil
}

func (w *shadower) evict() {
	var oldest string
	for key, p := range w.pairs {
		if oldest == "" || p.used.Before(w.pairs[oldest].used) {
			oldest = key
		}
	}
	w.pairs[oldest].bye()
	delete(w.pairs, oldest)
}

func (p *pair) bye() {
	for _, srv := range []*server{p.owner, p.other} {
		if srv != nil {
			srv.bye()
		}
	}
}

func (w *shadower) close() {
	for _, p := range w.pairs {
		p.bye()
	}
}

// note keeps a mismatch by the shape of its query.
func (sh *shadow) note(shape, kind string, columns []string) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	key := kind + " " + shape
	m := sh.mu.shapes[key]
	if m == nil {
		if len(sh.mu.shapes) >= maxShapes {
			return // counted all the same
		}
		m = &Mismatch{Shape: shape, Kind: kind, First: time.Now()}
		sh.mu.shapes[key] = m
	}
	m.Count++
	m.Last = time.Now()
	for _, c := range columns {
		if !slices.Contains(m.Columns, c) {
			m.Columns = append(m.Columns, c)
		}
	}
}

// key tells whose sessions can be used for a read.
func (t *tape) key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q", t.who.user, t.sets)
	for _, name := range slices.Sorted(maps.Keys(t.who.params)) {
		fmt.Fprintf(&b, " %q=%q", name, t.who.params[name])
	}
	return b.String()
}

// answer runs a read. An error of the server's is part of the answer.
func (s *server) answer(t *tape, within time.Duration) (*answer, error) {
	if err := s.conn.SetDeadline(time.Now().Add(within)); err != nil {
		return nil, err
	}
	began := time.Now()
	if _, err := s.conn.Write(t.again()); err != nil {
		return nil, err
	}
	a, err := readAnswer(pgproto3.NewFrontend(s.conn, s.conn))
	if err != nil {
		return nil, err
	}
	a.took = time.Since(began)
	return a, s.conn.SetDeadline(time.Time{})
}
