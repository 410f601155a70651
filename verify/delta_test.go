package verify

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
)

// touched is Keys from a map by table name; nil stands for the whole table.
func touched(m map[string][][]string) Keys {
	return func(table schema.Name, yield func([]string) error) error {
		for _, key := range m[table.Name] {
			if err := yield(key); err != nil {
				return err
			}
		}
		return nil
	}
}

func ids(from, to int) [][]string {
	var keys [][]string
	for i := from; i <= to; i++ {
		keys = append(keys, []string{fmt.Sprint(i)})
	}
	return keys
}

func TestDelta(t *testing.T) {
	t.Parallel()
	const tables = `
CREATE TABLE a (id int PRIMARY KEY, v text);
CREATE TABLE c (x uuid, y text, v numeric, PRIMARY KEY (y, x));
CREATE TABLE log (v text);
CREATE TABLE big (v int);
CREATE TABLE untouched (id int PRIMARY KEY);
INSERT INTO a SELECT i, 'v' || i FROM generate_series(1, 5000) i;
INSERT INTO c SELECT md5(i::text)::uuid, 'k,"''\ ' || i, i FROM generate_series(1, 100) i;
INSERT INTO log SELECT 'x' FROM generate_series(1, 10);
INSERT INTO big SELECT i FROM generate_series(1, 30000) i;
INSERT INTO untouched VALUES (1);
ANALYZE;`
	src, dst := pair(t, tables)
	dst.Exec(t, `UPDATE a SET v = 'bad' WHERE id IN (2, 2500, 4999); DELETE FROM a WHERE id = 3; INSERT INTO a VALUES (6000, '')`)
	dst.Exec(t, `UPDATE c SET v = 1.0 WHERE v = 1; INSERT INTO log VALUES ('x'); DELETE FROM untouched`)

	hash := func(i int) string {
		return src.Strings(t, fmt.Sprintf("SELECT md5('%d')::uuid", i))[0]
	}
	cfg := config(t, src, dst)
	cfg.WholeRows = 10_000
	cfg.Keys = touched(map[string][][]string{
		"a":   append(ids(1, 2500), []string{"6000"}, []string{"7000"}), // 7000 is nowhere
		"c":   {{`k,"'\ 1`, hash(1)}, {`k,"'\ 2`, hash(2)}},
		"log": {nil},
		"big": {nil},
	})
	r := run(t, cfg)
	if got, want := summary(r.table(t, "a")), "1 1 2 [changed id=2 [v] changed id=2500 [v] extra id=6000 [] missing id=3 []]"; got != want {
		t.Errorf("a: got %s, want %s", got, want)
	}
	if got, want := summary(r.table(t, "c")), `0 0 1 [changed y=k,"'\ 1, x=`+hash(1)+" [v]]"; got != want {
		t.Errorf("c: got %s, want %s", got, want)
	}
	if got, want := summary(r.table(t, "log")), "0 1 0 [extra  []]"; got != want {
		t.Errorf("log: got %s, want %s", got, want)
	}
	if len(r.Tables) != 3 || r.Keys != 2504 || r.Differences != 6 {
		t.Errorf("got %d tables, %d keys, %d differences, want 3, 2504, 6", len(r.Tables), r.Keys, r.Differences)
	}
	if len(r.Uncovered) != 1 || !strings.HasPrefix(r.Uncovered[0], "public.big: it has no key") {
		t.Errorf("uncovered: %q", r.Uncovered)
	}

	cfg.WholeRows = 0 // the default covers it
	cfg.Keys = touched(map[string][][]string{"big": {nil}, "a": {{"1"}, nil}})
	r = run(t, cfg)
	if got, want := summary(r.table(t, "a")), "1 1 3 ["; !strings.HasPrefix(got, want) || len(r.Uncovered) != 0 || len(r.Tables) != 2 {
		t.Errorf("whole: a is %s, want %s; %d tables, uncovered %q", got, want, len(r.Tables), r.Uncovered)
	}
}

func TestDeltaRefusesKeysOfAnotherShape(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, "CREATE TABLE a (id int PRIMARY KEY)")
	for _, keys := range [][][]string{{{"1", "2"}}, {{"no number"}}} {
		cfg := config(t, src, dst)
		cfg.Keys = touched(map[string][][]string{"a": keys})
		if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "table public.a: ") {
			t.Errorf("%v: got %v, want an error that names the table", keys, err)
		}
	}
}

