package verify

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Rows that only differ in what a chain of hashes might lose: NULL for the value that stands in for
// it, in each column and in several, values that move between columns or rows, and NULL where the
// source says NOT NULL. Breaks that this catches: leaving out the bits for NULL, giving two columns
// one bit, dropping coalesce around a strict chain, not seeding with all of a bigint, columns that are not
// tied to one another, rows that are not tied to their key.
func TestChainLosesNothing(t *testing.T) {
	t.Parallel()
	zero := []struct{ typ, zero, one string }{
		{"bool", "false", "true"},
		{`"char"`, "''", "'a'"},
		{"int2", "0", "1"},
		{"int4", "0", "1"},
		{"int8", "0", "4294967297"},
		{"oid", "0", "1"},
		{"uuid", "'00000000-0000-0000-0000-000000000000'", "'00000000-0000-0000-0000-000000000001'"},
		{"text", "''", "'a'"},
		{"varchar(5)", "''", "'a'"},
		{"name", "''", "'a'"},
		{"bpchar(3)", "''", "'a'"},
		{"timestamptz", "'2000-01-01 00:00+00'", "'2000-01-02 00:00+00'"},
		{"bytea", "''", "'a'"},
	}
	var columns, zeroes []string
	for i, c := range zero {
		columns = append(columns, fmt.Sprintf("v%d %s", i, c.typ))
		zeroes = append(zeroes, c.zero)
	}
	create := fmt.Sprintf("CREATE TABLE a (id int PRIMARY KEY, n int NOT NULL, %s); CREATE TABLE b (x int8, y int8); CREATE TABLE c (x timestamp, y timestamp); CREATE TABLE d (x timestamp, y timestamp); CREATE TABLE e (k timestamp PRIMARY KEY, y timestamp);",
		strings.Join(columns, ", "))
	src, dst := pair(t, create)
	fill := fmt.Sprintf("INSERT INTO a SELECT i, 0, %s FROM generate_series(0, %d) i;", strings.Join(zeroes, ", "), 3*len(zero)+3)
	fill += "INSERT INTO b VALUES (1, 2), (3, 4), (NULL, 0), (5, NULL), (6, 7); INSERT INTO c VALUES ('2001-01-01', '2002-01-01'), ('2003-01-01', '2004-01-01'), (NULL, '2005-01-01'), ('2006-01-01', NULL); INSERT INTO d VALUES ('2001-01-01', '2002-01-01'), ('2003-01-01', '2004-01-01'); INSERT INTO e SELECT * FROM d;"
	src.Exec(t, fill)
	dst.Exec(t, fill)
	cfg := config(t, src, dst)
	if r := run(t, cfg); r.Differences != 0 {
		t.Fatalf("before: %d differences", r.Differences)
	}

	var want []string
	for i, c := range zero {
		dst.Exec(t, fmt.Sprintf("UPDATE a SET v%d = NULL WHERE id = %[1]d; UPDATE a SET v%[1]d = %s WHERE id = %d", i, c.one, len(zero)+i))
		want = append(want, fmt.Sprintf("id=%d [v%d]", i, i), fmt.Sprintf("id=%d [v%d]", len(zero)+i, i))
	}
	last := 2 * len(zero)
	dst.Exec(t, fmt.Sprintf("ALTER TABLE a ALTER n DROP NOT NULL; UPDATE a SET n = NULL WHERE id IN (%d, %d); UPDATE a SET v2 = NULL, v3 = NULL WHERE id = %d", last, last+1, last+2))
	src.Exec(t, fmt.Sprintf("UPDATE a SET v3 = NULL, v4 = NULL WHERE id = %d", last+2))
	want = append(want, fmt.Sprintf("id=%d [n]", last), fmt.Sprintf("id=%d [n]", last+1), fmt.Sprintf("id=%d [v2 v4]", last+2))
	for i := range zero[1:] { // NULL in one column or the other: two bits, not one
		id := last + 3 + i
		src.Exec(t, fmt.Sprintf("UPDATE a SET v%d = NULL WHERE id = %d", i, id))
		dst.Exec(t, fmt.Sprintf("UPDATE a SET v%d = NULL WHERE id = %d", i+1, id))
		want = append(want, fmt.Sprintf("id=%d [v%d v%d]", id, i, i+1))
	}
	dst.Exec(t, "UPDATE b SET x = 4 - x WHERE x IN (1, 3); UPDATE b SET x = y, y = x WHERE y IS NULL OR x = 6; UPDATE c SET x = CASE WHEN x = '2001-01-01' THEN '2003-01-01'::timestamp ELSE '2001-01-01' END WHERE x < '2004-01-01'; UPDATE c SET x = y, y = x WHERE y IS NULL")
	dst.Exec(t, "UPDATE d SET y = '2006-01-01'::timestamp - (y - '2000-01-01'); UPDATE e SET y = '2006-01-01'::timestamp - (y - '2000-01-01')")

	cfg.MaxSamples = 100
	for _, m := range []Method{MethodRecord, MethodText} {
		r := runWith(t, cfg, m)
		got := map[string]bool{}
		for _, s := range r.table(t, "a").Samples {
			got[fmt.Sprintf("%s %v", s.Key, s.Columns)] = true
		}
		wanted := map[string]bool{}
		for _, w := range want {
			wanted[w] = true
		}
		if diff := cmp.Diff(wanted, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", m, diff)
		}
		for name, want := range map[string]string{"b": "4 4 0", "c": "3 3 0", "d": "2 2 0", "e": "0 0 2"} {
			tr := r.table(t, name)
			if got := fmt.Sprintf("%d %d %d", tr.Missing, tr.Extra, tr.Changed); got != want {
				t.Errorf("%s, table %s: %s missing, extra and changed, want %s", m, name, got, want)
			}
		}
	}
}
