package verify

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// A table is put into buckets of about bucketRows rows, at most maxBuckets.
const (
	bucketRows = 256
	maxBuckets = 1 << 16
)

// A drill finds the differing rows of one table, in three steps that each read less: sums by bucket
// of the key's hash, the rows of differing buckets merged in order of their key, the columns of
// some rows. A step that contradicts the one before ends it with an error.
type drill struct {
	s     *Session
	t     *table
	conns [2]*pgx.Conn // by side
}

// run compares the table down to its rows.
func (d *drill) run(ctx context.Context, src, dst *total, report *TableReport) error {
	mask := bucketMask(max(src.rows, dst.rows))
	var buckets []int64
	if mask > 0 {
		var err error
		if buckets, err = d.buckets(ctx, mask, [2]*total{src, dst}); err != nil {
			return err
		}
	}
	found, err := d.rows(ctx, mask, buckets)
	if err != nil {
		return err
	}
	if found.missing-found.extra != src.rows-dst.rows || found.total() == 0 {
		return fmt.Errorf("table %s: checksums differ (%d and %d rows), but rows do not: %d missing, %d extra, %d changed",
			d.t.name, src.rows, dst.rows, found.missing, found.extra, found.changed)
	}
	return d.finish(ctx, found, report)
}

// finish looks into the samples of what was found and writes the report.
func (d *drill) finish(ctx context.Context, found *findings, report *TableReport) error {
	report.Missing, report.Extra, report.Changed = found.missing, found.extra, found.changed
	report.Differences = found.total()
	if d.s.atRest {
		if err := d.standing(ctx, found.samples); err != nil {
			return err
		}
		for i := range found.samples {
			if found.samples[i].standing {
				report.Standing++
			}
		}
	}
	if d.s.cfg.Repairs > 0 && found.total() > 0 {
		var err error
		if report.repairs, err = d.repairs(ctx, found); err != nil {
			return err
		}
		found.samples = found.samples[:min(len(found.samples), d.s.cfg.MaxSamples)]
	}
	for i := range found.samples {
		sample, err := d.sample(ctx, &found.samples[i])
		if err != nil {
			return err
		}
		report.Samples = append(report.Samples, sample)
	}
	return nil
}

// standing looks which rows are on the source as they were when its snapshot was taken: they did not
// change while the target's was, so that the difference is no movement.
func (d *drill) standing(ctx context.Context, rows []found) error {
	var of []*found
	for i := range rows {
		if d.t.keyed() && rows[i].plainKey() != nil {
			of = append(of, &rows[i])
		}
	}
	n := d.s.nodes[source]
	n.using.Lock()
	defer n.using.Unlock()
	for chunk := range slices.Chunk(of, batchKeys) {
		keys := make([][]string, len(chunk))
		for i, f := range chunk {
			keys[i] = f.plainKey()
		}
		now, _, err := n.lookupKeys(ctx, n.control, d.t, keys)
		if err != nil {
			return err
		}
		for i, f := range chunk {
			f.standing = len(now[i]) == 0
			if f.kind != Extra {
				f.standing = slices.ContainsFunc(now[i], func(e entry) bool { return e.hash == f.hash[source] })
			}
		}
	}
	return nil
}

// bucketMask returns the mask that takes a bucket's number from a hash; 0 for a single bucket.
func bucketMask(rows int64) int64 {
	n := rows / bucketRows
	if n < 2 {
		return 0
	}
	return min(maxBuckets, int64(1)<<bits.Len64(uint64(n-1))) - 1
}

