package verify

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/transform"
)

// script runs what WriteRepairs wrote, as psql does.
func script(t *testing.T, db *pgtest.Database, r *Report) {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteRepairs(&b); err != nil {
		t.Fatal(err)
	}
	conn := db.Conn(t)
	if _, err := conn.Exec(t.Context(), "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), b.String(), pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Errorf("%v in\n%s", err, &b)
	}
}

// standing compares until the server was quiet while the snapshots were taken, which other tests write to as well: else
// rows without a key do not count as ones that stood still, and are not mended.
func standing(t *testing.T, s *Session) (r *Report) {
	t.Helper()
	pgtest.Eventually(t, "all rows to have stood still", func() bool {
		var err error
		if r, err = s.Exact(t.Context()); err != nil {
			t.Fatal(err)
		}
		return int64(len(r.Repairs)) == r.Differences
	})
	return r
}

// Every kind of damage is mended, values of every type included, by the script and by Mend; then
// nothing differs, and Mend's own comparison says so. Catches: a repair that hits a row's twin, a
// value that changes in its text, rows without a key mended once instead of n times.
func TestRepair(t *testing.T) {
	t.Parallel()
	const more = `CREATE TABLE x (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text); INSERT INTO x (v) SELECT 'v' || i FROM generate_series(1, 2000) i;
CREATE TABLE twins (a int, b text); INSERT INTO twins VALUES (1, 'x'), (1, 'x'), (1, 'x'), (2, NULL), (3, 'y');
CREATE TABLE p (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE p0 PARTITION OF p FOR VALUES IN (0); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
INSERT INTO p SELECT i, i % 2 FROM generate_series(1, 100) i;
CREATE TABLE child (id int PRIMARY KEY REFERENCES x ON DELETE CASCADE); INSERT INTO child VALUES (5);`
	const damage = `ALTER TABLE x DROP CONSTRAINT x_pkey CASCADE; DELETE FROM x WHERE id IN (1, 2000); UPDATE x SET v = NULL WHERE id = 5; UPDATE x SET v = E'a''b\\\nc' WHERE id = 6;
INSERT INTO x OVERRIDING SYSTEM VALUE VALUES (3000, 'extra'); INSERT INTO x OVERRIDING SYSTEM VALUE VALUES (7, 'twin'); INSERT INTO x OVERRIDING SYSTEM VALUE SELECT 8, 'v8';
DELETE FROM twins WHERE ctid IN ('(0,1)', '(0,2)'); INSERT INTO twins VALUES (2, NULL), (2, NULL), (4, 'z');
DELETE FROM p WHERE id = 3; INSERT INTO p VALUES (3, 0), (200, 1);`
	for _, how := range []string{"script", "mend"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			src, dst := pair(t, corruptionSchema()+more)
			corrupt(t, dst)
			dst.Exec(t, damage)
			cfg := config(t, src, dst)
			cfg.Repairs, cfg.MaxSamples = 1000, 3
			s, err := Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			r := standing(t, s)
			if len(r.Repairs) < 100 {
				t.Fatalf("%d repairs for %d differences", len(r.Repairs), r.Differences)
			}
			if how == "script" {
				script(t, dst, r)
			} else {
				again, err := s.Mend(t.Context(), r)
				if err != nil || again.Differences != 0 || again.Rows == 0 {
					t.Fatalf("mended: %+v, %v", again, err)
				}
			}
			if r := run(t, config(t, src, dst)); r.Differences != 0 {
				t.Errorf("%d differences are left", r.Differences)
			}
			if got := dst.Int(t, "SELECT count(*) FROM child"); got != 1 {
				t.Errorf("%d children: a foreign key fired", got)
			}
		})
	}
}

// A row that somebody changed since is left alone, with all others.
func TestRepairOfWhatMoved(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT i, 'v' FROM generate_series(1, 10) i")
	dst.Exec(t, "UPDATE a SET v = 'bad' WHERE id IN (1, 2); INSERT INTO a VALUES (11, 'x')")
	for _, sql := range []string{"UPDATE a SET v = 'worse' WHERE id = 2", "UPDATE a SET v = 'y' WHERE id = 11", "DELETE FROM a WHERE id = 2"} {
		cfg := config(t, src, dst)
		cfg.Repairs = 10
		s, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		r, err := s.Exact(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		dst.Exec(t, sql)
		before := dst.Strings(t, "SELECT a::text FROM a ORDER BY 1")
		if _, err := s.Mend(t.Context(), r); err == nil || !strings.Contains(err.Error(), "no longer what it was") {
			t.Errorf("%s: got %v", sql, err)
		}
		if after := dst.Strings(t, "SELECT a::text FROM a ORDER BY 1"); !slices.Equal(before, after) {
			t.Errorf("%s: was %q, is %q", sql, before, after)
		}
	}
}

func TestRepairIsBounded(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, "CREATE TABLE a (id int PRIMARY KEY)")
	src.Exec(t, "INSERT INTO a SELECT generate_series(1, 20)")
	cfg := config(t, src, dst)
	cfg.Repairs = 19
	if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "20 rows differ, more than the 19") {
		t.Errorf("got %v", err)
	}
	cfg.Repairs = 20
	if r := run(t, cfg); len(r.Repairs) != 20 {
		t.Errorf("%d repairs", len(r.Repairs))
	}
}

