package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
)

// A Repair makes one row of the target what it is on the source. Its SQL changes exactly one row, and
// none if the row is no longer what it was when it was compared. A row whose new unique value another row
// may still have is taken away, and put back by After.
type Repair struct {
	Table schema.Name
	Kind  Change
	Key   string
	SQL   string
	After string // to be run once all SQL was; "" for nothing

	key []string // nil without one
}

// order sorts the repairs of a table: rows that go make place first, those that come are last.
func (r *Repair) order() int {
	switch {
	case r.Kind == Extra, r.After != "":
		return 0
	case r.Kind == Missing:
		return 2
	}
	return 1
}

// repairSettings make texts in repairs mean what they meant to the sessions that read them.
const repairSettings = "SET LOCAL search_path = ''; SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL IntervalStyle = 'postgres'; " +
	"SET LOCAL extra_float_digits = 3; SET LOCAL bytea_output = 'hex'; SET LOCAL lc_monetary = 'C'; SET LOCAL session_replication_role = replica"

// repairs writes the SQL that mends what was found in one table, in the snapshots it was found in.
func (d *drill) repairs(ctx context.Context, found *findings) ([]Repair, error) {
	if int64(len(found.samples)) < found.entries {
		return nil, hint.Wrap(fmt.Errorf("table %s: %d rows differ, more than the %d that are mended", d.t.name, found.entries, found.limit),
			"copy the table anew (ficus resync), or raise the limit")
	}
	var values [2]map[int]row
	for _, sd := range sides() {
		var err error
		if values[sd], err = d.rowValues(ctx, sd, found.samples); err != nil {
			return nil, err
		}
	}
	unique, err := d.uniqueColumns(ctx)
	if err != nil {
		return nil, err
	}
	var out []Repair
	for i := range found.samples {
		f := &found.samples[i]
		if d.s.atRest && !f.standing {
			continue // it may have been on its way
		}
		r := Repair{Table: d.t.m.Source.Name, Kind: f.kind, Key: d.t.keyText(f.key)}
		if d.t.keyed() {
			r.key = f.plainKey()
		}
		r.SQL, r.After = d.t.repairSQL(f, values[source][i], values[target][i], unique)
		for range max(1, f.n) {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b Repair) int { return cmp.Compare(a.order(), b.order()) })
	return out, nil
}

// uniqueColumns returns whether a unique or exclusion constraint of the target may look at a column. Where the
// target has columns that are not compared it says never: a row that was taken away would lose them.
func (d *drill) uniqueColumns(ctx context.Context) (func(column string) bool, error) {
	var constrained, all []string
	err := d.conns[target].QueryRow(ctx, `
		SELECT ARRAY(
			SELECT DISTINCT CASE WHEN k = 0 OR i.indpred IS NOT NULL THEN '' ELSE a.attname END
			FROM pg_catalog.pg_index i CROSS JOIN unnest(i.indkey) AS k LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k
			WHERE (i.indisunique OR i.indisexclusion)
				AND (i.indrelid = $1::regclass OR i.indrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree($1::regclass)))
		)::text[], ARRAY(
			SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
		)::text[]`, pgx.QueryExecModeExec, d.t.m.Target.String()).Scan(&constrained, &all)
	if err != nil {
		return nil, d.s.nodes[target].failTable(d.t, "look for unique columns", err)
	}
	compared := d.t.m.TargetColumns()
	if slices.ContainsFunc(all, func(c string) bool { return !slices.Contains(compared, c) }) {
		return func(string) bool { return false }, nil
	}
	every := slices.Contains(constrained, "") // an expression, or a condition
	return func(column string) bool { return every || slices.Contains(constrained, column) }, nil
}

// A row is the text of its columns, and of all of them together.
type row struct {
	columns []*string
	whole   string
}

// rowValues reads the rows of what was found, by its index, as far as one side has them.
func (d *drill) rowValues(ctx context.Context, sd side, found []found) (map[int]row, error) {
	out := map[int]row{}
	byHash := map[int64][]int{} // of rows without a key
	var hashes []int64
	for i := range found {
		f := &found[i]
		switch {
		case f.kind == Missing && sd == target, f.kind == Extra && sd == source:
		case f.key == nil:
			byHash[f.hash[sd]] = append(byHash[f.hash[sd]], i)
			hashes = append(hashes, f.hash[sd])
		default:
			err := d.readRows(ctx, sd, d.t.lookup(sd, "*", f, true), func(hash int64, r row) {
				if hash == f.hash[sd] { // the key may not be unique here
					out[i] = r
				}
			})
			if err == nil && out[i].columns == nil {
				err = d.s.nodes[sd].failTable(d.t, "read row "+d.t.keyText(f.key), errors.New("it was there a moment ago, in the same snapshot"))
			}
			if err != nil {
				return nil, err
			}
		}
	}
	if len(hashes) == 0 {
		return out, nil
	}
	query := fmt.Sprintf("SELECT * FROM (%s) AS r WHERE %s = ANY ('{%s}'::int8[])", d.t.query(sd), d.t.half[sd].hash, joinInts(hashes))
	err := d.readRows(ctx, sd, query, func(hash int64, r row) {
		for _, i := range byHash[hash] {
			out[i] = r
		}
	})
	return out, err
}

