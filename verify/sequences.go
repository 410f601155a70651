package verify

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

// A SequenceReport says whether a sequence of the target is ahead of the source's: whether what it
// gives out next was never given out there.
type SequenceReport struct {
	Sequence schema.Name `json:"sequence"`
	Source   string      `json:"source"` // the next value; a number beyond 64 bits where it is used up
	Target   string      `json:"target"` // "" where the target does not have it
	Ahead    bool        `json:"ahead"`
}

// Sequences compares the sequences of Config.Sequences as they stand: sequences know no snapshots.
func (s *Session) Sequences(ctx context.Context) ([]SequenceReport, error) {
	var next [2]map[string]string
	ahead := map[string]bool{}
	err := both(func(sd side) (err error) {
		next[sd], err = s.nodes[sd].nextValues(ctx, s.wanted(sd))
		return err
	})
	if err != nil {
		return nil, err
	}
	var names, src, dst []string
	var increments []int64
	for _, q := range s.cfg.Sequences {
		n := q.Name.String()
		if next[source][n] == "" || next[target][n] == "" {
			continue
		}
		names, src, dst = append(names, n), append(src, next[source][n]), append(dst, next[target][n])
		increments = append(increments, q.Increment)
	}
	rows, err := s.nodes[target].control.Query(ctx, `SELECT n, CASE WHEN i > 0 THEN d::numeric >= s::numeric ELSE d::numeric <= s::numeric END
		FROM unnest($1::text[], $2::text[], $3::text[], $4::int8[]) AS u(n, s, d, i)`, names, src, dst, increments)
	if err != nil {
		return nil, s.nodes[target].fail("compare sequences", err)
	}
	var name string
	var is bool
	if _, err := pgx.ForEachRow(rows, []any{&name, &is}, func() error {
		ahead[name] = is
		return nil
	}); err != nil {
		return nil, s.nodes[target].fail("compare sequences", err)
	}
	moving := s.wanted(target).names
	out := make([]SequenceReport, 0, len(s.cfg.Sequences))
	for _, q := range s.cfg.Sequences {
		n := q.Name.String()
		if next[source][n] != "" && slices.Contains(moving, n) { // else it was dropped meanwhile
			out = append(out, SequenceReport{Sequence: q.Name, Source: next[source][n], Target: next[target][n], Ahead: ahead[n]})
		}
	}
	return out, nil
}

// A wanted sequence goes by its name, or by the column of a renamed table that it serves.
type wanted struct{ names, tables, columns []string }

func (s *Session) wanted(sd side) (w wanted) {
	for _, q := range s.cfg.Sequences {
		table, column := "", ""
		if m := s.renamed(q.OwnerTable); m != nil && sd == target {
			for _, c := range m.Columns {
				if c.Source == q.OwnerColumn {
					table, column = m.Target.String(), c.Target
				}
			}
			if column == "" { // the column does not move, nor does its sequence
				continue
			}
		}
		w.names, w.tables, w.columns = append(w.names, q.Name.String()), append(w.tables, table), append(w.columns, column)
	}
	return w
}

// renamed returns the mapping of a table that a rule reshapes, or nil.
func (s *Session) renamed(name *schema.Name) *transform.Mapping {
	for _, t := range s.tables {
		if name != nil && t.m.Source.Name == *name && t.m.Reshaped() {
			return t.m
		}
	}
	return nil
}

// nextValues reads what the sequences that exist here would give out next, by the source's names.
func (n *node) nextValues(ctx context.Context, w wanted) (map[string]string, error) {
	rows, err := n.control.Query(ctx, `SELECT w.n, s.seqrelid::regclass::text, s.seqincrement FROM unnest($1::text[], $2::text[], $3::text[]) AS w(n, t, c)
		JOIN pg_sequence s ON s.seqrelid = to_regclass(CASE WHEN t = '' THEN n ELSE pg_get_serial_sequence(t, c) END)`, w.names, w.tables, w.columns)
	if err != nil {
		return nil, n.fail("find sequences", err)
	}
	var queries []string
	var name, relation string
	var increment int64
	if _, err = pgx.ForEachRow(rows, []any{&name, &relation, &increment}, func() error {
		queries = append(queries, fmt.Sprintf("SELECT %s, (last_value + CASE WHEN is_called THEN %d::numeric ELSE 0 END)::text FROM %s",
			schema.QuoteLiteral(name), increment, relation))
		return nil
	}); err != nil {
		return nil, n.fail("find sequences", err)
	}
	out := map[string]string{}
	if len(queries) == 0 {
		return out, nil
	}
	rows, err = n.control.Query(ctx, strings.Join(queries, " UNION ALL "), pgx.QueryExecModeExec)
	if err != nil {
		return nil, n.fail("read sequences", err)
	}
	var next string
	if _, err = pgx.ForEachRow(rows, []any{&name, &next}, func() error {
		out[name] = next
		return nil
	}); err != nil {
		return nil, n.fail("read sequences", err)
	}
	return out, nil
}
