package fidelity

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ficus-migrate/ficus/schema"
)

// A kind is one type of column, with values that have given somebody trouble.
type kind struct {
	name   string // names its tables
	sql    string // as it is declared; default: name
	since  int    // the first version that has it; 0 for all
	setup  string // DDL that both sides need
	values []string
	later  map[int][]string // values that a version brought
	key    bool             // has an order, so it can be a primary key
	strict bool             // refuses NULL
	base   string           // what to cast to before SQL can compare; default: nothing
	brief  bool             // only the table with an integer key
}

// expression reports whether a value is not the text form but "= " and an SQL expression. These may be
// too large for a key.
func expression(value string) bool { return strings.HasPrefix(value, "= ") }

func (k *kind) literal(value string) string {
	if expr, ok := strings.CutPrefix(value, "= "); ok {
		return "(" + expr + ")::" + k.typ()
	}
	return schema.QuoteLiteral(value) + "::" + k.typ()
}

func (k *kind) typ() string {
	if k.sql != "" {
		return k.sql
	}
	return k.name
}

func (k *kind) cast() string {
	if k.base == "" {
		return ""
	}
	return "::" + k.base
}

// A sample is one value as SQL.
type sample struct {
	sql string
	key bool // can be in a key
}

// samples returns the values that every server from the given version on has.
func (k *kind) samples(major int) []sample {
	values := slices.Clone(k.values)
	for since, more := range k.later {
		if major >= since {
			values = append(values, more...)
		}
	}
	var list []sample
	for _, v := range values {
		list = append(list, sample{k.literal(v), k.key && !expression(v)})
	}
	if !k.strict {
		list = append(list, sample{"NULL", false})
	}
	return list
}

// large is text that no compression keeps in the row.
const large = `(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 150) AS i)`

// other is as large as large.
const other = `(SELECT string_agg(md5((-i)::text), '') FROM generate_series(1, 150) AS i)`

// ddl makes the tables of a kind: rows under an integer key beside a large neighbour, rows under a
// key of the kind, and rows without key.
func (k *kind) ddl() string {
	var b strings.Builder
	fmt.Fprintf(&b, `%s;
CREATE TABLE v_%[2]s (id int PRIMARY KEY, v %[3]s, big text, n int);
ALTER TABLE v_%[2]s ALTER big SET STORAGE EXTERNAL;
`, k.setup, k.name, k.typ())
	if k.brief {
		return b.String()
	}
	fmt.Fprintf(&b, "CREATE TABLE f_%s (v %s, n int);\nALTER TABLE f_%[1]s REPLICA IDENTITY FULL;\n", k.name, k.typ())
	if k.key {
		fmt.Fprintf(&b, "CREATE TABLE k_%s (k %s PRIMARY KEY, n int);\n", k.name, k.typ())
	}
	return b.String()
}

// rows returns what is there before the copy.
func (k *kind) rows(major int) string {
	var b strings.Builder
	values := k.samples(major)
	for i, v := range values {
		fmt.Fprintf(&b, "INSERT INTO v_%s VALUES (%d, %s, %s, 0);\n", k.name, i+1, v.sql, large)
		if k.brief {
			continue
		}
		fmt.Fprintf(&b, "INSERT INTO f_%s SELECT %s, %d FROM generate_series(1, 3);\n", k.name, v.sql, i)
		if v.key && i%2 == 0 {
			fmt.Fprintf(&b, "INSERT INTO k_%s VALUES (%s, %d) ON CONFLICT DO NOTHING;\n", k.name, v.sql, i)
		}
	}
	return b.String()
}

// changes returns what happens while the link follows, by transaction.
func (k *kind) changes(major int) []string {
	values := k.samples(major)
	next := func(i int) sample { return values[(i+1)%len(values)] }

	var rows, each, full, keys strings.Builder
	for i, v := range values {
		fmt.Fprintf(&rows, "INSERT INTO v_%s VALUES (%d, %s, %s, 0);\n", k.name, 100+i, v.sql, large)
		fmt.Fprintf(&rows, "INSERT INTO v_%s VALUES (%d, %s, %s, 0);\n", k.name, 200+i, v.sql, large)
		if !k.brief { // so many that they are inserted by COPY
			fmt.Fprintf(&rows, "INSERT INTO f_%s SELECT %s, %d FROM generate_series(1, 60);\n", k.name, v.sql, 1000+i)
		}
		fmt.Fprintf(&each, "UPDATE v_%s SET v = %s WHERE id IN (%d, %d);\n", k.name, next(i).sql, i+1, 100+i)

		one := fmt.Sprintf("(SELECT ctid FROM f_%s WHERE n = %d LIMIT 1)", k.name, i)
		fmt.Fprintf(&full, "DELETE FROM f_%s WHERE ctid = %s;\n", k.name, one)
		fmt.Fprintf(&full, "UPDATE f_%s SET n = n + 100 WHERE ctid = %s;\n", k.name, one)
		fmt.Fprintf(&full, "UPDATE f_%s SET v = %s WHERE ctid = %s;\n", k.name, next(i).sql, one)
		fmt.Fprintf(&full, "INSERT INTO f_%s VALUES (%s, %d), (%[2]s, %[3]d);\n", k.name, v.sql, i)
		if v.key {
			fmt.Fprintf(&keys, "INSERT INTO k_%s VALUES (%s, %d) ON CONFLICT DO NOTHING;\n", k.name, v.sql, 100+i)
			is := func(s sample) string { return "k" + k.cast() + " = " + s.sql + k.cast() }
			fmt.Fprintf(&keys, "UPDATE k_%s SET n = n + 1 WHERE %s;\n", k.name, is(v))
			if to := next(i); to.key {
				fmt.Fprintf(&keys, "DELETE FROM k_%s WHERE %s AND NOT %s;\n", k.name, is(to), is(v))
				fmt.Fprintf(&keys, "UPDATE k_%s SET k = %s WHERE %s;\n", k.name, to.sql, is(v))
			}
		}
	}
	fmt.Fprintf(&each, `
UPDATE v_%[1]s SET n = n + 1;
UPDATE v_%[1]s SET big = %[2]s WHERE id %% 2 = 0;
UPDATE v_%[1]s SET n = n + 1, v = %[3]s WHERE id %% 3 = 0;
UPDATE v_%[1]s SET big = NULL WHERE id %% 5 = 0;
`, k.name, other, values[0].sql)
	last := fmt.Sprintf(`
UPDATE v_%[1]s SET id = id + 1000 WHERE id >= 200;
UPDATE v_%[1]s SET n = NULL WHERE id = 1200;
DELETE FROM v_%[1]s WHERE id IN (2, 102, 1201);
UPDATE v_%[1]s SET id = -id WHERE id = 101;`, k.name)
	txns := []string{rows.String(), each.String(), last}
	if k.brief {
		return txns
	}
	txns = append(txns, full.String(), fmt.Sprintf("DELETE FROM f_%s WHERE n = 100", k.name))
	if k.key {
		txns = append(txns, keys.String())
	}
	return txns
}
