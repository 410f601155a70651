package verify

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// A corruption is one way in which a target may be wrong. The table c has rows with ids 1 to 3,
// each with the same value v in column v unless make says otherwise.
type corruption struct {
	name string
	typ  string // of column v
	v    string // SQL value on both sides
	bad  string // SQL value of row 2 on the target
	same bool   // equal on purpose
}

// corruptions are of single values. Those marked "trap" have equal hashes in PostgreSQL's own hash
// functions, or are equal to its = operator.
var corruptions = []corruption{
	{name: "bit of bytea", typ: "bytea", v: `'\x00ff00'`, bad: `'\x00fe00'`},
	{name: "null for empty", typ: "text", v: "''", bad: "NULL"},
	{name: "empty for null", typ: "text", v: "NULL", bad: "''"},
	{name: "word null", typ: "text", v: "NULL", bad: "'NULL'"},
	{name: "trailing blank", typ: "text", v: "'a'", bad: "'a '"},
	{name: "trailing blank, bpchar trap", typ: "bpchar", v: "'a'", bad: "'a '"},
	{name: "trailing blank, varchar", typ: "varchar(9)", v: "'a'", bad: "'a '"},
	{name: "char", typ: "char(4)", v: "'a'", bad: "'b'"},
	{name: "letter case", typ: "text", v: "'straße'", bad: "'Straße'"},
	{name: "unicode form", typ: "text", v: "U&'\\00e9'", bad: "U&'e\\0301'"},
	{name: "long text", typ: "text", v: "repeat('x', 100000)", bad: "repeat('x', 99999) || 'y'"},
	{name: "boolean", typ: "bool", v: "true", bad: "false"},
	{name: "false for null", typ: "bool", v: "NULL", bad: "false"},
	{name: "smallint", typ: "int2", v: "1", bad: "-1"},
	{name: "int", typ: "int", v: "0", bad: "-2147483648"},
	{name: "zero for null", typ: "int", v: "NULL", bad: "0"},
	{name: "unsigned bigint, hash trap", typ: "int8", v: "-1", bad: "4294967295"},
	{name: "folded bigint, hash trap", typ: "int8", v: "0", bad: "4294967297"},
	{name: "sign of numeric, hash trap", typ: "numeric", v: "5.25", bad: "-5.25"},
	{name: "scale of numeric, equality trap", typ: "numeric", v: "1.0", bad: "1.00"},
	{name: "numeric NaN", typ: "numeric", v: "0", bad: "'NaN'"},
	{name: "last digit of numeric", typ: "numeric", v: "12345678901234567890.000000000000001", bad: "12345678901234567890.000000000000002"},
	{name: "rounded float", typ: "float8", v: "0.1", bad: "0.1::float4::float8"},
	{name: "last bit of float", typ: "float8", v: "0.1", bad: "0.10000000000000002"},
	{name: "last bit of float4", typ: "float4", v: "0.1", bad: "0.10000001"},
	{name: "minus zero, equality trap", typ: "float8", v: "0", bad: "'-0'"},
	{name: "minus zero in array, equality trap", typ: "float8[]", v: "'{0,1}'", bad: "'{-0,1}'"},
	{name: "NaN of another bit pattern", typ: "float8", v: "'NaN'", bad: "'Infinity'::float8 - 'Infinity'::float8", same: true},
	{name: "microsecond", typ: "timestamp", v: "'2024-02-29 12:00:00.000001'", bad: "'2024-02-29 12:00:00.000002'"},
	{name: "folded timestamp, hash trap", typ: "timestamp", v: "'2000-01-01'", bad: "'2000-01-01'::timestamp + interval '4294.967297 s'"},
	{name: "time zone", typ: "timestamptz", v: "'2024-01-01 00:00+00'", bad: "'2024-01-01 00:00+01'"},
	{name: "same instant in another zone", typ: "timestamptz", v: "'2024-01-01 00:00+00'", bad: "'2024-01-01 05:30+05:30'", same: true},
	{name: "infinity", typ: "timestamptz", v: "'infinity'", bad: "'-infinity'"},
	{name: "date BC", typ: "date", v: "'0044-03-15 BC'", bad: "'0044-03-15'"},
	{name: "timetz, equality trap", typ: "timetz", v: "'01:00+00'", bad: "'02:00+01'"},
	{name: "interval, equality trap", typ: "interval", v: "'1 mon'", bad: "'30 days'"},
	{name: "uuid", typ: "uuid", v: "'00112233-4455-6677-8899-aabbccddeeff'", bad: "'00112233-4455-6677-8899-aabbccddeefe'"},
	{name: "json key order", typ: "json", v: `'{"a":1,"b":2}'`, bad: `'{"b":2,"a":1}'`},
	{name: "jsonb key order", typ: "jsonb", v: `'{"a":1,"b":2}'`, bad: `'{"b":2,"a":1}'`, same: true},
	{name: "scale in jsonb, equality trap", typ: "jsonb", v: `'{"a":1.0}'`, bad: `'{"a":1.00}'`},
	{name: "jsonb null", typ: "jsonb", v: "NULL", bad: "'null'"},
	{name: "null in array", typ: "text[]", v: "'{a,NULL}'", bad: `'{a,"NULL"}'`},
	{name: "bounds of array", typ: "int[]", v: "'{1,2}'", bad: "'[0:1]={1,2}'"},
	{name: "shape of array", typ: "int[]", v: "'{{1,2},{3,4}}'", bad: "'{{1,2,3,4}}'"},
	{name: "inet mask", typ: "inet", v: "'10.0.0.1/8'", bad: "'10.0.0.1/9'"},
	{name: "macaddr", typ: "macaddr", v: "'08:00:2b:01:02:03'", bad: "'08:00:2b:01:02:04'"},
	{name: "bit string length", typ: "varbit", v: "B'1'", bad: "B'10'"},
	{name: "money", typ: "money", v: "'1.00'::money", bad: "'-1.00'::money"},
	{name: "range bounds", typ: "numrange", v: "'[1,2)'", bad: "'[1,2]'"},
	{name: "point", typ: "point", v: "'(0,1)'", bad: "'(-0,1)'"},
	{name: "text search vector", typ: "tsvector", v: "'a:1 b:2'", bad: "'a:1 b:3'"},
	{name: "xml", typ: "xml", v: "'<a/>'", bad: "'<a></a>'"},
	{name: "enum", typ: "mood", v: "'ok'", bad: "'sad'"},
	{name: "domain", typ: "positive", v: "4", bad: "4294967301"},
	{name: "composite", typ: "place", v: "ROW('a', NULL)", bad: "ROW(NULL, 'a')"},
	{name: "composite float", typ: "place2", v: "ROW('a', 0.1)", bad: "ROW('a', 0.10000000000000002)"},
	{name: "array of enum", typ: "mood[]", v: "'{ok,sad}'", bad: "'{sad,ok}'"},
	{name: "regclass", typ: "regclass", v: "'pg_class'", bad: "'pg_type'"},
	{name: "name", typ: "name", v: "'a'", bad: "'b'"},
	{name: "single byte", typ: `"char"`, v: "'a'", bad: "'b'"},
}

