package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/schema"
)

// LiveConfig holds what Live needs. Fields without a stated default are required.
type LiveConfig struct {
	Config // with a Follower

	// Applied returns up to where the target has what the source committed.
	Applied func() change.LSN
	// Share is the part of the time that is spent reading; the rest is left to others. A busy server
	// answers later, and is asked less often for it. Default 0.05.
	Share float64
	// PageRows is how many rows one query reads. Default 1000.
	PageRows int
	// Rest is how long it rests between two passes. Default 10 minutes.
	Rest time.Duration
	// Passed is called after each pass over all tables. Default: nothing.
	Passed func(Pass)
	// Differ is called with each proof of a difference: a comparison of suspicious rows at one
	// instant.
	Differ func(*Report)
}

// A Pass sums up one look at every row.
type Pass struct {
	Number    int           `json:"number"`
	Started   time.Time     `json:"started"`
	Took      time.Duration `json:"took_ns"`
	Rows      int64         `json:"rows"`      // read on both sides together
	Suspects  int64         `json:"suspects"`  // differed at first sight
	Confirmed int64         `json:"confirmed"` // differ
	// Uncovered names tables that were not compared, with the reason.
	Uncovered []string `json:"uncovered,omitempty"`
}

// maxSuspects is how many rows are held for a second look at a time.
const maxSuspects = 10_000

// Live compares a follower with its source for as long as ctx lasts, page by page, with no snapshot
// that is held. Rows that differ at first sight are looked at again when the target has passed the
// source's present; those that still differ, while the source's row stood still, are compared at one
// instant, as Exact does it. Only what differs there is told, so that there is no false alarm.
func Live(ctx context.Context, cfg LiveConfig) error {
	cfg.Share = cmp.Or(cfg.Share, 0.05)
	cfg.PageRows = cmp.Or(cfg.PageRows, 1000)
	cfg.Rest = cmp.Or(cfg.Rest, 10*time.Minute)
	cfg.Workers = 1
	if cfg.Follower == nil || cfg.Applied == nil || cfg.Differ == nil {
		return errors.New("verify live: Follower, Applied and Differ are required")
	}
	s, err := Open(ctx, cfg.Config)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:contextcheck // it says goodbye although ctx is done
	l := &live{s: s, cfg: cfg}
	for n := 1; ; n++ {
		l.pass = Pass{Number: n, Started: time.Now()}
		if err := l.once(ctx); err != nil {
			return err
		}
		l.pass.Took = time.Since(l.pass.Started)
		s.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "every row looked at", slog.Int("pass", n), slog.Int64("rows", l.pass.Rows),
			slog.Int64("suspects", l.pass.Suspects), slog.Int64("differences", l.pass.Confirmed), slog.Duration("elapsed", l.pass.Took))
		if cfg.Passed != nil {
			cfg.Passed(l.pass)
		}
		if err := pause(ctx, cfg.Rest); err != nil {
			return err
		}
	}
}

// A live comparison.
type live struct {
	s    *Session
	cfg  LiveConfig
	pass Pass
}

// once looks at every row of both sides.
func (l *live) once(ctx context.Context) error {
	var whole []*table
	for _, t := range l.s.tables {
		if !t.pageable() {
			whole = append(whole, t)
			continue
		}
		for _, sd := range sides() { // the target's, too: it may have more
			if err := l.table(ctx, t, sd); err != nil {
				return err
			}
		}
	}
	if len(whole) == 0 {
		return nil
	}
	return l.prove(ctx, func(name schema.Name, yield func(key []string) error) error {
		for _, t := range whole {
			if t.m.Source.Name == name {
				return yield(nil)
			}
		}
		return nil
	})
}

// pageable reports whether the table can be read in order of its key with nothing but what every
// database has: operators of types of extensions are not found without their schema.
func (t *table) pageable() bool {
	for _, sd := range sides() {
		for _, k := range t.half[sd].key {
			if k.cast || k.typ.equal != "OPERATOR(pg_catalog.=)" || k.typ.input != "" {
				return false
			}
		}
	}
	return t.keyed()
}

// table reads one side in pages, and looks each page's keys up on the other.
func (l *live) table(ctx context.Context, t *table, sd side) error {
	var after, suspects [][]string
	for {
		began := time.Now()
		page, err := l.page(ctx, t, sd, after)
		if err != nil {
			return err
		}
		keys := make([][]string, 0, len(page))
		for i := range page {
			if key := (&found{key: page[i].key}).plainKey(); key != nil {
				keys = append(keys, key)
			} else { // NULL in the target's key: nothing to look it up by
				return l.prove(ctx, touchedWhole(t))
			}
		}
		other, count, err := l.lookup(ctx, t, sd.other(), keys)
		if err != nil {
			return err
		}
		l.pass.Rows += int64(len(page)) + count
		for i, e := range page {
			if !slices.ContainsFunc(other[i], func(o entry) bool { return o.hash == e.hash }) || len(other[i]) != 1 {
				suspects = append(suspects, keys[i])
			}
		}
		last := len(page) < l.cfg.PageRows
		if last || len(suspects) >= maxSuspects {
			if err := l.suspect(ctx, t, suspects); err != nil {
				return err
			}
			suspects = suspects[:0]
		}
		if last {
			return nil
		}
		after = keys[len(keys)-1:]
		if err := pause(ctx, time.Duration(float64(time.Since(began))*(1/l.cfg.Share-1))); err != nil {
			return err
		}
	}
}

