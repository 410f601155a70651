package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// A total sums up some rows: how many there are, and the sum of their hashes.
type total struct {
	rows int64
	sum  big.Int
}

func (t *total) add(o total) {
	t.rows += o.rows
	t.sum.Add(&t.sum, &o.sum)
}

func (t *total) equal(o *total) bool { return t.rows == o.rows && t.sum.Cmp(&o.sum) == 0 }

// Exact compares every row of every table, at one instant unless it is paused for long or resumed: the
// report then lists the instants.
func (s *Session) Exact(ctx context.Context) (*Report, error) {
	start := time.Now()
	s.known = Checkpoint{}
	if c := s.cfg.Resume; c != nil {
		s.known = *c
	}
	defer func() { s.before = 0 }()
	var stood time.Duration // how long applying did
	for {
		report, paused, err := s.round(ctx)
		stood += paused
		if errors.Is(err, errLetGo) {
			err = s.sleep(ctx)
			if err == nil {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		report.Paused = stood
		report.finish(start)
		return report, nil
	}
}

// round compares what is not known yet at one instant, or until it has to let that go. It returns how
// long applying stood still for it.
func (s *Session) round(ctx context.Context) (*Report, time.Duration, error) {
	before, err := s.layouts(ctx, s.tables)
	if err != nil {
		return nil, 0, err
	}
	defer s.thaw(ctx)
	at, err := s.freeze(ctx, s.cfg.Follower)
	if err != nil {
		return nil, at.paused, err
	}
	s.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "comparing", slog.Int("tables", len(s.tables)),
		slog.String("lsn", at.lsn.String()), slog.Bool("same_instant", at.same))

	report := s.newReport(Exact, at)
	if s.cfg.Save != nil || s.cfg.Held != nil {
		err = s.compareParts(ctx, at, before, report)
	} else {
		report.Tables, err = s.compare(ctx, s.tables, before, nil)
	}
	if err != nil {
		return nil, at.paused, err
	}
	if err := s.unchanged(ctx, s.tables, before); err != nil {
		return nil, at.paused, err
	}
	return report, at.paused, s.beyondRows(ctx, report)
}

// compareParts is compare in parts that are saved, or kept when a pause ends the round.
func (s *Session) compareParts(ctx context.Context, at instant, before [2][]layout, report *Report) error {
	r, parts, layouts, err := s.resumable(ctx, before)
	if err != nil {
		return err
	}
	_, err = s.compare(ctx, parts, layouts, func(i int, tr TableReport) error {
		return r.finished(ctx, parts[i], tr, at, [2]layout{layouts[source][i], layouts[target][i]})
	})
	if errors.Is(err, errLetGo) {
		return cmp.Or(r.keep(ctx), err)
	}
	if err != nil {
		return err
	}
	r.finish(report)
	return nil
}

// beyondRows compares what else was asked for, as it is now.
func (s *Session) beyondRows(ctx context.Context, report *Report) (err error) {
	if s.cfg.Definitions {
		if report.Definitions, err = s.Definitions(ctx); err != nil {
			return err
		}
	}
	if len(s.cfg.Sequences) > 0 {
		report.Sequences, err = s.Sequences(ctx)
	}
	return err
}

func (s *Session) layouts(ctx context.Context, tables []*table) (out [2][]layout, err error) {
	err = both(func(sd side) (err error) {
		out[sd], err = s.nodes[sd].layouts(ctx, tables)
		return err
	})
	return out, err
}

func (s *Session) unchanged(ctx context.Context, tables []*table, before [2][]layout) error {
	return both(func(sd side) error { return s.nodes[sd].unchanged(ctx, tables, before[sd]) })
}

// compare compares whole tables, first by their totals, then those that differ down to the rows.
// finished, if any, is called with the report of each table as soon as it is there.
func (s *Session) compare(ctx context.Context, tables []*table, layouts [2][]layout, finished func(int, TableReport) error) ([]TableReport, error) {
	reports := make([]TableReport, len(tables))
	first := func(i int, src, dst *total) error {
		t := tables[i]
		reports[i] = TableReport{Table: t.m.Source.Name, Target: t.m.Target, Method: t.hash.method, Rows: src.rows, TargetRows: dst.rows}
		if finished == nil || !src.equal(dst) {
			return nil
		}
		return finished(i, reports[i])
	}
	totals, err := s.totals(ctx, tables, layouts, first)
	if err != nil {
		return nil, err
	}
	var differ []int
	for i := range tables {
		if !totals[source][i].equal(&totals[target][i]) {
			differ = append(differ, i)
		}
	}
	err = spread(ctx, s.cfg.Workers, len(differ), func(ctx context.Context, worker, k int) error {
		if err := s.breathe(ctx); err != nil {
			return err
		}
		i := differ[k]
		d := drill{s: s, t: tables[i], conns: s.pair(worker)}
		err := d.run(ctx, &totals[source][i], &totals[target][i], &reports[i])
		if err == nil && finished != nil {
			err = finished(i, reports[i])
		}
		return err
	})
	return reports, err
}

// pair returns the connections of one worker.
func (s *Session) pair(worker int) [2]*pgx.Conn {
	return [2]*pgx.Conn{s.nodes[source].workers[worker], s.nodes[target].workers[worker]}
}

// A chunk is a part of one table on one side, for one query.
type chunk struct {
	table     int
	condition string
}

// totals reads all tables on both sides, each side in its own chunks, largest tables first. finished
// is called once for each table when all of its chunks have been read.
func (s *Session) totals(ctx context.Context, tables []*table, layouts [2][]layout, finished func(i int, src, dst *total) error) ([2][]total, error) {
	step := s.cfg.ChunkRows
	if s.hurry { // so that each worker has something to do
		step = max(minChunk, min(step, allRows(layouts[source])/int64(s.cfg.Workers)))
	}
	sums := [2][]total{make([]total, len(tables)), make([]total, len(tables))}
	meter := s.newMeter(layouts)
	plan := [2][]chunk{s.chunks(source, layouts[source], step), s.chunks(target, layouts[target], step)}
	var mu sync.Mutex // guards sums and left
	left := make([]int, len(tables))
	for _, chunks := range plan {
		for _, c := range chunks {
			left[c.table]++
		}
	}
	err := both(func(sd side) error {
		n, chunks := s.nodes[sd], plan[sd]
		return n.parallel(ctx, len(chunks), func(ctx context.Context, conn *pgx.Conn, k int) error {
			if err := s.breathe(ctx); err != nil {
				return err
			}
			c := chunks[k]
			got, err := n.total(ctx, conn, tables[c.table], c.condition)
			if err != nil {
				return err
			}
			mu.Lock()
			sums[sd][c.table].add(got)
			left[c.table]--
			last := left[c.table] == 0
			mu.Unlock()
			meter.add(got.rows)
			if last {
				return finished(c.table, &sums[source][c.table], &sums[target][c.table])
			}
			return nil
		})
	})
	if err == nil {
		meter.end()
	}
	return sums, err
}

// minChunk is the least number of rows that is worth a query of its own.
const minChunk = 10_000

func allRows(layouts []layout) (n int64) {
	for i := range layouts {
		n += layouts[i].rows
	}
	return n
}

// chunks cuts one side's tables, largest first.
func (s *Session) chunks(sd side, sizes []layout, step int64) []chunk {
	order := make([]int, len(sizes))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(sizes[b].blocks, sizes[a].blocks) })
	var chunks []chunk
	for _, i := range order {
		for _, c := range sizes[i].chunks(s.nodes[sd], step) {
			chunks = append(chunks, chunk{i, c})
		}
	}
	return chunks
}