// At the fence only queries run: nothing grows with the table, and connections are open already.
func TestDeltaAtTheFence(t *testing.T) {
	t.Parallel()
	const rows = 300_000
	src, dst := pair(t, fmt.Sprintf(`CREATE TABLE a (id int8 PRIMARY KEY, v text, at timestamptz DEFAULT now(), n numeric DEFAULT 1.5);
INSERT INTO a (id, v, at) SELECT i, repeat('x', 80), '2024-01-01' FROM generate_series(1, %d) i`, rows))
	src.Exec(t, "VACUUM ANALYZE a")
	dst.Exec(t, "VACUUM ANALYZE a")
	var keys [][]string
	for i := range 1000 {
		keys = append(keys, []string{fmt.Sprint(1 + i*(rows/1000))})
	}
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	s, err := Open(ctx, config(t, src, dst))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Warm(ctx); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		r, err := s.DeltaAtRest(ctx, touched(map[string][][]string{"a": keys}))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("1000 keys of %d rows: %s", rows, r.Elapsed)
		if r.Keys != 1000 || r.Rows != 1000 || r.Differences != 0 {
			t.Errorf("got %d keys, %d rows, %d differences", r.Keys, r.Rows, r.Differences)
		}
		if r.Elapsed > 2*time.Second { // 50 ms on a machine of its own
			t.Errorf("took %s", r.Elapsed)
		}
	}
	scans := dst.Int(t, "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'a'")
	dst.Exec(t, "UPDATE a SET v = '' WHERE id = 1")
	r, err := s.Delta(ctx, touched(map[string][][]string{"a": keys}))
	if err != nil || r.Differences != 1 {
		t.Errorf("session used again: %v, %+v", err, r)
	}
	if again := dst.Int(t, "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'a'"); again != scans {
		t.Errorf("the table was read from end to end %d times", again-scans)
	}
}

// A thousand keys take as many rows, and about as many blocks, whether the table is small or ten times as
// large: only the index is a level deeper. A table without a key that is too large for it is not read at
// all. Catches: a plan that reads the table, a look-up that the index does not serve (a key that is cast).
func TestDeltaDoesNotGrowWithTheTable(t *testing.T) {
	t.Parallel()
	const small, large = 40_000, 400_000
	src, dst := pair(t, fmt.Sprintf(`CREATE TABLE small (id int8 PRIMARY KEY, v text, at date NOT NULL DEFAULT '2024-01-01'); INSERT INTO small SELECT i, repeat('x', 50) FROM generate_series(1, %d) i;
CREATE TABLE large (LIKE small INCLUDING ALL); INSERT INTO large SELECT i, repeat('x', 50) FROM generate_series(1, %d) i;
CREATE TABLE keyless (v int); INSERT INTO keyless SELECT generate_series(1, 20000)`, small, large))
	for _, db := range []*pgtest.Database{src, dst} {
		db.Exec(t, "VACUUM ANALYZE small")
		db.Exec(t, "VACUUM ANALYZE large")
		db.Exec(t, "VACUUM ANALYZE keyless")
	}
	cfg := config(t, src, dst)
	cfg.WholeRows = 10_000
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, sd := range sides() {
		cost := map[string]plan{}
		for _, table := range s.tables {
			if table.keyed() {
				cost[table.m.Target.Name] = explain(t, s, sd, table, map[string]int{"small": small, "large": large}[table.m.Target.Name])
			}
		}
		few, many := cost["small"], cost["large"]
		t.Logf("%s: %+v of %d rows, %+v of %d", sd, few, small, many, large)
		if few.rows != 1000 || many.rows != 1000 || few.scanned > 1000 || many.scanned > 1000 {
			t.Errorf("%s: %+v of %d rows, %+v of %d: want a thousand rows of both, found by index", sd, few, small, many, large)
		}
		if many.blocks > few.blocks*3/2 {
			t.Errorf("%s: %d blocks of %d rows, %d of %d", sd, few.blocks, small, many.blocks, large)
		}
	}
	r, err := s.Delta(t.Context(), touched(map[string][][]string{"keyless": {nil}}))
	if err != nil || len(r.Uncovered) != 1 || r.Rows != 0 {
		t.Fatalf("keyless: %+v, %v", r, err)
	}
	for _, db := range []*pgtest.Database{src, dst} {
		if n := db.Int(t, "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'keyless'"); n != 0 {
			t.Errorf("the table that is not covered was read %d times", n)
		}
	}
}

// A plan is what a query did: the rows that it returned, those that it read and left out, and the blocks
// that it looked at.
type plan struct{ rows, scanned, blocks int }

// explain looks up a thousand keys, spread over a table.
func explain(t *testing.T, s *Session, sd side, table *table, rows int) (p plan) {
	t.Helper()
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = fmt.Sprint(1 + i*(rows/1000))
	}
	var raw []byte
	err := s.nodes[sd].workers[0].QueryRow(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+table.lookupSQL(sd), keys).Scan(&raw)
	if err != nil {
		t.Fatal(err)
	}
	type node = map[string]any // as PostgreSQL names it
	var out []struct{ Plan node }
	if err := json.Unmarshal(raw, &out); err != nil || len(out) != 1 {
		t.Fatalf("%s: %v", raw, err)
	}
	number := func(n node, name string) float64 {
		v, _ := n[name].(float64)
		return v
	}
	var walk func(n node)
	walk = func(n node) {
		if kind, _ := n["Node Type"].(string); strings.Contains(kind, "Scan") && kind != "Function Scan" {
			p.scanned += int((number(n, "Actual Rows") + number(n, "Rows Removed by Filter")) * number(n, "Actual Loops"))
		}
		below, _ := n["Plans"].([]any)
		for _, b := range below {
			walk(b.(node)) //nolint:errcheck // a panic would say it as well
		}
	}
	top := out[0].Plan
	walk(top)
	p.rows, p.blocks = int(number(top, "Actual Rows")), int(number(top, "Shared Hit Blocks")+number(top, "Shared Read Blocks"))
	return p
}