// buckets returns the buckets whose totals differ.
func (d *drill) buckets(ctx context.Context, mask int64, whole [2]*total) ([]int64, error) {
	var sums [2]map[int64]*total
	err := both(func(sd side) (err error) {
		sums[sd], err = d.bucketTotals(ctx, sd, mask, whole[sd])
		return err
	})
	if err != nil {
		return nil, err
	}
	var none total
	var differ []int64
	for b, src := range sums[source] {
		dst := sums[target][b]
		if dst == nil {
			dst = &none
		}
		if !src.equal(dst) {
			differ = append(differ, b)
		}
	}
	for b := range sums[target] {
		if sums[source][b] == nil {
			differ = append(differ, b)
		}
	}
	slices.Sort(differ)
	return differ, nil
}

// bucketTotals reads one side's sums and makes sure that they add up to the table's.
func (d *drill) bucketTotals(ctx context.Context, sd side, mask int64, whole *total) (map[int64]*total, error) {
	n, h := d.s.nodes[sd], &d.t.half[sd]
	sql := fmt.Sprintf("SELECT %s & %d, count(*), sum(%s)::text FROM (%s) AS r GROUP BY 1", h.keyHash, mask, h.hash, d.t.query(sd))
	rows, err := d.conns[sd].Query(ctx, sql, pgx.QueryExecModeExec)
	if err != nil {
		return nil, n.failTable(d.t, "read buckets", err)
	}
	sums := map[int64]*total{}
	var all total
	var bucket, count int64
	var sum string
	_, err = pgx.ForEachRow(rows, []any{&bucket, &count, &sum}, func() error {
		t := &total{rows: count}
		if _, ok := t.sum.SetString(sum, 10); !ok {
			return fmt.Errorf("sum of hashes is %q", sum)
		}
		sums[bucket] = t
		all.add(*t)
		return nil
	})
	if err == nil && !all.equal(whole) {
		err = errors.New("the buckets do not add up to the table")
	}
	if err != nil {
		return nil, n.failTable(d.t, "read buckets", err)
	}
	return sums, nil
}

// rows merges both sides' rows of the given buckets, or of all when mask is 0.
func (d *drill) rows(ctx context.Context, mask int64, buckets []int64) (*findings, error) {
	g, gctx := errgroup.WithContext(ctx)
	var streams [2]chan entry
	for _, sd := range sides() {
		streams[sd] = make(chan entry, 1024)
		g.Go(func() error {
			defer close(streams[sd]) // read as the end only when Wait found no error
			return d.stream(gctx, sd, mask, buckets, streams[sd])
		})
	}
	found := &findings{keyed: d.t.keyed(), limit: d.s.limit()}
	found.merge(streams[source], streams[target])
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return found, nil
}

// stream reads one side's rows in order of key hash and key, with how often each comes.
func (d *drill) stream(ctx context.Context, sd side, mask int64, buckets []int64, out chan<- entry) error {
	n, h := d.s.nodes[sd], &d.t.half[sd]
	condition := "true"
	if mask > 0 {
		condition = fmt.Sprintf("%s & %d = ANY ('{%s}'::int8[])", h.keyHash, mask, joinInts(buckets))
	}
	sql := fmt.Sprintf(`SELECT kh, k, h, count(*) FROM (SELECT %s AS kh, %s AS k, %s AS h FROM (%s) AS r WHERE %s) AS x
		GROUP BY kh, k, h ORDER BY kh, k COLLATE "C", h`, h.keyHash, h.keyText, h.hash, d.t.query(sd), condition)
	rows, err := d.conns[sd].Query(ctx, sql, pgx.QueryExecModeExec)
	if err != nil {
		return n.failTable(d.t, "read rows", err)
	}
	defer rows.Close()
	for rows.Next() {
		var e entry
		if err := rows.Scan(&e.keyHash, &e.key, &e.hash, &e.n); err != nil {
			return n.failTable(d.t, "read rows", err)
		}
		select {
		case out <- e:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := rows.Err(); err != nil {
		return n.failTable(d.t, "read rows", err)
	}
	return nil
}

func joinInts(list []int64) string {
	s := make([]string, len(list))
	for i, n := range list {
		s[i] = strconv.FormatInt(n, 10)
	}
	return strings.Join(s, ",")
}