func (d *drill) readRows(ctx context.Context, sd side, query string, fn func(hash int64, r row)) error {
	n, h := d.s.nodes[sd], &d.t.half[sd]
	texts := make([]string, len(h.columns))
	for i, c := range h.columns {
		if texts[i] = c.expr + "::text"; c.oid == pgtype.BPCharOID { // the cast takes blanks away
			texts[i] = "textin(bpcharout(" + c.expr + "))"
		}
	}
	sql := fmt.Sprintf("SELECT %s, ARRAY[%s]::text[], %s FROM (%s) AS r", h.hash, strings.Join(texts, ", "), wholeText(h.columns), query)
	rows, err := d.conns[sd].Query(ctx, sql, pgx.QueryExecModeExec)
	if err != nil {
		return n.failTable(d.t, "read rows to mend", err)
	}
	var hash int64
	var r row
	if _, err = pgx.ForEachRow(rows, []any{&hash, &r.columns, &r.whole}, func() error {
		fn(hash, r)
		r.columns = nil
		return nil
	}); err != nil {
		return n.failTable(d.t, "read rows to mend", err)
	}
	return nil
}

// wholeText returns the SQL of a row's text.
func wholeText(columns []field) string {
	exprs := make([]string, len(columns))
	for i, c := range columns {
		exprs[i] = c.expr
	}
	return "ROW(" + strings.Join(exprs, ", ") + ")::text"
}

// repairSQL returns the statement that mends one row, and, of a row that gets the value of a unique column,
// the one that puts it back.
func (t *table) repairSQL(f *found, src, dst row, unique func(column string) bool) (sql, after string) {
	if f.kind == Missing {
		return t.insertSQL(src), ""
	}
	where := make([]string, 0, len(f.key)+1)
	for i := range f.key {
		k := &t.half[target].key[i]
		if v := f.key[i]; v == nil {
			where = append(where, "r."+schema.QuoteIdent(k.column)+" IS NULL")
		} else {
			where = append(where, k.is(literal(dst.columns[t.position(k.column)])+"::text")) // finds it by index
		}
	}
	where = append(where, wholeText(t.half[target].columns)+" = "+schema.QuoteLiteral(dst.whole))
	// One row alone, although the target may have it several times.
	one := fmt.Sprintf("(r.tableoid, r.ctid) = (SELECT r.tableoid, r.ctid FROM %s AS r WHERE %s LIMIT 1)", t.m.TargetFrom(), strings.Join(where, " AND "))
	remove := fmt.Sprintf("DELETE FROM %s AS r WHERE %s", t.m.TargetFrom(), one)
	if f.kind == Extra {
		return remove, ""
	}
	var set []string
	for i, c := range t.m.TargetColumns() {
		if s, d := src.columns[i], dst.columns[i]; (s == nil) != (d == nil) || s != nil && *s != *d {
			if unique(c) {
				return remove, t.insertSQL(src)
			}
			set = append(set, schema.QuoteIdent(c)+" = "+literal(s))
		}
	}
	return fmt.Sprintf("UPDATE %s AS r SET %s WHERE %s", t.m.TargetFrom(), strings.Join(set, ", "), one), ""
}

// insertSQL returns the statement that adds a row of the source.
func (t *table) insertSQL(src row) string {
	columns := t.m.TargetColumns()
	if len(columns) == 0 {
		return "INSERT INTO " + t.m.Target.String() + " DEFAULT VALUES"
	}
	values := make([]string, len(columns))
	for i := range columns {
		values[i] = literal(src.columns[i])
	}
	return fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE VALUES (%s)", t.m.Target, schema.QuoteIdents(columns), strings.Join(values, ", "))
}

func (t *table) position(targetColumn string) int {
	for i, c := range t.m.Columns {
		if c.Target == targetColumn {
			return i
		}
	}
	return -1
}

func literal(v *string) string {
	if v == nil {
		return "NULL"
	}
	return schema.QuoteLiteral(*v)
}

// WriteRepairs writes the repairs of a report as a script for psql. It holds values of rows.
func (r *Report) WriteRepairs(w io.Writer) error {
	out := &printer{w: w}
	out.printf("-- makes %s what %s was at %s, %s\n", r.Target.DSN, r.Source.DSN, r.LSN, r.At.UTC().Format(time.RFC3339))
	out.printf("-- each statement changes one row, or none if the row is no longer what it was\n")
	out.printf("BEGIN;\n%s;\n", repairSettings)
	for i := range r.Repairs {
		p := &r.Repairs[i]
		out.printf("-- %s: %s %s\n%s;\n", p.Table.Display(), p.Kind, strings.ReplaceAll(p.Key, "\n", " "), p.SQL)
	}
	for i := range r.Repairs {
		if p := &r.Repairs[i]; p.After != "" {
			out.printf("-- %s: back again %s\n%s;\n", p.Table.Display(), strings.ReplaceAll(p.Key, "\n", " "), p.After)
		}
	}
	out.printf("COMMIT;\n")
	return out.err
}
