package verify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// batchKeys is how many keys one query looks up.
const batchKeys = 1000

// errWhole ends the iteration of a table's keys.
var errWhole = errors.New("the whole table is compared")

// Delta compares the rows with the given keys, at one instant when there is a Follower. Tables that
// only a comparison as a whole would cover, and that are too large for it, are listed in the
// report's Uncovered.
func (s *Session) Delta(ctx context.Context, keys Keys) (*Report, error) {
	return s.delta(ctx, keys, s.cfg.Follower)
}

// DeltaAtRest is Delta at a moment when nobody writes and everything is applied: both sides are
// compared as they stand, without the Follower.
func (s *Session) DeltaAtRest(ctx context.Context, keys Keys) (*Report, error) {
	return s.delta(ctx, keys, nil)
}

func (s *Session) delta(ctx context.Context, keys Keys, follower Follower) (*Report, error) {
	start := time.Now()
	s.hurry = true
	defer func() { s.hurry = false }()
	var before [2][]layout
	if follower != nil { // else there is nobody who could rewrite a table
		var err error
		if before, err = s.layouts(ctx, s.tables); err != nil {
			return nil, err
		}
	}
	defer s.thaw(ctx)
	at, err := s.freeze(ctx, follower)
	if err != nil {
		return nil, err
	}

	report := s.newReport(Delta, at)
	whole, err := s.compareKeys(ctx, keys, report)
	if err != nil {
		return nil, err
	}
	if err := s.compareWhole(ctx, whole, report); err != nil {
		return nil, err
	}
	if follower != nil {
		if err := s.unchanged(ctx, s.tables, before); err != nil {
			return nil, err
		}
	}
	report.finish(start)
	s.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "compared touched keys", slog.Int64("keys", report.Keys),
		slog.Int64("differences", report.Differences), slog.Duration("elapsed", report.Elapsed))
	return report, nil
}