const corruptionTypes = `
CREATE TYPE mood AS ENUM ('ok', 'sad');
CREATE DOMAIN positive AS int8 CHECK (value > 0);
CREATE TYPE place AS (street text, city text);
CREATE TYPE place2 AS (street text, x float8);
`

func corruptionSchema() string {
	var b strings.Builder
	b.WriteString(corruptionTypes)
	for i, c := range corruptions {
		fmt.Fprintf(&b, "CREATE TABLE c%d (id int PRIMARY KEY, before text, v %s, after int8); INSERT INTO c%[1]d SELECT i, 'b' || i, (%[3]s)::%[2]s, i FROM generate_series(1, 3) i;\n", i, c.typ, c.v)
		fmt.Fprintf(&b, "CREATE TABLE k%d (id int, v %s); INSERT INTO k%[1]d SELECT i / 2, (%[3]s)::%[2]s FROM generate_series(1, 3) i;\n", i, c.typ, c.v)
	}
	return b.String()
}

func corrupt(t *testing.T, dst *pgtest.Database) {
	t.Helper()
	var b strings.Builder
	for i, c := range corruptions {
		fmt.Fprintf(&b, "UPDATE c%d SET v = (%s)::%s WHERE id = 2; UPDATE k%[1]d SET v = (%[2]s)::%[3]s WHERE id = 0;\n", i, c.bad, c.typ)
	}
	dst.Exec(t, b.String())
}