// total reads one chunk.
func (n *node) total(ctx context.Context, conn *pgx.Conn, t *table, condition string) (total, error) {
	sql := fmt.Sprintf("SELECT count(*), coalesce(sum(%s), 0)::text FROM (%s) AS r", t.half[n.side].hash, t.query(n.side, condition))
	var sum string
	var out total
	if err := conn.QueryRow(ctx, sql, pgx.QueryExecModeExec).Scan(&out.rows, &sum); err != nil {
		return total{}, n.failTable(t, "read where "+condition, err)
	}
	if _, ok := out.sum.SetString(sum, 10); !ok {
		return total{}, n.failTable(t, "read where "+condition, fmt.Errorf("sum of hashes is %q", sum))
	}
	return out, nil
}

// A meter counts rows for Config.Progress.
type meter struct {
	report func(done, total int64)

	mu struct {
		sync.Mutex  // held while report runs, so that its calls come in order
		done, total int64
	}
}

func (s *Session) newMeter(layouts [2][]layout) *meter {
	m := &meter{report: s.cfg.Progress}
	m.mu.done, m.mu.total = s.before, s.before
	for _, side := range layouts {
		for _, l := range side {
			m.mu.total += l.rows
		}
	}
	return m
}

func (m *meter) add(rows int64) {
	if m.report == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.done += rows
	m.mu.total = max(m.mu.total, m.mu.done)
	m.report(m.mu.done, m.mu.total)
}

// end replaces the estimate by the truth.
func (m *meter) end() {
	if m.report == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.report(m.mu.done, m.mu.done)
}
