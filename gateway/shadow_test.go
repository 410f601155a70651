package gateway

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// shadowed starts a gateway that runs every read twice, on two databases with the same table but for here.
func shadowed(t *testing.T, change func(*Config)) (*bench, *progress) {
	t.Helper()
	var p progress
	p.at.Store(everything)
	b := start(t, func(c *Config) {
		c.Reads.Passed = p.passed
		c.Shadow = Shadow{Share: 1, Ignore: []string{"seen_at"}}
		if change != nil {
			change(c)
		}
	})
	for _, db := range b.dbs {
		db.Exec(t, "CREATE TABLE item AS SELECT i AS id, 'name ' || i AS name, i / 3.0::float8 AS price, clock_timestamp() AS seen_at FROM generate_series(1, 20) i")
	}
	return b, &p
}

// settled waits until every read that was taken has been dealt with, n of them.
func settled(t *testing.T, b *bench, n int64) ShadowStats {
	t.Helper()
	var st ShadowStats
	pgtest.Eventually(t, fmt.Sprintf("%d shadow reads", n), func() bool {
		st = b.ShadowStats()
		return st.Sampled >= n && st.Compared+st.Noise+st.Dropped+st.Late+st.Failed == st.Sampled
	})
	return st
}

// TestShadowReads: the same answers on both sides are no mismatch, by either protocol and with statements
// prepared long before; what is random is noise; a row that differs is found, without its values in what is
// kept.
func TestShadowReads(t *testing.T) {
	t.Parallel()
	b, _ := shadowed(t, nil)
	b.dbs[target].Exec(t, "UPDATE item SET id = id WHERE id < 5") // another physical order
	simple := b.client(t, b.ReadAddr(), "&default_query_exec_mode=simple_protocol")
	extended := b.client(t, b.ReadAddr(), "")
	for i := range 5 {
		for _, conn := range []*pgx.Conn{simple, extended} {
			run(t, conn, "SELECT * FROM item")
			run(t, conn, "SELECT name FROM item WHERE id = $1", i)
			run(t, conn, "SELECT id, price FROM item ORDER BY id DESC LIMIT 3")
		}
	}
	st := settled(t, b, 30)
	if st.Compared != 30 || st.Mismatched != 0 || st.Noise != 0 {
		t.Fatalf("equal databases: %+v", st)
	}
	run(t, simple, "SELECT random()")
	run(t, simple, "SELECT now()")
	if st = settled(t, b, 32); st.Noise != 2 || st.Mismatched != 0 {
		t.Fatalf("reads that say something else each time: %+v", st)
	}
	b.dbs[target].Exec(t, "UPDATE item SET name = 'other' WHERE id = 7")
	run(t, extended, "SELECT name FROM item WHERE id = $1", 7)
	run(t, simple, "SELECT id, name AS title FROM item WHERE name = 'name 7' /* secret */")
	st = settled(t, b, 34)
	want := []Mismatch{
		{Shape: "SELECT id, name AS title FROM item WHERE name = ?", Kind: "rows", Count: 1},
		{Shape: "SELECT name FROM item WHERE id = $1", Kind: "values", Columns: []string{"name"}, Count: 1},
	}
	for i := range st.Mismatches {
		st.Mismatches[i].First, st.Mismatches[i].Last = time.Time{}, time.Time{}
	}
	if diff := cmp.Diff(want, st.Mismatches); diff != "" || st.Mismatched != 2 {
		t.Errorf("%d mismatches (-want +got):\n%s", st.Mismatched, diff)
	}
	if st.OwnerP95 <= 0 || st.OtherP95 <= 0 {
		t.Errorf("times: %+v", st)
	}
}

// TestShadowLeavesOut: what could do harm, or would prove nothing, is not run twice; nor is what the session
// would see and others not.
func TestShadowLeavesOut(t *testing.T) {
	t.Parallel()
	b, _ := shadowed(t, nil)
	conn := b.client(t, b.ReadAddr(), "&default_query_exec_mode=simple_protocol")
	for _, sql := range []string{
		"SELECT pg_advisory_lock(1)", "SELECT name FROM item LIMIT 1", "SHOW work_mem", "BEGIN", "SELECT 1", "COMMIT", "EXPLAIN SELECT 1",
		"SELECT 1; SELECT 2",
	} {
		run(t, conn, sql)
	}
	if st := b.ShadowStats(); st.Sampled != 0 {
		t.Errorf("reads taken: %+v", st)
	}
	other := b.client(t, b.ReadAddr(), "&default_query_exec_mode=simple_protocol")
	run(t, other, "SET extra_float_digits = -10")
	run(t, other, "SELECT price FROM item")
	if st := settled(t, b, 1); st.Compared != 1 || st.Noise != 0 {
		t.Errorf("a session with a setting of its own: %+v", st)
	}
	run(t, other, "SET ROLE postgres")
	run(t, other, "SELECT price FROM item")
	if st := b.ShadowStats(); st.Sampled != 1 {
		t.Errorf("after SET ROLE: %+v", st)
	}
}