// checkCorruptions expects row 2 of each table to differ in column v only, and one row of the table
// without a key.
func checkCorruptions(t *testing.T, r *Report) {
	t.Helper()
	for i, c := range corruptions {
		keyed, keyless := r.table(t, fmt.Sprintf("c%d", i)), r.table(t, fmt.Sprintf("k%d", i))
		if c.same {
			if keyed.Differences+keyless.Differences != 0 {
				t.Errorf("%s: reported, but is equal on purpose", c.name)
			}
			continue
		}
		if keyed.Differences != 1 || len(keyed.Samples) != 1 {
			t.Errorf("%s: found %d differences, want 1", c.name, keyed.Differences)
			continue
		}
		s := keyed.Samples[0]
		if s.Kind != Changed || s.Key != "id=2" || !cmp.Equal(s.Columns, []string{"v"}) {
			t.Errorf("%s: got %s %s in %v, want changed id=2 in [v]", c.name, s.Kind, s.Key, s.Columns)
		}
		if keyless.Missing != 1 || keyless.Extra != 1 || keyless.Changed != 0 {
			t.Errorf("%s, without a key: got %d missing, %d extra, %d changed, want 1, 1, 0",
				c.name, keyless.Missing, keyless.Extra, keyless.Changed)
		}
	}
}

func TestFindsCorruption(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, corruptionSchema())
	cfg := config(t, src, dst)
	methods := []Method{MethodRecord, MethodText, MethodSHA256}
	for _, m := range methods {
		if r := runWith(t, cfg, m); r.Differences != 0 || r.Rows != int64(6*len(corruptions)) {
			t.Errorf("%s, before: %d differences in %d rows, want 0 in %d", m, r.Differences, r.Rows, 6*len(corruptions))
		}
	}
	corrupt(t, dst)
	for _, m := range methods {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			checkCorruptions(t, runWith(t, cfg, m))
		})
	}
}

func TestAcrossVersions(t *testing.T) {
	t.Parallel()
	for _, v := range [][2]int{{13, 18}, {15, 16}, {16, 17}, {17, 18}} {
		t.Run(fmt.Sprintf("%d to %d", v[0], v[1]), func(t *testing.T) {
			t.Parallel()
			src, dst := pgtest.DB(t, pgtest.Version(v[0])), pgtest.DB(t, pgtest.Version(v[1]))
			src.Exec(t, corruptionSchema())
			dst.Exec(t, corruptionSchema())
			cfg := config(t, src, dst)
			r := run(t, cfg)
			if r.Differences != 0 {
				t.Errorf("equal databases: %d differences", r.Differences)
			}
			want := MethodRecord
			if src.Major < 14 {
				want = MethodText
			}
			if got := r.Tables[0].Method; got != want {
				t.Errorf("method %s, want %s", got, want)
			}
			corrupt(t, dst)
			checkCorruptions(t, run(t, cfg))
		})
	}
}

// What only a collation takes for equal differs, and is told. It also is a key then: two rows of the target
// may be one to its index.
func TestCollationEqualIsDifferent(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, `CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TABLE a (id int PRIMARY KEY, v text COLLATE ci NOT NULL); INSERT INTO a SELECT i, 'same' FROM generate_series(1, 10) i;
CREATE TABLE k (k text COLLATE ci PRIMARY KEY, v int); INSERT INTO k SELECT 'key' || i, i FROM generate_series(1, 2000) i;
CREATE TABLE bag (v text COLLATE ci); INSERT INTO bag VALUES ('x'), ('y')`)
	dst.Exec(t, `UPDATE a SET v = 'SAME' WHERE id = 3; UPDATE k SET k = 'KEY7' WHERE v = 7; UPDATE bag SET v = 'X' WHERE v = 'x'`)
	if dst.Int(t, "SELECT count(*) FROM a WHERE v = 'same'") != 10 {
		t.Fatal("the collation takes them for different")
	}
	cfg := config(t, src, dst)
	for _, m := range []Method{MethodRecord, MethodText, MethodSHA256} {
		r := runWith(t, cfg, m)
		for name, want := range map[string]string{"a": "0 0 1 [changed id=3 [v]]", "k": "1 1 0 [extra k=KEY7 [] missing k=key7 []]", "bag": "1 1 0 [extra  [] missing  []]"} {
			if got := summary(r.table(t, name)); got != want {
				t.Errorf("%s: %s: got %s, want %s", m, name, got, want)
			}
		}
	}
}

