package apply

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

var histories = flag.Int("histories", 2, "how many random histories to run")

const historyDDL = `
CREATE TABLE keyed (id int PRIMARY KEY, u int UNIQUE, big text, n int, s text);
CREATE TABLE pair (a int, b text, v int, PRIMARY KEY (a, b));
CREATE TABLE loose (a int, b text); ALTER TABLE loose REPLICA IDENTITY FULL;
CREATE TABLE fully (id int PRIMARY KEY, big text, v int); ALTER TABLE fully REPLICA IDENTITY FULL;
CREATE TABLE ident (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v + 1) STORED)`

// randomSQL returns one statement. Values come from small ranges, so that the same rows, keys and
// unique values are hit again and again.
func randomSQL(r *rand.Rand) string {
	n := func(most int) int { return 1 + r.IntN(most) }
	value := func() string {
		switch r.IntN(5) {
		case 0:
			return "NULL"
		case 1:
			return "''"
		case 2:
			return fmt.Sprintf("(SELECT string_agg(md5((i + %d)::text), '') FROM generate_series(1, 120) i)", r.IntN(1000))
		default:
			return fmt.Sprintf("'v%d'", n(5))
		}
	}
	statements := []func() string{
		func() string {
			return fmt.Sprintf("INSERT INTO keyed VALUES (%d, %d, %s, %d, %s) ON CONFLICT DO NOTHING", n(20), n(30), value(), n(5), value())
		},
		func() string {
			return fmt.Sprintf("INSERT INTO keyed VALUES (%d, NULL, %s, 0, 'i') ON CONFLICT (id) DO UPDATE SET n = 9", n(20), value())
		},
		func() string { return fmt.Sprintf("UPDATE keyed SET n = %d WHERE id <= %d", n(9), n(20)) },
		func() string { return fmt.Sprintf("UPDATE keyed SET big = %s WHERE id = %d", value(), n(20)) },
		func() string {
			return fmt.Sprintf("UPDATE keyed SET s = %s, n = n + 1 WHERE id BETWEEN %d AND 12", value(), n(20))
		},
		func() string {
			return fmt.Sprintf("WITH v AS (UPDATE keyed SET u = NULL WHERE id = %d RETURNING 1) SELECT * FROM v", n(20))
		},
		func() string {
			return fmt.Sprintf("UPDATE keyed SET u = (SELECT max(u) + 1 FROM keyed) WHERE id = %d", n(20))
		},
		func() string {
			k := n(20)
			return fmt.Sprintf("UPDATE keyed SET u = -1 WHERE id = %d; UPDATE keyed SET u = -2 WHERE id = %d AND u > 0; UPDATE keyed SET u = (SELECT max(u) + 1 FROM keyed) WHERE u < 0", k, k+1)
		},
		func() string {
			k := n(20)
			return fmt.Sprintf("UPDATE keyed SET id = -1 WHERE id = %d; UPDATE keyed SET id = %d WHERE id = %d; UPDATE keyed SET id = %d WHERE id = -1", k, k, k+1, k+1)
		},
		func() string {
			return fmt.Sprintf("UPDATE keyed SET id = (SELECT max(id) + 1 FROM keyed) WHERE id = %d", n(20))
		},
		func() string { return fmt.Sprintf("DELETE FROM keyed WHERE id = %d", n(25)) },
		func() string {
			return fmt.Sprintf("INSERT INTO pair SELECT i, 'b' || i %% 3, %d FROM generate_series(%d, 12) i ON CONFLICT DO NOTHING", n(9), n(12))
		},
		func() string {
			return fmt.Sprintf("UPDATE pair SET b = b || 'x', v = v + 1 WHERE a = %d AND length(b) < 9", n(12))
		},
		func() string { return fmt.Sprintf("DELETE FROM pair WHERE a > %d", n(12)) },
		func() string {
			return fmt.Sprintf("INSERT INTO loose SELECT %d, %s FROM generate_series(1, %d)", n(3), value(), n(3))
		},
		func() string {
			return fmt.Sprintf("UPDATE loose SET a = a %% 3 + 1 WHERE ctid IN (SELECT ctid FROM loose LIMIT %d)", n(4))
		},
		func() string {
			return fmt.Sprintf("DELETE FROM loose WHERE ctid IN (SELECT ctid FROM loose WHERE a = %d LIMIT 2)", n(3))
		},
		func() string {
			return fmt.Sprintf("INSERT INTO fully VALUES (%d, %s, 0) ON CONFLICT (id) DO UPDATE SET v = fully.v + 1", n(9), value())
		},
		func() string { return fmt.Sprintf("UPDATE fully SET id = id + 10, v = 1 WHERE id = %d", n(9)) },
		func() string { return fmt.Sprintf("DELETE FROM fully WHERE id %% 10 = %d", n(9)) },
		func() string { return fmt.Sprintf("INSERT INTO ident (v) VALUES (%d)", n(9)) },
		func() string { return fmt.Sprintf("UPDATE ident SET v = %d WHERE id %% 5 = %d", n(9), n(5)) },
		func() string { return fmt.Sprintf("UPDATE ident SET id = DEFAULT WHERE id %% 7 = %d", n(7)) },
		func() string { return "SAVEPOINT x; DELETE FROM keyed; INSERT INTO loose VALUES (0); ROLLBACK TO x" },
	}
	if r.IntN(60) == 0 {
		return "TRUNCATE " + []string{"pair", "loose, fully", "keyed", "ident RESTART IDENTITY"}[r.IntN(4)]
	}
	return statements[r.IntN(len(statements))]()
}

