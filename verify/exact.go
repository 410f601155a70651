package verify

import (
	"cmp"
	"context"
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

// Exact compares every row of every table at one instant.
func (s *Session) Exact(ctx context.Context) (*Report, error) {
	start := time.Now()
	before, err := s.layouts(ctx, s.tables)
	if err != nil {
		return nil, err
	}
	defer s.thaw(ctx)
	at, err := s.freeze(ctx, s.cfg.Follower)
	if err != nil {
		return nil, err
	}
	s.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "comparing", slog.Int("tables", len(s.tables)),
		slog.String("lsn", at.lsn.String()), slog.Bool("same_instant", at.same))

	report := s.newReport(Exact, at)
	if report.Tables, err = s.compare(ctx, s.tables, before); err != nil {
		return nil, err
	}
	if err := s.unchanged(ctx, s.tables, before); err != nil {
		return nil, err
	}
	if err := s.beyondRows(ctx, report); err != nil {
		return nil, err
	}
	report.finish(start)
	return report, nil
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
func (s *Session) compare(ctx context.Context, tables []*table, layouts [2][]layout) ([]TableReport, error) {
	totals, err := s.totals(ctx, tables, layouts)
	if err != nil {
		return nil, err
	}
	reports := make([]TableReport, len(tables))
	var differ []int
	for i, t := range tables {
		src, dst := &totals[source][i], &totals[target][i]
		reports[i] = TableReport{Table: t.m.Source.Name, Target: t.m.Target, Method: t.hash.method, Rows: src.rows, TargetRows: dst.rows}
		if !src.equal(dst) {
			differ = append(differ, i)
		}
	}
	err = spread(ctx, s.cfg.Workers, len(differ), func(ctx context.Context, worker, k int) error {
		i := differ[k]
		d := drill{s: s, t: tables[i], conns: s.pair(worker)}
		return d.run(ctx, &totals[source][i], &totals[target][i], &reports[i])
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

// totals reads all tables on both sides, each side in its own chunks, largest tables first.
func (s *Session) totals(ctx context.Context, tables []*table, layouts [2][]layout) ([2][]total, error) {
	var sums [2][]total
	meter := s.newMeter(layouts)
	err := both(func(sd side) error {
		n, sizes := s.nodes[sd], layouts[sd]
		order := make([]int, len(tables))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(sizes[b].blocks, sizes[a].blocks) })
		var chunks []chunk
		for _, i := range order {
			for _, c := range sizes[i].chunks(n, s.cfg.ChunkRows) {
				chunks = append(chunks, chunk{i, c})
			}
		}

		sums[sd] = make([]total, len(tables))
		var mu sync.Mutex // guards sums[sd]
		return n.parallel(ctx, len(chunks), func(ctx context.Context, conn *pgx.Conn, k int) error {
			c := chunks[k]
			got, err := n.total(ctx, conn, tables[c.table], c.condition)
			if err != nil {
				return err
			}
			mu.Lock()
			sums[sd][c.table].add(got)
			mu.Unlock()
			meter.add(got.rows)
			return nil
		})
	})
	if err == nil {
		meter.end()
	}
	return sums, err
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
