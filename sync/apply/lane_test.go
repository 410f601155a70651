package apply

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/faultpg"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// distant puts so much distance between the applier and its target that batches pile up on the way.
func distant(t *testing.T, target *pgtest.Database, roundTrip time.Duration) func(*Config) {
	t.Helper()
	proxy := faultpg.New(t, target.DSN)
	proxy.Delay(roundTrip)
	return func(c *Config) { c.DSN = proxy.DSN(target.Name) }
}

// asOrigin lets the target's triggers fire, as where the role may not act as a replica.
func asOrigin(c *Config) {
	c.Check = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SET session_replication_role = origin")
		return err
	}
}

// ends returns the ends of n transactions that tx makes.
func (o *origin) ends(t *testing.T, n int, tx func(i int) string) []change.LSN {
	t.Helper()
	ends := make([]change.LSN, n)
	for i := range n {
		o.tx(t, tx(i))
		ends[i] = o.pull(t)
	}
	o.log.merge()
	return ends
}

// TestOverDistance: batches do not wait for one another's answers. 60 batches of one transaction take
// 12 seconds where they do.
func TestOverDistance(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (n int)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	ends := o.ends(t, 60, func(i int) string { return fmt.Sprintf("INSERT INTO t VALUES (%d)", i) })
	began := time.Now()
	a := o.start(t, target, limit(2), distant(t, target, 200*time.Millisecond))
	a.wait(t, ends[0])
	first := time.Since(began)
	a.wait(t, ends[59])
	if took := time.Since(began) - first; took > 6*time.Second || a.Stats().Batches != 60 {
		t.Errorf("%s for %d batches", took, a.Stats().Batches)
	}
	o.equal(t, target)
}

// TestRefusedOnTheWay: what was on its way behind a refused batch comes after it, and once.
// It fails when a batch that was sent behind a refused one is not sent again, or is left to commit.
func TestRefusedOnTheWay(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE); CREATE TABLE bag (n int)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	ends := o.ends(t, 40, func(i int) string {
		switch i {
		case 0:
			return "INSERT INTO t VALUES (1, 'a'), (2, 'b')"
		case 11, 12, 25: // two rows swap their unique values
			return `UPDATE t SET u = 'x' || u WHERE id = 1; UPDATE t SET u = CASE u WHEN 'a' THEN 'b' ELSE 'a' END WHERE id = 2;
				UPDATE t SET u = CASE u WHEN 'xa' THEN 'b' ELSE 'a' END WHERE id = 1`
		}
		return fmt.Sprintf("INSERT INTO bag VALUES (%d)", i)
	})
	var commits []Commit
	a := o.start(t, target, limit(4), distant(t, target, 50*time.Millisecond), func(c *Config) {
		c.Events.Committed = func(e Commit) { commits = append(commits, e) }
	})
	a.wait(t, ends[39])
	_ = a.stop()
	o.equal(t, target)
	if s := a.Stats(); s.Replayed != 3 || s.Transactions != 40 {
		t.Errorf("got %+v, want three batches replayed, of 40 transactions", s)
	}
	transactions := 0
	for _, c := range commits {
		if transactions += c.Transactions; c.End != ends[transactions-1] {
			t.Errorf("after %d transactions it stood at %s, want %s", transactions, c.End, ends[transactions-1])
		}
	}
}

// TestCommitRefusedOnTheWay: a COMMIT that fails leaves no failed transaction behind, in which those
// after it would fail, too. It fails when a batch moves the progress from wherever it stands.
func TestCommitRefusedOnTheWay(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl+`;
		CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$;
		CREATE CONSTRAINT TRIGGER no AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.id = 50) EXECUTE FUNCTION no()`)
	ends := o.ends(t, 100, func(i int) string { return fmt.Sprintf("INSERT INTO t VALUES (%d)", i) })
	a := o.start(t, target, limit(2), asOrigin, distant(t, target, 100*time.Millisecond))
	if err := a.fails(t); !strings.Contains(err.Error(), "commit everything up to "+ends[50].String()) {
		t.Errorf("got %v", err)
	}
	got := target.Strings(t, "SELECT count(*), max(id), (SELECT lsn FROM ficus.progress) FROM t")[0]
	if want := fmt.Sprintf("50|49|%s", ends[49]); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestMovedOnTheWay: another session moves the progress while batches are on their way: they are