// page reads the next rows in order of the key.
func (l *live) page(ctx context.Context, t *table, sd side, after [][]string) ([]entry, error) {
	n, h := l.s.nodes[sd], &t.half[sd]
	from := t.m.Source.Name.String()
	if sd == target {
		from = t.m.Target.String()
	}
	columns := make([]string, len(h.key)) // qualified: a name alone would be the target's column
	for i, k := range h.key {
		columns[i] = from + "." + schema.QuoteIdent(k.column)
	}
	var conditions []string
	if len(after) > 0 {
		values := make([]string, len(h.key))
		for i, k := range h.key {
			values[i] = schema.QuoteLiteral(after[0][i]) + "::text::" + k.typ.name
		}
		conditions = []string{fmt.Sprintf("(%s) > (%s)", strings.Join(columns, ", "), strings.Join(values, ", "))}
	}
	sql := fmt.Sprintf("SELECT %s, %s FROM (%s ORDER BY %s LIMIT %d) AS r", h.keyText, h.hash, t.query(sd, conditions...), strings.Join(columns, ", "), l.cfg.PageRows)
	n.using.Lock()
	defer n.using.Unlock()
	rows, err := n.control.Query(ctx, sql, pgx.QueryExecModeExec)
	if err != nil {
		return nil, n.failTable(t, "read a page", err)
	}
	var page []entry
	var e entry
	if _, err := pgx.ForEachRow(rows, []any{&e.key, &e.hash}, func() error {
		page = append(page, e)
		e.key = nil
		return nil
	}); err != nil {
		return nil, n.failTable(t, "read a page", err)
	}
	return page, nil
}

func (l *live) lookup(ctx context.Context, t *table, sd side, keys [][]string) ([][]entry, int64, error) {
	n := l.s.nodes[sd]
	n.using.Lock()
	defer n.using.Unlock()
	return n.lookupKeys(ctx, n.control, t, keys)
}

// suspect looks at rows again when the target has passed the source's present, and proves what still
// differs while the source's row stands still.
func (l *live) suspect(ctx context.Context, t *table, keys [][]string) error {
	l.pass.Suspects += int64(len(keys))
	var left [][]string
	for chunk := range slices.Chunk(keys, batchKeys) {
		before, _, err := l.lookup(ctx, t, source, chunk)
		if err != nil {
			return err
		}
		if err := l.awaitPresent(ctx); err != nil {
			return err
		}
		there, _, err := l.lookup(ctx, t, target, chunk)
		if err != nil {
			return err
		}
		after, _, err := l.lookup(ctx, t, source, chunk)
		if err != nil {
			return err
		}
		for i, key := range chunk {
			if sameRows(before[i], after[i]) && !sameRows(after[i], there[i]) {
				left = append(left, key)
			}
		}
	}
	if len(left) == 0 {
		return nil
	}
	return l.prove(ctx, func(name schema.Name, yield func(key []string) error) error {
		if name != t.m.Source.Name {
			return nil
		}
		for _, key := range left {
			if err := yield(key); err != nil {
				return err
			}
		}
		return nil
	})
}

// sameRows compares the rows of one key as a multiset.
func sameRows(a, b []entry) bool {
	hashes := func(list []entry) []int64 {
		out := make([]int64, len(list))
		for i, e := range list {
			out[i] = e.hash
		}
		slices.Sort(out)
		return out
	}
	return slices.Equal(hashes(a), hashes(b))
}

// awaitPresent waits until the target has what the source committed until now.
func (l *live) awaitPresent(ctx context.Context) error {
	n := l.s.nodes[source]
	n.using.Lock()
	var text string
	err := n.control.QueryRow(ctx, "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END::text").Scan(&text)
	n.using.Unlock()
	if err != nil {
		return n.fail("read position", err)
	}
	now, err := change.ParseLSN(text)
	if err != nil {
		return err
	}
	// A source that stands still moves the target nowhere: what is proved later settles it.
	const patience, every = 10 * time.Second, 50 * time.Millisecond
	for until := time.Now().Add(patience); l.cfg.Applied() < now && time.Now().Before(until); {
		if err := pause(ctx, every); err != nil {
			return err
		}
	}
	return nil
}

// prove compares rows at one instant and tells what differs.
func (l *live) prove(ctx context.Context, keys Keys) error {
	report, err := l.s.Delta(ctx, keys)
	if err != nil {
		return err
	}
	for _, u := range report.Uncovered {
		if !slices.Contains(l.pass.Uncovered, u) {
			l.pass.Uncovered = append(l.pass.Uncovered, u)
		}
	}
	l.pass.Confirmed += report.Differences
	l.pass.Rows += report.Rows + report.TargetRows
	if report.Differences > 0 {
		l.cfg.Differ(report)
	}
	return nil
}

// touchedWhole is the whole table, as Keys.
func touchedWhole(t *table) Keys {
	return func(name schema.Name, yield func(key []string) error) error {
		if name != t.m.Source.Name {
			return nil
		}
		return yield(nil)
	}
}

func (s side) other() side { return 1 - s }

// pause waits, or returns why ctx is done.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