// Corruptions of whole rows. want is "missing extra changed", samples "kind key columns".
func TestFindsWrongRows(t *testing.T) {
	t.Parallel()
	const two = "CREATE TABLE x (id int PRIMARY KEY, a int, b text); INSERT INTO x SELECT i, i * 10, 'b' || i FROM generate_series(1, 4000) i;"
	cases := []struct{ name, create, bad, want string }{
		{"row missing", two, "DELETE FROM x WHERE id = 4000", "1 0 0 [missing id=4000 []]"},
		{"first row missing", two, "DELETE FROM x WHERE id = 1", "1 0 0 [missing id=1 []]"},
		{"row extra", two, "INSERT INTO x VALUES (0, 0, '')", "0 1 0 [extra id=0 []]"},
		{"rows replaced", two, "UPDATE x SET id = 5000 WHERE id = 7", "1 1 0 [extra id=5000 [] missing id=7 []]"},
		{"values swapped between rows", two, "UPDATE x SET a = CASE id WHEN 5 THEN 60 ELSE 50 END WHERE id IN (5, 6)", "0 0 2 [changed id=5 [a] changed id=6 [a]]"},
		{"rows swapped", two, "UPDATE x SET a = 70 - 10 * (id - 5), b = 'b' || (12 - id) WHERE id IN (5, 7)", "0 0 2 [changed id=5 [a b] changed id=7 [a b]]"},
		{
			"values moved between columns", "CREATE TABLE x (id int PRIMARY KEY, a text, b text); INSERT INTO x VALUES (1, 'a', NULL), (2, 'p,q', 'r');",
			"UPDATE x SET a = b, b = a WHERE id = 1; UPDATE x SET a = 'p', b = 'q,r' WHERE id = 2", "0 0 2 [changed id=1 [a b] changed id=2 [a b]]",
		},
		{"empty on the target", "CREATE TABLE x (id int PRIMARY KEY); INSERT INTO x VALUES (1), (2)", "TRUNCATE x", "2 0 0 [missing id=1 [] missing id=2 []]"},
		{"empty on the source", "CREATE TABLE x (id int PRIMARY KEY)", "INSERT INTO x VALUES (1)", "0 1 0 [extra id=1 []]"},
		{"key not unique on the target", two, "ALTER TABLE x DROP CONSTRAINT x_pkey; INSERT INTO x SELECT * FROM x WHERE id = 9", "0 1 0 [extra id=9 []]"},
		{"key not unique and changed", two, "ALTER TABLE x DROP CONSTRAINT x_pkey; INSERT INTO x VALUES (9, 0, 'b9'); UPDATE x SET a = 1 WHERE id = 9", "0 1 1 [changed id=9 [a] extra id=9 []]"},
		{"key null on the target", two, "ALTER TABLE x DROP CONSTRAINT x_pkey; ALTER TABLE x ALTER id DROP NOT NULL; UPDATE x SET id = NULL WHERE id = 9", "1 1 0 [extra id=NULL [] missing id=9 []]"},
		{
			"composite key", "CREATE TABLE x (a int, b text, c int, PRIMARY KEY (b, a)); INSERT INTO x SELECT i % 50, 'k' || i / 50, i FROM generate_series(1, 2000) i;",
			"UPDATE x SET c = 0 WHERE a = 7 AND b = 'k3'; DELETE FROM x WHERE a = 1 AND b = 'k1'", "1 0 1 [changed b=k3, a=7 [c] missing b=k1, a=1 []]",
		},
		{
			"text key", "CREATE TABLE x (k text PRIMARY KEY, v float8); INSERT INTO x SELECT chr(64 + i) || 'ä\"''' || i, i FROM generate_series(1, 2000) i;",
			`UPDATE x SET v = 0 WHERE v = 2; UPDATE x SET k = 'Z' WHERE v = 1999`, `1 1 1 [changed k=Bä"'2 [v] extra k=Z [] missing k=` + string(rune(64+1999)) + `ä"'1999 []]`,
		},
		{
			"uuid key", "CREATE TABLE x (k uuid PRIMARY KEY, v timestamp); INSERT INTO x SELECT md5(i::text)::uuid, '2024-01-01' FROM generate_series(1, 2000) i;",
			"UPDATE x SET v = 'infinity' WHERE k = md5('77')::uuid", "0 0 1 [changed k=28dd2c79-55ce-9264-5624-0b2ff0100bde [v]]",
		},
		{
			"bigint key that folds", "CREATE TABLE x (k int8 PRIMARY KEY, v int); INSERT INTO x VALUES (0, 1), (4294967297, 2)",
			"UPDATE x SET v = 3 - v", "0 0 2 [changed k=0 [v] changed k=4294967297 [v]]",
		},
		{
			"keyless, lost one of two", "CREATE TABLE x (a int, b text); INSERT INTO x VALUES (1, 'x'), (1, 'x'), (2, NULL)",
			"DELETE FROM x WHERE ctid = '(0,1)'", "1 0 0 [missing  []]",
		},
		{
			"keyless, doubled", "CREATE TABLE x (a int, b text); INSERT INTO x VALUES (1, 'x'), (1, 'x'), (2, NULL)",
			"INSERT INTO x VALUES (2, NULL), (2, NULL)", "0 2 0 [extra  []]",
		},
		{
			"keyless, other multiplicity", "CREATE TABLE x (a int); INSERT INTO x VALUES (1), (1), (2)",
			"UPDATE x SET a = 2 WHERE ctid = '(0,1)'", "1 1 0 [extra  [] missing  []]",
		},
		{
			"keyless, swapped values", "CREATE TABLE x (a int, b int); INSERT INTO x VALUES (1, 2), (3, 4)",
			"UPDATE x SET b = 6 - b", "2 2 0 [extra  [] extra  [] missing  [] missing  []]",
		},
		{
			"keyless, only nulls", "CREATE TABLE x (a int, b int); INSERT INTO x VALUES (NULL, NULL), (NULL, NULL)",
			"DELETE FROM x WHERE ctid = '(0,1)'", "1 0 0 [missing  []]",
		},
	}
	schema := func(i int) string { return fmt.Sprintf("case%02d", i) }
	src, dst := pgtest.DB(t), pgtest.DB(t)
	for i, tt := range cases {
		create := fmt.Sprintf("CREATE SCHEMA %s; SET search_path = %[1]s; %s", schema(i), tt.create)
		src.Exec(t, create)
		dst.Exec(t, create)
	}
	cfg := config(t, src, dst)
	cfg.ChunkRows = 500
	if r := run(t, cfg); r.Differences != 0 || len(r.Tables) != len(cases) {
		t.Errorf("before: %d differences in %d tables", r.Differences, len(r.Tables))
	}
	for i, tt := range cases {
		dst.Exec(t, fmt.Sprintf("SET search_path = %s; %s", schema(i), tt.bad))
	}
	for _, m := range []Method{MethodRecord, MethodText} {
		for i, tr := range runWith(t, cfg, m).Tables { // in order of their names
			if got := summary(tr); got != cases[i].want {
				t.Errorf("%s, by %s:\n got %s\nwant %s", cases[i].name, m, got, cases[i].want)
			}
		}
	}
}

// Counts are exact however many rows differ; samples are few.
func TestManyDifferences(t *testing.T) {
	t.Parallel()
	const filled = "CREATE TABLE %s (id int PRIMARY KEY, v int); INSERT INTO %[1]s SELECT i, %s FROM generate_series(1, 3000) i;"
	src, dst := pair(t, "CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE c (v int)")
	src.Exec(t, fmt.Sprintf(filled, "b", "i")+"INSERT INTO c SELECT 1 FROM generate_series(1, 3000)")
	dst.Exec(t, fmt.Sprintf(filled, "b", "-i")+"INSERT INTO a SELECT i FROM generate_series(1, 3000) i; INSERT INTO c SELECT i % 2 FROM generate_series(1, 3000) i")
	cfg := config(t, src, dst)
	cfg.MaxSamples = 3
	r := run(t, cfg)
	for name, want := range map[string]string{"a": "0 3000 0, 3", "b": "0 0 3000, 3", "c": "1500 1500 0, 2"} {
		tr := r.table(t, name)
		if got := fmt.Sprintf("%d %d %d, %d", tr.Missing, tr.Extra, tr.Changed, len(tr.Samples)); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}
