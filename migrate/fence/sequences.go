package fence

import (
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/schema"
)

// A Serial is a column whose values a sequence of its own gives: an identity or serial column.
type Serial struct {
	Table  schema.Name
	Column string
}

// A sequence as it stands: what nextval would return, and its bounds.
type sequence struct {
	name      string // as both sides know it
	relation  string // as this side calls it
	next      int64
	increment int64
	min, max  int64
}

// Sequences implements [migrate.Database].
func (d *Database) Sequences(ctx context.Context) ([]migrate.Sequence, error) {
	seqs, err := d.readSequences(ctx)
	if err != nil {
		return nil, d.wrap("read the sequences", err)
	}
	out := make([]migrate.Sequence, len(seqs))
	for i, s := range seqs {
		out[i] = migrate.Sequence{Name: s.name, Next: s.next}
	}
	return out, nil
}

// SetSequences implements [migrate.Database]. Sequences that this side does not have are left out:
// a rule may have replaced their table. It sets them in one statement whatever their number, which
// looks again where they stand: it may have been on its way for long, and the side given out values
// meanwhile.
func (d *Database) SetSequences(ctx context.Context, seqs []migrate.Sequence, headroom int64) error {
	have, err := d.readSequences(ctx)
	if err != nil {
		return d.wrap("read the sequences", err)
	}
	byName := make(map[string]sequence, len(have))
	for _, s := range have {
		byName[s.name] = s
	}
	var names []string
	var values []int64
	var now strings.Builder
	for _, want := range seqs {
		s, ok := byName[want.Name]
		if !ok {
			continue
		}
		next := clampedAdd(want.Next, s.increment, headroom, s.min, s.max)
		if s.increment > 0 && next > s.next || s.increment < 0 && next < s.next {
			names, values = append(names, s.relation), append(values, next)
			fmt.Fprintf(&now, " UNION ALL SELECT %s, last_value + CASE WHEN is_called THEN %d::numeric ELSE 0 END FROM %s",
				schema.QuoteLiteral(s.relation), s.increment, s.relation)
		}
	}
	if len(names) == 0 {
		return nil
	}
	_, err = d.pool.Exec(ctx, `SELECT setval(s.name::regclass, s.value, false) FROM unnest($1::text[], $2::bigint[]) s(name, value)
		JOIN (SELECT ''::text, 0::numeric`+now.String()+`) n(name, next) USING (name)
		JOIN pg_sequence q ON q.seqrelid = s.name::regclass
		WHERE CASE WHEN q.seqincrement > 0 THEN s.value > n.next ELSE s.value < n.next END`, names, values)
	return d.wrap("set the sequences", err)
}

// findSequences resolves names: the sequence that a Serial's column owns, else the one of that name.
const findSequences = `
	WITH wanted AS (
		SELECT n, coalesce((
			SELECT d.objid::regclass FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
				JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
			WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
				AND d.refobjid = to_regclass(nullif(t, '')) AND a.attname = col
			ORDER BY d.objid LIMIT 1), to_regclass(n)) AS relation
		FROM unnest($1::text[], $2::text[], $3::text[]) u(n, t, col))
	SELECT n, relation::text, s.seqincrement, s.seqmin, s.seqmax
	FROM wanted JOIN pg_sequence s ON s.seqrelid = relation ORDER BY 1`

// readSequences reads those of cfg.Sequences that exist, in one statement: pg_sequences hides the
// value of a sequence that was set but not called yet, so each relation is read itself.
func (d *Database) readSequences(ctx context.Context) ([]sequence, error) {
	scope := d.scope()
	names, tables, columns := make([]string, len(scope.Sequences)), make([]string, len(scope.Sequences)), make([]string, len(scope.Sequences))
	for i, n := range scope.Sequences {
		names[i] = n.String()
		if serial, ok := scope.Serials[n]; ok {
			tables[i], columns[i] = serial.Table.String(), serial.Column
		}
	}
	rows, err := d.pool.Query(ctx, findSequences, names, tables, columns)
	if err != nil {
		return nil, err
	}
	seqs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (sequence, error) {
		var s sequence
		err := row.Scan(&s.name, &s.relation, &s.increment, &s.min, &s.max)
		return s, err
	})
	if err != nil || len(seqs) == 0 {
		return nil, err
	}

	var union strings.Builder
	for i, s := range seqs {
		if i > 0 {
			union.WriteString(" UNION ALL ")
		}
		fmt.Fprintf(&union, "SELECT %s, last_value, is_called FROM %s", schema.QuoteLiteral(s.name), s.relation)
	}
	byName := make(map[string]*sequence, len(seqs))
	for i := range seqs {
		byName[seqs[i].name] = &seqs[i]
	}
	rows, err = d.pool.Query(ctx, union.String())
	if err != nil {
		return nil, err
	}
	var name string
	var last int64
	var called bool
	_, err = pgx.ForEachRow(rows, []any{&name, &last, &called}, func() error {
		s := byName[name]
		s.next = last
		if called {
			s.next = clampedAdd(last, s.increment, 1, s.min, s.max)
		}
		return nil
	})
	return seqs, err
}

// clampedAdd returns from + step*times, kept within [lo, hi] and without overflow.
func clampedAdd(from, step, times, lo, hi int64) int64 {
	f := float64(from) + float64(step)*float64(times)
	switch {
	case f >= math.MaxInt64 || f >= float64(hi) && step > 0:
		return hi
	case f <= math.MinInt64 || f <= float64(lo) && step < 0:
		return lo
	}
	return from + step*times
}
