package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/schema"
)

// maxValue is how many characters of a value a sample shows.
const maxValue = 200

// sample describes one differing row, with its differing columns when both sides have it.
func (d *drill) sample(ctx context.Context, f *found) (Difference, error) {
	out := Difference{Kind: f.kind, Key: d.t.keyText(f.key), Standing: f.standing}
	if err := d.writer(ctx, f, &out); err != nil {
		return Difference{}, err
	}
	columns := "*"
	if f.kind == Changed {
		differ, err := d.columns(ctx, f, &out)
		if err != nil {
			return Difference{}, err
		}
		columns = schema.QuoteIdents(differ)
		out.Columns = differ
	}
	for _, sd := range sides() {
		sql := d.t.lookup(sd, columns, f, d.t.keyed())
		if sd == source {
			out.SourceSQL = sql
		} else {
			out.TargetSQL = sql
		}
	}
	return out, nil
}

// keyText returns the key as people read it, "id=5" or "a=1, b=x"; "" without a key.
func (t *table) keyText(key []*string) string {
	parts := make([]string, len(key))
	for i, v := range key {
		text := "NULL"
		if v != nil {
			text = *v
		}
		parts[i] = t.m.Key[i].Source + "=" + text
	}
	return strings.Join(parts, ", ")
}

// lookup returns the SQL that finds a row on one side: by key, or by its hash.
func (t *table) lookup(sd side, columns string, f *found, byKey bool) string {
	if !byKey {
		hash := f.hash[source]
		if f.kind == Extra {
			hash = f.hash[target]
		}
		return fmt.Sprintf("SELECT %s FROM (%s) AS r WHERE %s = '%d'::int8", columns, t.query(sd), t.half[sd].hash, hash)
	}
	var inner, outer []string
	for i, k := range t.half[sd].key {
		switch v := f.key[i]; {
		case v == nil:
			inner = append(inner, schema.QuoteIdent(k.column)+" IS NULL")
		case k.cast: // the text is that of another type
			outer = append(outer, k.expr+"::text = "+schema.QuoteLiteral(*v))
		default:
			inner = append(inner, k.is(schema.QuoteLiteral(*v)+"::text"))
		}
	}
	sql := fmt.Sprintf("SELECT %s FROM (%s) AS r", columns, t.query(sd, inner...))
	if len(outer) > 0 {
		sql += " WHERE " + strings.Join(outer, " AND ")
	}
	return sql
}

// columns returns the names of the target columns in which the two rows differ.
func (d *drill) columns(ctx context.Context, f *found, out *Difference) ([]string, error) {
	var hashes [2][]int64
	var values [2][]*string
	err := both(func(sd side) (err error) {
		hashes[sd], values[sd], err = d.columnHashes(ctx, sd, f)
		return err
	})
	if err != nil {
		return nil, err
	}
	var differ []string
	for i, c := range d.t.m.Columns {
		if hashes[source][i] == hashes[target][i] {
			continue
		}
		differ = append(differ, c.Target)
		out.Values = append(out.Values, Value{Column: c.Target, Source: values[source][i], Target: values[target][i]})
	}
	if len(differ) == 0 {
		return nil, fmt.Errorf("table %s: row %s differs, but none of its columns does", d.t.name, out.Key)
	}
	return differ, nil
}

// columnHashes reads the hashes of one row's columns and the beginnings of its values, or how long they are.
func (d *drill) columnHashes(ctx context.Context, sd side, f *found) (hashes []int64, values []*string, err error) {
	n, h := d.s.nodes[sd], &d.t.half[sd]
	hashList, valueList := make([]string, len(h.columns)), make([]string, len(h.columns))
	for i, c := range h.columns {
		hashList[i] = d.t.hash.column(c)
		if valueList[i] = fmt.Sprintf("left(%s::text, %d)", c.expr, maxValue); !d.s.cfg.ShowValues {
			valueList[i] = fmt.Sprintf("length(%s::text)::text || ' characters, masked'", c.expr)
		}
	}
	sql := fmt.Sprintf("SELECT ARRAY[%s]::int8[], ARRAY[%s]::text[], %s FROM (%s) AS r",
		strings.Join(hashList, ", "), strings.Join(valueList, ", "), h.hash, d.t.lookup(sd, "*", f, true))
	rows, err := d.conns[sd].Query(ctx, sql, pgx.QueryExecModeExec)
	if err != nil {
		return nil, nil, n.failTable(d.t, "read row "+d.t.keyText(f.key), err)
	}
	var candidate []int64
	var texts []*string
	var hash int64
	_, err = pgx.ForEachRow(rows, []any{&candidate, &texts, &hash}, func() error {
		if hash == f.hash[sd] { // the key may not be unique here
			hashes, values = candidate, texts
		}
		candidate, texts = nil, nil
		return nil
	})
	if err == nil && hashes == nil {
		err = errors.New("it was there a moment ago, in the same snapshot")
	}
	if err != nil {
		return nil, nil, n.failTable(d.t, "read row "+d.t.keyText(f.key), err)
	}
	return hashes, values, nil
}
