package apply

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
)

func sourceWins(c *Config) { c.OnConflict = SourceWins }

// decisions returns what ficus.conflicts holds of the link.
const decisions = `SELECT lsn, table_name, op, key, conflict, decision FROM ficus.conflicts WHERE link = 'test' ORDER BY id`

// TestSourceWins: whatever rows a stranger put or took away at the destination, it ends with the
// source's, and each decision is recorded with the transaction that it was about. It fails when only the
// first of several rows in the way gives way, and when a row that a delete wants is missed.
func TestSourceWins(t *testing.T) {
	t.Parallel()
	const ddl = `CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, v int, big text); CREATE TABLE f (a int, b text); ALTER TABLE f REPLICA IDENTITY FULL;
		CREATE TABLE a (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int); CREATE TABLE two (a int, b int, c int, PRIMARY KEY (a, b), UNIQUE (b, c))`
	for _, tc := range []struct{ name, mutate, sql, want string }{
		{"update of a missing row", "DELETE FROM t WHERE id = 2", "UPDATE t SET v = 5", "public.t|update|id=2|row is not there|inserted"},
		{"new key of a missing row", "DELETE FROM t WHERE id = 2", "UPDATE t SET id = 9 WHERE id = 2", "public.t|update|id=2|row is not there|inserted"},
		{"delete of a missing row", "DELETE FROM t WHERE id = 2", "DELETE FROM t", "public.t|delete|id=2|row is not there|nothing to delete"},
		{"key in the way", "INSERT INTO t VALUES (7, 'stranger')", "INSERT INTO t VALUES (6, 'x'), (7, 'y'), (8, 'z')", "public.t|insert|id=7|unique key t_pkey|removed id=7"},
		{"unique value in the way", "INSERT INTO t VALUES (70, 'y')", "INSERT INTO t VALUES (6, 'x'), (7, 'y'), (8, 'z')", "public.t|insert|id=7|unique key t_u_key|removed id=70"},
		{
			"both in the way", "INSERT INTO t VALUES (7, 'stranger'), (70, 'y')", "INSERT INTO t VALUES (7, 'y')",
			"public.t|insert|id=7|unique key t_pkey; unique key t_u_key|removed id=7; removed id=70",
		},
		{"update to a value in the way", "INSERT INTO t VALUES (70, 'y')", "UPDATE t SET u = 'y' WHERE id = 1", "public.t|update|id=1|unique key t_u_key|removed id=70"},
		{
			"missing, and its value in the way", "DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (70, 'y')", "UPDATE t SET u = 'y' WHERE id = 2",
			"public.t|update|id=2|row is not there; unique key t_u_key|inserted; removed id=70",
		},
		{"row without key", "DELETE FROM f WHERE a = 2", "UPDATE f SET b = 'x' WHERE a = 2; DELETE FROM f WHERE a = 1", "public.f|update||row is not there|inserted"},
		{"identity always", "DELETE FROM a WHERE id = 1", "UPDATE a SET v = 5", "public.a|update|id=1|row is not there|inserted"},
		{"several columns", "INSERT INTO two VALUES (9, 1, 1)", "INSERT INTO two VALUES (1, 1, 1)", "public.two|insert|a=1, b=1|unique key two_b_c_key|removed a=9, b=1"},
		{
			"two transactions", "DELETE FROM t", "UPDATE t SET v = 5 WHERE id = 2; COMMIT; BEGIN; DELETE FROM t WHERE id = 1",
			"public.t|update|id=2|row is not there|inserted public.t|delete|id=1|row is not there|nothing to delete",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
			a := o.start(t, target, sourceWins)
			o.tx(t, "INSERT INTO t VALUES (1, 'a'), (2, 'b'); INSERT INTO f VALUES (1, 'a'), (2, 'b'); INSERT INTO a (v) VALUES (1), (2)")
			a.wait(t, o.pull(t))
			_ = a.stop()
			target.Exec(t, tc.mutate)
			o.tx(t, tc.sql)
			var got, ends []string
			end := o.pull(t)
			a = o.start(t, target, sourceWins)
			a.wait(t, end)
			o.tx(t, "UPDATE t SET v = 100 WHERE id < 3; INSERT INTO t VALUES (500, 'later')") // nothing that was decided is in the way
			a.wait(t, o.pull(t))
			if tc.name != "two transactions" {
				o.equal(t, target)
			}
			for _, row := range target.Strings(t, decisions) {
				at, rest, _ := strings.Cut(row, "|")
				got, ends = append(got, rest), append(ends, at)
			}
			if diff := cmp.Diff(tc.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("decisions: -want +got:\n%s", diff)
			}
			if ends[len(ends)-1] != end.String() {
				t.Errorf("recorded for the transaction that ends at %s, want %s", ends[len(ends)-1], end)
			}
			if s := a.Stats(); s.Decided != int64(len(got)) {
				t.Errorf("counted %d decisions, want %d", s.Decided, len(got))
			}
		})
	}
}