// try runs SQL in one transaction, which the database may refuse.
func (o *origin) try(t *testing.T, sql string) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), o.conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "SET LOCAL search_path = public; "+sql)
		return err
	})
	if err != nil && !strings.HasPrefix(pg.Code(err), "23") {
		t.Fatalf("%s: %v", sql, err)
	}
}

// byCopy inserts every row by COPY.
func byCopy(c *Config) { c.copyRows = 1 }

// workers lets several sessions write, on servers that find a deadlock soon.
func workers(n int) func(*Config) {
	return func(c *Config) {
		c.Workers = n
		c.Check = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "SET deadlock_timeout = '20ms'")
			return err
		}
	}
}

// inOrder writes all rows in source order, as the slow path does.
func inOrder(c *Config) { c.inOrder = true }

// TestRandomHistories: the same history leaves what the source has, whether it is applied in small
// batches or large ones, one at a time or many on their way, over one session or several, or row by row. Run more with -histories;
// a failing seed is in the test's name.
func TestRandomHistories(t *testing.T) {
	t.Parallel()
	for i := range *histories {
		seed := uint64(i + 1)
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, seed))
			o := newOrigin(t, historyDDL, nil)
			o.spill = 20_000
			ways := map[string][]func(*Config){
				"row by row":           {limit(10_000), inOrder},
				"every row a part":     {limit(1)},
				"small batches":        {limit(7)},
				"all inserts by COPY":  {limit(50), byCopy},
				"small, over distance": {limit(7)},
				"parts, over distance": {limit(2)},
				"several at a time":    {limit(7), workers(3)},
				"several, at distance": {limit(20), workers(4)},
				"as large as possible": {limit(10_000)},
			}
			targets := map[string]*pgtest.Database{}
			for name := range ways {
				targets[name] = newTarget(t, historyDDL)
				if strings.HasSuffix(name, "distance") {
					ways[name] = append(ways[name], distant(t, targets[name], 10*time.Millisecond))
				}
			}
			for range 4 {
				for range 60 {
					var tx []string
					for range 1 + r.IntN(6) {
						tx = append(tx, randomSQL(r))
					}
					o.try(t, strings.Join(tx, "; "))
				}
				end := o.pull(t)
				for name, target := range targets {
					a := o.start(t, target, ways[name]...)
					a.wait(t, end)
					t.Logf("%s: %+v", name, a.Stats())
					_ = a.stop()
					o.equal(t, target)
				}
				if t.Failed() {
					t.FailNow()
				}
			}
		})
	}
}