// Warm makes every worker prepare its look-ups, so that the next Delta waits for no catalogs and no
// planner. It costs two round trips for each table.
func (s *Session) Warm(ctx context.Context) error {
	return both(func(sd side) error {
		n := s.nodes[sd]
		return n.parallel(ctx, len(n.workers), func(ctx context.Context, _ *pgx.Conn, i int) error {
			for _, t := range s.tables {
				if !t.keyed() {
					continue
				}
				if _, _, err := n.lookupKeys(ctx, n.workers[i], t, nil); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// A batch is some touched keys of one table.
type batch struct {
	delta *tableDelta
	keys  [][]string
}

// A tableDelta gathers what the batches of a table find.
type tableDelta struct {
	t *table

	keys int64 // looked up

	mu    sync.Mutex // guards found and rows
	found findings
	rows  [2]int64 // by side
}

// compareKeys compares touched rows and returns the tables that were touched as a whole.
func (s *Session) compareKeys(ctx context.Context, keys Keys, report *Report) (whole []*table, err error) {
	var deltas []*tableDelta
	batches := make(chan batch)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		defer close(batches)
		deltas, whole, err = s.gather(gctx, keys, batches)
		return err
	})
	for worker := range s.cfg.Workers {
		g.Go(func() error {
			for b := range batches {
				if err := s.compareBatch(gctx, s.pair(worker), b); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, d := range deltas {
		r := TableReport{Table: d.t.m.Source.Name, Target: d.t.m.Target, Method: d.t.hash.method, Rows: d.rows[source], TargetRows: d.rows[target]}
		dr := drill{s: s, t: d.t, conns: s.pair(0)}
		if err := dr.finish(ctx, &d.found, &r); err != nil {
			return nil, err
		}
		report.Tables = append(report.Tables, r)
		report.Keys += d.keys
	}
	return whole, nil
}

// gather sends the touched keys of every table in batches.
func (s *Session) gather(ctx context.Context, keys Keys, out chan<- batch) (deltas []*tableDelta, whole []*table, err error) {
	for _, t := range s.tables {
		d := &tableDelta{t: t, found: findings{keyed: t.keyed(), limit: s.limit()}}
		var list [][]string
		flush := func() error {
			if len(list) == 0 {
				return nil
			}
			select {
			case out <- batch{d, list}:
				d.keys += int64(len(list))
				list = nil
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		err := keys(t.m.Source.Name, func(key []string) error {
			switch {
			case key == nil || !t.keyed():
				return errWhole
			case len(key) != len(t.m.Key):
				return fmt.Errorf("touched key has %d columns, the mapping's has %d", len(key), len(t.m.Key))
			}
			if list = append(list, slices.Clone(key)); len(list) < batchKeys {
				return nil
			}
			return flush()
		})
		if err == nil {
			err = flush()
		}
		switch {
		case errors.Is(err, errWhole):
			whole = append(whole, t) // what its batches find is found again
		case err != nil:
			return nil, nil, fmt.Errorf("table %s: touched keys: %w", t.name, err)
		case d.keys > 0:
			deltas = append(deltas, d)
		}
	}
	return deltas, whole, nil
}

// compareBatch looks some keys up on both sides at once.
func (s *Session) compareBatch(ctx context.Context, conns [2]*pgx.Conn, b batch) error {
	t := b.delta.t
	var got [2][][]entry
	var count [2]int64
	err := both(func(sd side) (err error) {
		got[sd], count[sd], err = s.nodes[sd].lookupKeys(ctx, conns[sd], t, b.keys)
		return err
	})
	if err != nil {
		return err
	}
	d := b.delta
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range b.keys {
		d.found.compare(got[source][i], got[target][i])
	}
	d.rows[source] += count[source]
	d.rows[target] += count[target]
	return nil
}

// lookupKeys returns the rows of each key, and how many there are.
func (n *node) lookupKeys(ctx context.Context, conn *pgx.Conn, t *table, keys [][]string) ([][]entry, int64, error) {
	columns := make([]any, len(t.m.Key))
	for c := range columns {
		values := make([]string, len(keys))
		for i := range keys {
			values[i] = keys[i][c]
		}
		columns[c] = values
	}
	rows, err := conn.Query(ctx, t.lookupSQL(n.side), columns...)
	if err != nil {
		return nil, 0, n.failTable(t, "look keys up", err)
	}
	out := make([][]entry, len(keys))
	var i, hash, count int64
	_, err = pgx.ForEachRow(rows, []any{&i, &hash}, func() error {
		key := make([]*string, len(keys[i-1]))
		for c := range key {
			key[c] = &keys[i-1][c]
		}
		out[i-1] = append(out[i-1], entry{key: key, hash: hash, n: 1})
		count++
		return nil
	})
	if err != nil {
		return nil, 0, n.failTable(t, "look keys up", err)
	}
	return out, count, nil
}

// lookupSQL returns the query that finds rows by arrays of key columns, $1 and on, as text. It yields
// the index of the key, from 1, and the row's hash.
func (t *table) lookupSQL(sd side) string {
	var params, names, conditions []string
	for i, k := range t.half[sd].key {
		name := fmt.Sprintf("ficus_k%d", i+1)
		params = append(params, fmt.Sprintf("$%d::text[]", i+1))
		names = append(names, name)
		// The key is the text of the source's type; see table.write for how it becomes the target's.
		conditions = append(conditions, k.is("ficus_keys."+name))
	}
	return fmt.Sprintf("SELECT ficus_keys.ficus_n, %s FROM unnest(%s) WITH ORDINALITY AS ficus_keys(%s, ficus_n) CROSS JOIN LATERAL (%s) AS r",
		t.half[sd].hash, strings.Join(params, ", "), strings.Join(names, ", "), t.query(sd, conditions...))
}

// compareWhole compares the tables that keys do not cover, as far as they are small enough.
func (s *Session) compareWhole(ctx context.Context, whole []*table, report *Report) error {
	if len(whole) == 0 {
		return nil
	}
	sizes, err := s.layouts(ctx, whole)
	if err != nil {
		return err
	}
	var small []*table
	var layouts [2][]layout
	for i, t := range whole {
		if rows := max(sizes[source][i].rows, sizes[target][i].rows); rows > s.cfg.WholeRows {
			why := "it was touched as a whole"
			if !t.keyed() {
				why = "it has no key"
			}
			report.Uncovered = append(report.Uncovered, fmt.Sprintf("%s: %s, and about %d rows are more than %d", t.name, why, rows, s.cfg.WholeRows))
			continue
		}
		small = append(small, t)
		for _, sd := range sides() {
			layouts[sd] = append(layouts[sd], sizes[sd][i])
		}
	}
	reports, err := s.compare(ctx, small, layouts, nil)
	if err != nil {
		return err
	}
	report.Tables = append(report.Tables, reports...)
	return nil
}