// TestSourceWinsStops: what is no conflict of rows, or would take a guess, stops as without it, and
// leaves no trace. It fails when a key decides that the source does not have, or one with a condition, and
// when a row is put back without its large value.
func TestSourceWinsStops(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, u text, v int, big text); CREATE TABLE d (id int PRIMARY KEY, u int UNIQUE DEFERRABLE); CREATE UNIQUE INDEX part ON d (u) WHERE u > 100"
	for _, tc := range []struct{ name, mutate, sql, want string }{
		{"large value not in the stream", "DELETE FROM t WHERE id = 2", "UPDATE t SET v = 5", `update row id=2 of public.t: row is not there; source-wins does not decide this: the update leaves out the large value of "big"`},
		{"check", "ALTER TABLE t ADD CHECK (v < 3)", "UPDATE t SET v = 5", "23514"},
		{"not null", "ALTER TABLE t ALTER v SET NOT NULL", "UPDATE t SET v = NULL", "23502"},
		{"too long", "ALTER TABLE t ALTER u TYPE varchar(3)", "UPDATE t SET u = 'secret'", "22001"},
		{"exclusion", "ALTER TABLE t ADD EXCLUDE USING btree (u WITH =)", "INSERT INTO t VALUES (5, 'a')", "23P01"},
		{"unique at the target alone", "CREATE UNIQUE INDEX ON t (u)", "INSERT INTO t VALUES (5, 'a')", `the source does not keep "u" unique`},
		{"unique at commit only", "ALTER TABLE d DROP CONSTRAINT d_u_key, ADD UNIQUE (u); INSERT INTO d VALUES (9, 5)", "INSERT INTO d VALUES (1, 5)", `the source does not keep "u" unique`},
		{"unique with a condition", "INSERT INTO d VALUES (9, 500); ALTER TABLE d DROP CONSTRAINT d_u_key", "INSERT INTO d VALUES (1, 500)", "part has a condition"},
		{"privilege", "", "UPDATE t SET v = 5", "42501"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
			a := o.start(t, target, sourceWins)
			o.tx(t, "INSERT INTO t VALUES (1, 'a', 1, "+big+"), (2, 'b', 1, "+big+")")
			a.wait(t, o.pull(t))
			_ = a.stop()
			if tc.name == "privilege" { // a rule of the target's own: what it raises is nobody's row
				target.Exec(t, `CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE insufficient_privilege; END$$;
					CREATE TRIGGER no BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION no(); ALTER TABLE t ENABLE ALWAYS TRIGGER no`)
			} else {
				target.Exec(t, tc.mutate)
			}
			o.tx(t, "INSERT INTO t VALUES (100, 'ok', 1)")
			o.tx(t, "DELETE FROM t WHERE id = 100; "+tc.sql)
			o.pull(t)
			err := o.start(t, target, sourceWins).fails(t)
			if !strings.Contains(err.Error(), tc.want) || hint.Of(err) == "" {
				t.Errorf("got %v (hint %q), want %q", err, hint.Of(err), tc.want)
			}
			if n := target.Int(t, "SELECT count(*) FROM t WHERE id = 100"); n != 1 {
				t.Error("the applier does not stand in front of the transaction")
			}
			if got := target.Strings(t, decisions); len(got) != 0 {
				t.Errorf("decided %q", got)
			}
		})
	}
}