// refused, and nothing is doubled. It fails when a batch moves the progress from wherever it stands.
func TestMovedOnTheWay(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (n int)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	ends := o.ends(t, 20, func(i int) string { return fmt.Sprintf("INSERT INTO t VALUES (%d)", i) })
	first := o.start(t, target, limit(2))
	first.wait(t, ends[0])
	release, err := first.StopAt(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	at := int(target.Int(t, "SELECT count(*) FROM t"))
	_ = first.stop()

	orphan := target.Conn(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := orphan.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	end := ends[min(at+2, 19)]
	exec(fmt.Sprintf("BEGIN; INSERT INTO t SELECT generate_series(%d, %d); UPDATE ficus.progress SET lsn = '%s'", at, min(at+2, 19), end))
	lost := make(chan error, 10)
	a := o.start(t, target, limit(2), func(c *Config) { c.Events.Disconnected = func(err error) { lost <- err } })
	pgtest.Eventually(t, "the applier waits for the orphan", func() bool {
		return target.Int(t, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ficus/apply' AND datname = current_database() AND wait_event_type = 'Lock'") == 1
	})
	exec("COMMIT")
	a.wait(t, ends[19])
	o.equal(t, target)
	if len(lost) == 0 {
		t.Fatal("it wrote over the orphan")
	}
	if err := <-lost; !errors.Is(err, errMoved) {
		t.Errorf("lost by %v, want errMoved", err)
	}
}

// TestRowsLeftOut: where the role may not act as a replica, a trigger of the target can leave out a
// row. It fails when such inserts are not sure ones.
func TestRowsLeftOut(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl+`;
		CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$;
		CREATE TRIGGER no BEFORE INSERT ON t FOR EACH ROW WHEN (NEW.id = 2) EXECUTE FUNCTION no()`)
	role := target.Name + "_writer"
	target.Exec(t, fmt.Sprintf(`CREATE ROLE %[1]s LOGIN; GRANT ALL ON t TO %[1]s; GRANT ALL ON SCHEMA ficus TO %[1]s; GRANT ALL ON ALL TABLES IN SCHEMA ficus TO %[1]s`, role))
	t.Cleanup(func() { target.Exec(t, fmt.Sprintf("DROP OWNED BY %[1]s; DROP ROLE %[1]s", role)) })
	ends := o.ends(t, 4, func(i int) string { return fmt.Sprintf("INSERT INTO t VALUES (%d)", i) })
	a := o.start(t, target, limit(2), func(c *Config) {
		dsn, err := pg.Parse(fmt.Sprintf("postgresql://%s@/%s?host=%s&port=%d", role, target.Name, target.Host(), target.Port()))
		if err != nil {
			t.Fatal(err)
		}
		c.DSN = dsn
	})
	var re *RowError
	if err := a.fails(t); !errors.As(err, &re) || re.End != ends[2] {
		t.Errorf("got %v, want a RowError at %s", err, ends[2])
	}
	if got := target.Strings(t, "SELECT string_agg(id::text, ' ') FROM t")[0]; got != "0 1" {
		t.Errorf("rows %s are there, want 0 1", got)
	}
}

// TestStopWithBatchesOnTheWay: a stop waits for all of them, wherever it is asked for. It fails when
// a stop does not wait for what is being written.
func TestStopWithBatchesOnTheWay(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	ends := o.ends(t, 100, func(i int) string { return fmt.Sprintf("INSERT INTO t VALUES (%d)", i) })
	a := o.start(t, target, limit(2), distant(t, target, 20*time.Millisecond))
	stopped := func(at change.LSN) int64 {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
		defer cancel()
		release, err := a.StopAt(ctx, at)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		if s := a.gate.read(); s.writing != 0 {
			t.Errorf("stopped while it was writing up to %s", s.writing)
		}
		n := target.Int(t, "SELECT count(*) FROM t")
		if progress := target.Strings(t, "SELECT lsn FROM ficus.progress")[0]; progress != a.Applied().String() || n > 0 && a.Applied() != ends[n-1] {
			t.Errorf("%d rows, progress %s, applied %s", n, progress, a.Applied())
		}
		return n
	}
	a.wait(t, ends[3])
	n := stopped(0)
	if got := stopped(ends[n+20]); got != n+21 {
		t.Errorf("%d rows at the end of transaction %d", got, n+20)
	}
	if got := stopped(ends[n+40] + 1); got != n+41 {
		t.Errorf("%d rows behind transaction %d", got, n+40)
	}
	a.wait(t, ends[99])
	o.equal(t, target)
}
