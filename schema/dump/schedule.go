package dump

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
)

// A Ready lets what is built beside a copy go on.
type Ready struct {
	Table   schema.Name // is filled; of a partitioned table its root; zero for none
	Session bool        // one more session may be used
}

// A schedule builds what is in a graph, in several sessions, largest tables first.
type schedule struct {
	*builder

	conn  *pgx.Conn // looks around, and builds when there is nothing more to see
	graph graph
	ready <-chan Ready // nil when everything may go on

	queue    []*job     // wait for nothing but a session, in the order of earlier
	sessions int        // that may be used at a time
	busy     []*job     // what they do
	idle     []*session // those that do nothing
	done     chan finished
}

// A session builds one job at a time.
type session struct {
	conn *pgx.Conn // nil until it is needed
	has  share
}

type finished struct {
	*job
	*session
}

// run returns when everything is built, or at the first error, and leaves no session behind but conn.
func (s *schedule) run(ctx context.Context) error {
	s.done = make(chan finished)
	g, gctx := errgroup.WithContext(ctx)
	err := s.work(gctx, g)
	if failed := g.Wait(); failed != nil { // that is why work's context ended
		err = failed
	}
	for _, i := range s.idle {
		if i.conn != s.conn {
			_ = i.conn.Close(context.WithoutCancel(ctx))
		}
	}
	return err
}

// work gives jobs out until there are none.
func (s *schedule) work(ctx context.Context, g *errgroup.Group) error {
	for {
		for len(s.busy) < s.sessions && len(s.queue) > 0 {
			s.start(ctx, g)
		}
		if s.ready == nil && len(s.busy) == 0 {
			return s.complete()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case f := <-s.done:
			s.busy = slices.DeleteFunc(s.busy, func(j *job) bool { return j == f.job })
			s.idle = append(s.idle, f.session)
			s.release(f.job)
		case r, ok := <-s.ready:
			if err := s.goOn(ctx, r, ok); err != nil {
				return err
			}
		}
	}
}

// complete makes sure that nothing was left out.
func (s *schedule) complete() error {
	for _, f := range s.graph {
		for _, j := range f.jobs {
			if j.waits > 0 {
				return fmt.Errorf("%s waits for what waits for it", j.entry)
			}
		}
	}
	return nil
}

// goOn does what ready says; its end lets everything go on.
func (s *schedule) goOn(ctx context.Context, r Ready, more bool) error {
	var open []*family
	switch f := s.graph[r.Table]; {
	case !more:
		open = slices.Collect(maps.Values(s.graph))
	case r.Table != (schema.Name{}) && f != nil:
		open = append(open, f)
	}
	var tables []schema.Name
	for _, f := range open {
		tables = slices.AppendSeq(tables, maps.Keys(f.tables))
	}
	if err := s.measure(ctx, s.conn, tables); err != nil {
		return err
	}
	for _, f := range open {
		if f.gate != nil {
			s.release(f.gate)
			f.gate = nil
		}
	}
	switch {
	case !more:
		s.ready, s.sessions = nil, s.means.sessions
		s.idle = append(s.idle, &session{conn: s.conn})
	case r.Session:
		s.sessions = min(s.sessions+1, s.means.sessions)
	}
	return nil
}

// release lets go what waits for j.
func (s *schedule) release(j *job) {
	for _, n := range j.next {
		if n.waits--; n.waits > 0 {
			continue
		}
		if n.entry == nil {
			s.release(n)
			continue
		}
		if n.table != nil {
			n.bytes = s.sizes[n.table.tableName()]
		}
		at, _ := slices.BinarySearchFunc(s.queue, n, earlier)
		s.queue = slices.Insert(s.queue, at, n)
	}
}

// start gives the next job to a session that is idle, or to a new one.
func (s *schedule) start(ctx context.Context, g *errgroup.Group) {
	j := s.queue[0]
	s.queue = s.queue[1:]
	on := &session{}
	if n := len(s.idle); n > 0 {
		on, s.idle = s.idle[n-1], s.idle[:n-1]
	}
	s.busy = append(s.busy, j)
	due := s.due(j)
	g.Go(func() error {
		err := s.buildOn(ctx, on, j, due)
		if err == nil {
			select {
			case s.done <- finished{j, on}:
				return nil
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		}
		if on.conn != nil && on.conn != s.conn {
			_ = on.conn.Close(context.WithoutCancel(ctx))
		}
		return err
	})
}

func (s *schedule) buildOn(ctx context.Context, on *session, j *job, due share) (err error) {
	if on.conn == nil {
		if on.conn, err = s.d.connect(ctx, s.target, pg.Setting("synchronous_commit", "off")); err != nil {
			return err
		}
	}
	if on.has != due {
		if err := due.set(ctx, on.conn); err != nil {
			return err
		}
		on.has = due
	}
	return s.build(ctx, on.conn, j.entry)
}

// due returns what a job may use of the server, given what else is large enough to want some.
func (s *schedule) due(j *job) share {
	if s.ready != nil { // a copy is using the server, too
		return s.means.among(s.means.sessions)
	}
	n := 1
	for _, others := range [][]*job{s.busy, s.queue} {
		for _, o := range others {
			if o != j && o.bytes >= leastShared {
				n++
			}
		}
	}
	return s.means.among(min(n, s.sessions))
}

// earlier orders jobs: those of the largest tables first, then as pg_dump found them.
func earlier(a, b *job) int {
	return cmp.Or(cmp.Compare(b.bytes, a.bytes), cmp.Compare(a.order, b.order))
}