// TestSourceWinsInParts: a transaction that comes in parts is recorded under its end, also where the
// parts that decided were written long before the end was known. It fails when nobody adds it.
func TestSourceWinsInParts(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, v int)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	o.spill = 2000
	target.Exec(t, "INSERT INTO t SELECT i, -1 FROM generate_series(1, 1000, 100) i")
	o.tx(t, "INSERT INTO t SELECT i, 0 FROM generate_series(1, 1000) i")
	end := o.pull(t)
	a := o.start(t, target, sourceWins, limit(37))
	a.wait(t, end)
	o.equal(t, target)
	if got := target.Strings(t, "SELECT count(*), min(lsn), max(lsn) FROM ficus.conflicts"); got[0] != fmt.Sprintf("10|%s|%[1]s", end) {
		t.Errorf("got %q, want 10 decisions at %s", got, end)
	}
}

// TestSourceWinsTouches: the keys of rows that were removed count as changed, so that a delta proof
// looks at them: the source may have such a row. It fails when only the row that was written counts.
func TestSourceWinsTouches(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	target.Exec(t, "INSERT INTO t VALUES (70, 'x')")
	o.tx(t, "INSERT INTO t VALUES (1, 'x')")
	end := o.pull(t)
	a := o.start(t, target, sourceWins, func(c *Config) { c.Touch = true })
	a.wait(t, end)
	want := map[string]change.LSN{`"public"."t"/1`: end, `"public"."t"/70`: end}
	if diff := cmp.Diff(want, o.log.touched); diff != "" {
		t.Errorf("touched: -want +got:\n%s", diff)
	}
}

// TestSourceWinsExactlyOnce: however often the applier and its session are killed, each decision is
// recorded once. It fails when a decision is recorded outside the transaction that carries it out, and
// when what was sent behind a conflict is not sent again.
func TestSourceWinsExactlyOnce(t *testing.T) {
	t.Parallel()
	const ddl, rows = "CREATE TABLE t (id int PRIMARY KEY, v int)", 300
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	target.Exec(t, fmt.Sprintf("INSERT INTO t SELECT i, -1 FROM generate_series(1, %d, 3) i", rows))
	for i := range rows {
		o.tx(t, fmt.Sprintf("INSERT INTO t VALUES (%d, 0)", i+1))
	}
	end := o.pull(t)
	rng := rand.New(rand.NewPCG(3, 4))
	restarts := 0
	for done := false; !done; restarts++ {
		a := o.start(t, target, sourceWins, limit(1+rng.IntN(20)))
		timer := time.NewTimer(time.Duration(rng.Int64N(int64(30 * time.Millisecond))))
		<-timer.C
		if restarts%2 == 0 {
			target.Exec(t, terminateSQL)
		}
		if err := a.stop(); err != nil {
			t.Fatal(err)
		}
		done = a.Applied() >= end || restarts > 100
	}
	o.start(t, target, sourceWins).wait(t, end)
	o.equal(t, target)
	got := target.Strings(t, "SELECT count(*), count(DISTINCT key), count(DISTINCT lsn) FROM ficus.conflicts")
	if want := fmt.Sprintf("%d|%[1]d|%[1]d", (rows+2)/3); got[0] != want {
		t.Errorf("decisions, keys, transactions: got %s, want %s, after %d restarts", got[0], want, restarts)
	}
	t.Logf("%d restarts", restarts)
}