// Unique values that went to other rows are mended, whichever of the two comes first, and values of columns that
// only the target has stay. Catches: repairs in the order of keys; rows that swapped a value updated one by one.
func TestRepairOfUniqueValues(t *testing.T) {
	t.Parallel()
	const ddl = `CREATE TABLE u (id int PRIMARY KEY, v text, a int UNIQUE); INSERT INTO u SELECT i, 'v' || i, i FROM generate_series(1, 20) i;
		CREATE TABLE e (id int PRIMARY KEY, v text); CREATE UNIQUE INDEX ON e (upper(v)); INSERT INTO e SELECT i, 'v' || i FROM generate_series(1, 20) i;
		CREATE TABLE p (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE p0 PARTITION OF p DEFAULT; CREATE UNIQUE INDEX ON p0 (v);
		INSERT INTO p SELECT i, 0, 'v' || i FROM generate_series(1, 20) i;`
	const damage = `UPDATE u SET a = -1 WHERE id = 5; UPDATE u SET a = 5 WHERE id = 6; UPDATE u SET a = 6 WHERE id = 5; UPDATE u SET v = 'x' WHERE id = 9;
		DELETE FROM u WHERE id = 7; INSERT INTO u VALUES (30, 'v', 7); DELETE FROM u WHERE id = 12; UPDATE u SET a = 12 WHERE id = 13;
		UPDATE e SET v = 'w' WHERE id = 5; UPDATE e SET v = 'V5' WHERE id = 6; UPDATE e SET v = 'V6' WHERE id = 5;
		UPDATE p SET v = 'w' WHERE id = 5; UPDATE p SET v = 'v5' WHERE id = 6; UPDATE p SET v = 'v6' WHERE id = 5`
	for _, how := range []string{"script", "mend"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			src, dst := pair(t, ddl)
			dst.Exec(t, damage)
			cfg := config(t, src, dst)
			cfg.Repairs = 100
			s, err := Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			r := standing(t, s)
			if len(r.Repairs) != 11 {
				t.Fatalf("%d repairs for %d differences", len(r.Repairs), r.Differences)
			}
			if how == "script" {
				script(t, dst, r)
			} else if again, err := s.Mend(t.Context(), r); err != nil || again.Differences != 0 {
				t.Fatalf("mended: %+v, %v", again, err)
			}
			if r := run(t, config(t, src, dst)); r.Differences != 0 {
				t.Errorf("%d differences are left", r.Differences)
			}
		})
	}
}

// A row with a column that only the target has is not taken away to be mended: the column would be lost.
func TestRepairKeepsOtherColumns(t *testing.T) {
	t.Parallel()
	src, dst := pair(t, "CREATE TABLE u (id int PRIMARY KEY, a int UNIQUE); INSERT INTO u SELECT i, i FROM generate_series(1, 20) i")
	dst.Exec(t, "ALTER TABLE u ADD more text; UPDATE u SET more = 'kept', a = 100 WHERE id = 5")
	cfg := config(t, src, dst)
	cfg.Repairs = 10
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Exact(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Mend(t.Context(), r); err != nil || again.Differences != 0 {
		t.Fatalf("mended: %+v, %v", again, err)
	}
	if got := dst.Strings(t, "SELECT a, more FROM u WHERE id = 5")[0]; got != "5|kept" {
		t.Errorf("the row is %s", got)
	}
}

// Repairs write what the rules make of the source's row.
func TestRepairThroughRules(t *testing.T) {
	t.Parallel()
	src, dst := pgtest.DB(t), pgtest.DB(t)
	src.Exec(t, "CREATE TABLE a (id int PRIMARY KEY, name text, gone bool NOT NULL DEFAULT false, at timestamptz DEFAULT '2024-01-01'); INSERT INTO a SELECT i, 'N' || i FROM generate_series(1, 5) i; UPDATE a SET gone = true WHERE id = 5")
	dst.Exec(t, `CREATE TABLE b (id int8 PRIMARY KEY, label text, at timestamptz); INSERT INTO b VALUES (1, 'n1', '2024-01-01+00'), (2, 'N2', '2023-01-01+00'), (5, 'n5', '2024-01-01+00')`)
	cfg := Config{Source: src.DSN, Target: dst.DSN, Repairs: 10, Mappings: mappings(t, src, map[string]transform.Rule{
		"a": {To: "b", Where: "NOT gone", Drop: []string{"gone", "name"}, Columns: map[string]string{"label": "lower(name)"}},
	})}
	script(t, dst, run(t, cfg))
	if r := run(t, cfg); r.Differences != 0 || r.Rows != 4 {
		t.Errorf("%d differences in %d rows: %s", r.Differences, r.Rows, fmt.Sprint(dst.Strings(t, "SELECT b::text FROM b")))
	}
}
