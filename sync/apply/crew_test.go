package apply

import (
	"fmt"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// inOrderOf collects the commits, which are to end where the transactions do, one after the other.
func inOrderOf(ends []change.LSN) (collect func(*Config), check func(t *testing.T)) {
	var commits []Commit
	collect = func(c *Config) { c.Events.Committed = func(e Commit) { commits = append(commits, e) } }
	return collect, func(t *testing.T) {
		t.Helper()
		transactions := 0
		for _, c := range commits {
			if transactions += c.Transactions; c.End != ends[transactions-1] {
				t.Errorf("after %d transactions it stood at %s, want %s", transactions, c.End, ends[transactions-1])
			}
		}
		if transactions != len(ends) {
			t.Errorf("%d transactions were committed, of %d", transactions, len(ends))
		}
	}
}

// TestCrew: independent batches are written beside each other, and committed in order. 60 batches take 12
// seconds where each waits for two answers before the next one is sent.
// It fails when a flight commits without waiting for the number before it.
func TestCrew(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, v text)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	ends := o.ends(t, 60, func(i int) string { return fmt.Sprintf("INSERT INTO t VALUES (%d, repeat('x', %d))", i, i%7) })
	collect, check := inOrderOf(ends)
	began := time.Now()
	a := o.start(t, target, limit(2), workers(8), collect, distant(t, target, 100*time.Millisecond))
	a.wait(t, ends[0])
	first := time.Since(began)
	a.wait(t, ends[59])
	if took := time.Since(began) - first; took > 6*time.Second {
		t.Errorf("%s for 60 batches", took)
	}
	_ = a.stop()
	o.equal(t, target)
	check(t)
	if s := a.Stats(); s.Parallel != 60 || s.Replayed != 0 {
		t.Errorf("got %+v, want 60 batches beside each other", s)
	}
}

// TestCrewHolds: rows that a flight in the air touches wait for it, whichever way it touches them: nothing
// is refused. It fails when divide does not look at the old key of a row, or at the new one, and when held
// rows do not wait for the number.
func TestCrewHolds(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, n int); CREATE TABLE bag (n int); ALTER TABLE bag REPLICA IDENTITY FULL"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	ends := o.ends(t, 50, func(i int) string {
		switch {
		case i == 0:
			return "INSERT INTO t SELECT i, 0 FROM generate_series(1, 3) i"
		case i%5 == 1:
			return fmt.Sprintf("INSERT INTO t VALUES (%d, 0); UPDATE t SET n = n + 1 WHERE id = 1", 100+i)
		case i%5 == 2:
			return fmt.Sprintf("UPDATE t SET id = id + 1000 WHERE id = %d", 100+i-1)
		case i%5 == 3:
			return fmt.Sprintf("INSERT INTO t VALUES (%d, 3); UPDATE t SET n = n + 1 WHERE id = %d", 100+i-2, 1100+i-2)
		case i%5 == 4:
			return fmt.Sprintf("DELETE FROM t WHERE id = %d; INSERT INTO bag VALUES (1), (1)", 1100+i-3)
		default:
			return "DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag); UPDATE t SET n = n + 1 WHERE id = 1"
		}
	})
	collect, check := inOrderOf(ends)
	a := o.start(t, target, limit(4), workers(6), collect, distant(t, target, 20*time.Millisecond))
	a.wait(t, ends[49])
	_ = a.stop()
	o.equal(t, target)
	check(t)
	if s := a.Stats(); s.Replayed != 0 || s.Parallel != s.Batches {
		t.Errorf("got %+v, want nothing refused", s)
	}
}

// TestCrewTurnedBack: batches that depend on each other unseen, by a unique value that the stream does not
// show, end as the source has them, and once. It fails when what was behind a flight that is turned back
// is not sent again.
func TestCrewTurnedBack(t *testing.T) {
	t.Parallel()
	const ddl = `CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, n int); CREATE TABLE bag (n int);
		INSERT INTO t VALUES (0, 'a', 0), (1, NULL, 0)`
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	ends := o.ends(t, 30, func(i int) string {
		switch i {
		case 0: // waits for the test
			return "UPDATE t SET n = 1 WHERE id = 0"
		case 1: // held back, for the one before
			return "UPDATE t SET u = NULL WHERE id = 0"
		case 2: // comes too early
			return "UPDATE t SET u = 'a' WHERE id = 1"
		}
		return fmt.Sprintf("INSERT INTO bag VALUES (%d)", i)
	})
	lock := target.Conn(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := lock.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec("BEGIN; SELECT FROM t WHERE id = 0 FOR UPDATE")
	collect, check := inOrderOf(ends)
	a := o.start(t, target, limit(2), workers(4), collect, distant(t, target, 10*time.Millisecond))
	pgtest.Eventually(t, "a flight to be turned back", func() bool {
		return target.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ficus/apply' AND datname = current_database() AND query = 'ROLLBACK'`) > 0
	})
	exec("COMMIT")
	a.wait(t, ends[29])
	_ = a.stop()
	o.equal(t, target)
	check(t)
	if s := a.Stats(); s.Parallel == 0 || s.Parallel == s.Batches {
		t.Errorf("got %+v, want some turned back", s)
	}
}

// TestCrewDeadlock: a batch waits for a row of one behind it, which waits for its number: the server ends
// that. It fails, by waiting for good, when a flight waits here for the one before it to be committed.
func TestCrewDeadlock(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE, n int)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	ends := o.ends(t, 5, func(i int) string {
		return []string{
			"INSERT INTO t SELECT i, NULL, 0 FROM generate_series(1, 2) i",
			"UPDATE t SET n = 1 WHERE id = 1",
			"UPDATE t SET u = 'x' WHERE id = 1", // held back, until the next but one has the value
			"UPDATE t SET u = NULL WHERE id = 1",
			"UPDATE t SET u = 'x' WHERE id = 2",
		}[i]
	})
	collect, check := inOrderOf(ends)
	a := o.start(t, target, limit(2), workers(4), collect, distant(t, target, 50*time.Millisecond))
	a.wait(t, ends[4])
	_ = a.stop()
	o.equal(t, target)
	check(t)
}