// TestShadowHarmsNobody: with the other database away, behind, or too slow for the queue, clients get their
// answers, and what was left out is counted.
func TestShadowHarmsNobody(t *testing.T) {
	t.Parallel()
	away, p := shadowed(t, func(c *Config) {
		gone, err := pg.Parse("postgres://postgres@127.0.0.1:1/gone?sslmode=disable")
		if err != nil {
			t.Fatal(err)
		}
		c.Backends[target] = gone
		c.Shadow.Queue, c.Shadow.Workers, c.Shadow.Timeout = 1, 1, 300*time.Millisecond
	})
	conn := away.client(t, away.ReadAddr(), "")
	for i := range 20 {
		if got := one[string](t, conn, "SELECT name FROM item WHERE id = $1", i%20+1); got != fmt.Sprintf("name %d", i%20+1) {
			t.Fatalf("read %d: %q", i, got)
		}
	}
	if st := settled(t, away, 20); st.Compared != 0 || st.Failed == 0 {
		t.Errorf("with the other database away: %+v", st)
	}
	p.at.Store(0)
	b, late := shadowed(t, func(c *Config) { c.Shadow.Queue, c.Shadow.Workers, c.Shadow.Timeout = 1, 1, 100*time.Millisecond })
	late.at.Store(0)
	conn = b.client(t, b.ReadAddr(), "")
	for i := range 20 {
		one[string](t, conn, "SELECT name FROM item WHERE id = $1", i+1)
	}
	if st := settled(t, b, 20); st.Compared != 0 || st.Late == 0 || st.Dropped == 0 {
		t.Errorf("with the other database behind: %+v", st)
	}
}

func float8(f float64) []byte { return binary.BigEndian.AppendUint64(nil, math.Float64bits(f)) }

func TestComparison(t *testing.T) {
	t.Parallel()
	cols := []column{{"id", 23, false}, {"x", oidFloat8, false}, {"b", oidFloat8, true}, {"skip", 25, false}}
	row := func(id, x string, b float64, skip string) [][]byte {
		return [][]byte{[]byte(id), []byte(x), float8(b), []byte(skip)}
	}
	one, two := row("1", "0.1", 0.3, "a"), row("2", "NaN", math.NaN(), "b")
	for _, tt := range []struct {
		name    string
		ordered bool
		a, b    [][][]byte
		want    string
	}{
		{"same", true, [][][]byte{one, two}, [][][]byte{one, two}, ""},
		{"other order", false, [][][]byte{one, two}, [][][]byte{two, one}, ""},
		{"other order that counts", true, [][][]byte{one, two}, [][][]byte{two, one}, "order "},
		{"nearly", true, [][][]byte{one}, [][][]byte{row("1", "0.10000000000000001", 0.1+0.2, "z")}, ""},
		{"not nearly", true, [][][]byte{one}, [][][]byte{row("1", "0.1001", 0.3, "a")}, "values x"},
		{"null", true, [][][]byte{one}, [][][]byte{{[]byte("1"), nil, float8(0.3), nil}}, "values x"},
		{"empty is not null", true, [][][]byte{{{}}}, [][][]byte{{nil}}, "values id"},
		{"fewer", false, [][][]byte{one, one}, [][][]byte{one}, "rows "},
		{"twice the one", false, [][][]byte{one, one, two}, [][][]byte{one, two, two}, "values id,x,b"},
	} {
		c := comparison{ignore: []string{"skip"}, floats: 1e-9, ordered: tt.ordered, columns: cols}
		kind, columns := c.differ(&answer{rows: tt.a}, &answer{rows: tt.b})
		if got := kind + " " + strings.Join(columns, ","); got != tt.want && (kind != "" || tt.want != "") {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	if kind, _ := (comparison{}).differ(&answer{}, &answer{code: "42P01"}); kind != "error" {
		t.Errorf("an error: %q", kind)
	}
}

func TestShape(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"SELECT  *\n FROM t1 WHERE a='it''s' AND b=12.5e3 -- 'x'": "SELECT * FROM t1 WHERE a=? AND b=?",
		`SELECT "a b", E'x\'y', $1, $2 FROM "t""1"`:               `SELECT "a b", ?, $1, $2 FROM "t""1"`,
		"SELECT $$x'y$$, $a$ 1 $$ $a$/* 5 */, x9":                 "SELECT ?, ? , x9",
		"SELECT 'open":       "SELECT ?",
		"SELECT $1 / 2 + -3": "SELECT $1 / ? + -?",
	} {
		if got := shape(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// TestReadable: what is no harmless, determined read is left out.
func TestReadable(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"SELECT 1": true, "  /* x */ (select 1)": true, "WITH a AS (SELECT 1) TABLE a;": true, "VALUES (1)": true,
		"SELECT 'nextval; update'": true, "SELECT a FROM t ORDER BY a LIMIT 3": true, `SELECT updated FROM "into"`: true,
		"SELECT a FROM t LIMIT 3": false, "SELECT nextval('s')": false, "SELECT 1; DELETE FROM t": false, "DELETE FROM t": false,
		"WITH d AS (DELETE FROM t RETURNING 1) SELECT * FROM d": false, "SELECT * INTO x FROM t": false, "SELECT * FROM t FOR UPDATE": false, "SELECT * FROM t FOR NO KEY UPDATE": false,
		"SELECT * FROM t FOR SHARE": false, "SELECT pg_sleep(1)": false, "SET x = 1": false, "": false,
	} {
		if got := readable(text); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
	for text, want := range map[string]bool{
		"SELECT 1": false, "SELECT a FROM t ORDER  BY a": true, "SELECT a FROM (SELECT a FROM t ORDER BY a) x": false,
		"SELECT 'order by'": false, "SELECT row_number() OVER (ORDER BY a) FROM t order by 1": true,
	} {
		if got := ordered(text); got != want {
			t.Errorf("ordered %q: %t", text, got)
		}
	}
}

// FuzzShape: a shape has no digits or quotes of a constant in it, and no text breaks it.
func FuzzShape(f *testing.F) {
	for _, s := range []string{"SELECT 'a' || E'\\'' || $x$b$x$ -- c", `"`, "'", "$", "/*", "--", "1a", "e'"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got := shape(text)
		if strings.Contains(got, "'") {
			t.Errorf("%q: %q", text, got)
		}
		_, _, _ = readable(text), ordered(text), manyStatements(text)
	})
}
