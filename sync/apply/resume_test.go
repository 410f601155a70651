package apply

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestResumeAfterRefusal: for each way in which the target refuses a row, the applier stops in front
// of its transaction, and once the cause is mended goes on exactly there. The table without key shows
// every row skipped or doubled. It fails when the progress moves past the refused transaction, and
// when the transactions of the same batch before it are not written, or written twice.
func TestResumeAfterRefusal(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, v int, s text); CREATE TABLE log (n int)"
	for _, tc := range []struct{ name, spoil, sql, want, mend string }{
		{"unique violation", "INSERT INTO t VALUES (7)", "INSERT INTO t VALUES (7)", "23505", "DELETE FROM t WHERE id = 7"},
		{"check", "ALTER TABLE t ADD CONSTRAINT c CHECK (v < 5)", "UPDATE t SET v = 5", "23514", "ALTER TABLE t DROP CONSTRAINT c"},
		{"not null", "ALTER TABLE t ALTER v SET NOT NULL", "UPDATE t SET v = NULL", "23502", "ALTER TABLE t ALTER v DROP NOT NULL"},
		{"exclusion", "ALTER TABLE t ADD CONSTRAINT e EXCLUDE USING btree (v WITH =)", "INSERT INTO t VALUES (8, 'x', 1)", "23P01", "ALTER TABLE t DROP CONSTRAINT e"},
		{"too long", "ALTER TABLE t ALTER s TYPE varchar(3)", "UPDATE t SET s = 'longer'", "22001", "ALTER TABLE t ALTER s TYPE text"},
		{"another type", "ALTER TABLE t ALTER s TYPE int USING 1", "UPDATE t SET s = 'word'", "22P02", "ALTER TABLE t ALTER s TYPE text USING 'one'"},
		{"update of a missing row", "DELETE FROM t WHERE id = 2", "UPDATE t SET v = 5", "row is not there", "INSERT INTO t VALUES (2, 'b', 2, 'one')"},
		{"delete of a missing row", "DELETE FROM t WHERE id = 2", "DELETE FROM t", "row is not there", "INSERT INTO t VALUES (2, 'b', 2, 'one')"},
		{"missing privilege", "REVOKE UPDATE ON t FROM %[1]s", "UPDATE t SET v = 5", "42501", "GRANT UPDATE ON t TO %[1]s"},
		{"missing column", "ALTER TABLE t DROP v", "UPDATE t SET s = 'x'", `no column "v"`, "ALTER TABLE t ADD v int; UPDATE t SET v = id"},
		{"missing table", "ALTER TABLE t RENAME TO gone", "UPDATE t SET s = 'x'", "not at the destination", "ALTER TABLE gone RENAME TO t"},
	} {
		batches := []int{0}
		if tc.want == "23505" || tc.want == "row is not there" { // also in the middle of a large transaction
			batches = append(batches, 1)
		}
		for _, rows := range batches {
			t.Run(fmt.Sprintf("%s/%d", tc.name, rows), func(t *testing.T) {
				t.Parallel()
				o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
				role, as := ordinaryRole(t, target)
				spoil, mend := strings.ReplaceAll(tc.spoil, "%[1]s", role), strings.ReplaceAll(tc.mend, "%[1]s", role)
				start := func() *running { return o.start(t, target, limit(rows), as) }
				a := start()
				o.tx(t, "INSERT INTO t VALUES (1, 'a', 1, 'one'), (2, 'b', 2, 'one'); INSERT INTO log VALUES (0)")
				a.wait(t, o.pull(t))
				_ = a.stop()

				target.Exec(t, spoil)
				for i := range 5 {
					o.tx(t, fmt.Sprintf("INSERT INTO log VALUES (%d)", 1+i))
				}
				before := lsnNow(t, o.Database)
				o.tx(t, "INSERT INTO log VALUES (100); "+tc.sql+"; INSERT INTO log VALUES (101)")
				for i := range 5 {
					o.tx(t, fmt.Sprintf("INSERT INTO log VALUES (%d)", 200+i))
				}
				end := o.pull(t)
				for range 2 { // not mended yet: stops again, and nothing has changed
					a = start()
					err := a.fails(t)
					if !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "public.t") || hint.Of(err) == "" {
						t.Errorf("got %v (hint %q), want %s", err, hint.Of(err), tc.want)
					}
					if refused, ok := errors.AsType[*RowError](err); ok && rows == 0 && (refused.End <= before || refused.End >= end) {
						t.Errorf("names the transaction that ends at %s, not the one after %s", refused.End, before)
					}
				}
				if got := target.Strings(t, "SELECT string_agg(n::text, ' ' ORDER BY n) FROM log")[0]; got != "0 1 2 3 4 5" && tc.name != "missing table" {
					t.Errorf("rows %s are there, want those before the refused transaction", got)
				}
				target.Exec(t, mend)
				a = start()
				a.wait(t, end)
				o.equal(t, target)
			})
		}
	}
}

// ordinaryRole makes a role that may do what the applier needs and is no superuser.
func ordinaryRole(t *testing.T, target *pgtest.Database) (name string, as func(*Config)) {
	t.Helper()
	name = "role_" + target.Name
	target.Exec(t, fmt.Sprintf(`CREATE ROLE %[1]s LOGIN; GRANT USAGE ON SCHEMA ficus, public TO %[1]s; GRANT ALL ON ALL TABLES IN SCHEMA ficus, public TO %[1]s`, name))
	t.Cleanup(func() { target.Exec(t, fmt.Sprintf(`DROP OWNED BY %[1]s; DROP ROLE %[1]s`, name)) })
	c := target.DSN.Config()
	dsn, err := pg.Parse(fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable", c.Host, c.Port, name, c.Database))
	if err != nil {
		t.Fatal(err)
	}
	return name, func(c *Config) { c.DSN = dsn }
}
