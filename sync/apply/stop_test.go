package apply

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/transform"
)

// TestRefusedRow: what cannot be applied stops the applier, with table, key and advice, after all
// transactions before it and before any part of its own.
func TestRefusedRow(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, a text, n numeric); CREATE TABLE f (a int, b text); ALTER TABLE f REPLICA IDENTITY FULL"
	for _, tc := range []struct {
		name, mutate, sql string
		want              []string
		not               string
	}{
		{"update of a missing row", "DELETE FROM t WHERE id = 2", "UPDATE t SET a = 'x'", []string{"update row id=2 of public.t", "row is not there"}, ""},
		{"delete of a missing row", "DELETE FROM t WHERE id = 2", "DELETE FROM t", []string{"delete row id=2 of public.t", "row is not there"}, ""},
		{"row in the way", "INSERT INTO t VALUES (7, 'foreign')", "INSERT INTO t VALUES (6, 'secret'), (7, 'secret')", []string{"insert row id=7 of public.t", "23505"}, "secret"},
		{"value that does not fit", "ALTER TABLE t ALTER a TYPE int USING 1", "UPDATE t SET a = 'secret' WHERE id = 1", []string{"update row id=1 of public.t", "22P02", "…"}, "secret"},
		{"value too long", "ALTER TABLE t ALTER a TYPE varchar(3)", "UPDATE t SET a = 'secret' WHERE id = 1", []string{"update row id=1", "22001"}, "secret"},
		{"row without key", "DELETE FROM f WHERE a = 2", "DELETE FROM f", []string{"delete a row of public.f", "row is not there"}, "secret"},
		{"one duplicate is missing", "DELETE FROM f WHERE a = 3 AND ctid = (SELECT min(ctid) FROM f WHERE a = 3)", "UPDATE f SET a = 4 WHERE a = 3", []string{"update a row of public.f"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
			a := o.start(t, target)
			o.tx(t, "INSERT INTO t VALUES (1, 'a'), (2, 'b'); INSERT INTO f VALUES (1, 'secret'), (2, 'secret'), (3, 'c'), (3, 'c')")
			a.wait(t, o.pull(t))
			target.Exec(t, tc.mutate)
			_ = a.stop()

			o.tx(t, "INSERT INTO t VALUES (100)")
			o.tx(t, "INSERT INTO t VALUES (101); "+tc.sql)
			end := o.pull(t)
			err := o.start(t, target).fails(t)
			var re *RowError
			if !errors.As(err, &re) {
				t.Fatalf("got %v, want a RowError", err)
			}
			if re.End != end {
				t.Errorf("transaction is %s, want %s", re.End, end)
			}
			if hint.Of(err) == "" {
				t.Errorf("no hint for %v", err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q in it", err, want)
				}
			}
			if tc.not != "" && strings.Contains(err.Error(), tc.not) {
				t.Errorf("error tells a row value: %v", err)
			}
			if n := target.Int(t, "SELECT count(*) FROM t WHERE id = 100"); n != 1 {
				t.Error("the transaction before is not there")
			}
			if n := target.Int(t, "SELECT count(*) FROM t WHERE id IN (6, 101)"); n != 0 {
				t.Errorf("%d rows of the refused transaction are there", n)
			}
		})
	}
}

// TestChangedDefinition: DDL stops the applier before any row of the changed table, and after
// everything before it.
func TestChangedDefinition(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, a varchar(5), b int); CREATE TABLE other (id int PRIMARY KEY)"
	for _, tc := range []struct{ name, source, target, want string }{
		{"column added", "ALTER TABLE t ADD c int", "", `new column "c"`},
		{"type changed in use", "ALTER TABLE t ALTER b TYPE bigint", "", `another type for column "b"`},
		{"column dropped", "ALTER TABLE t DROP b", "", `no more column "b"`},
		{"column renamed", "ALTER TABLE t RENAME b TO c", "", `column "c"`},
		{"type changed", "ALTER TABLE t ALTER b TYPE bigint", "", `another type for column "b"`},
		{"table renamed", "ALTER TABLE t RENAME TO u; CREATE VIEW t AS SELECT * FROM u", "", `it is now public.u`},
		{"type widened", "ALTER TABLE t ALTER a TYPE varchar(10)", "", `another type for column "a"`},
		{"target lacks a column", "", "ALTER TABLE t DROP b", `no column "b"`},
		{"target lacks the table", "", "DROP TABLE t", "not at the destination"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
			o.tx(t, "INSERT INTO other VALUES (1)")
			if strings.HasSuffix(tc.name, "in use") {
				o.tx(t, "INSERT INTO t VALUES (0, 'z')")
			}
			if tc.source != "" {
				o.Exec(t, tc.source)
			}
			if tc.target != "" {
				target.Exec(t, tc.target)
			}
			o.tx(t, "INSERT INTO other VALUES (2); INSERT INTO t VALUES (1, 'a')")
			o.pull(t)
			err := o.start(t, target).fails(t)
			if !errors.Is(err, ErrSchemaChanged) || hint.Of(err) == "" || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "public.t") {
				t.Errorf("got %v (hint %q), want ErrSchemaChanged with %q and a hint", err, hint.Of(err), tc.want)
			}
			want := int64(1)
			if tc.want == "not at the destination" {
				want = 0
			}
			if n := target.Int(t, "SELECT count(*) FROM other"); n != want {
				t.Errorf("%d rows in other, want %d", n, want)
			}
		})
	}
}

// TestComputedNeedsFull: an update that leaves out a value which a rule reads stops; one that leaves
// out another does not.
func TestComputedNeedsFull(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, a text, unused text, n int)"
	o := newOrigin(t, ddl, map[string]transform.Rule{"t": {Drop: []string{"unused"}, Columns: map[string]string{"len": "length(a)"}}})
	target := newTarget(t, "CREATE TABLE t (id int PRIMARY KEY, a text, n int, len int)")
	a := o.start(t, target)
	o.tx(t, "INSERT INTO t VALUES (1, "+big+", 'u', 1), (2, 'a', "+big+", 1)")
	o.tx(t, "UPDATE t SET n = 2 WHERE id = 2")
	a.wait(t, o.pull(t))
	o.equal(t, target)
	o.tx(t, "UPDATE t SET n = 2 WHERE id = 1")
	o.pull(t)
	if err := a.fails(t); !strings.Contains(err.Error(), `"a"`) || !strings.Contains(hint.Of(err), "REPLICA IDENTITY FULL") {
		t.Errorf("got %v (hint %q)", err, hint.Of(err))
	}
}

// TestReplay: batches that the database refuses at first are right in the end, and counted.
func TestReplay(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, u text UNIQUE)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	a := o.start(t, target)
	o.tx(t, "INSERT INTO t VALUES (1, 'a'), (2, 'b')")
	a.wait(t, o.pull(t))
	if s := a.Stats(); s.Replayed != 0 || s.Rows != 2 || s.Transactions != 1 {
		t.Errorf("got %+v, want nothing replayed", s)
	}
	o.tx(t, "UPDATE t SET u = 'x' WHERE id = 1; UPDATE t SET u = 'a' WHERE id = 2; UPDATE t SET u = 'b' WHERE id = 1")
	a.wait(t, o.pull(t))
	o.equal(t, target)
	if s := a.Stats(); s.Replayed != 1 || s.Rows != 5 {
		t.Errorf("got %+v, want one batch replayed", s)
	}
}

// TestTriggersThatAlwaysFire see rows in source order, each of them.
func TestTriggersThatAlwaysFire(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY, a int)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl+`; CREATE TABLE seen (n int GENERATED ALWAYS AS IDENTITY, what text);
		CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO public.seen (what) VALUES (TG_OP || NEW.id); RETURN NEW; END$$;
		CREATE TRIGGER see BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION see(); CREATE TRIGGER no BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION see();
		ALTER TABLE t ENABLE ALWAYS TRIGGER see`)
	o.tx(t, "INSERT INTO t VALUES (2, 0), (1, 0); UPDATE t SET a = 1 WHERE id = 2; INSERT INTO t VALUES (3, 0)")
	o.start(t, target).wait(t, o.pull(t))
	got := strings.Join(target.Strings(t, "SELECT what FROM seen ORDER BY n"), " ")
	if want := "INSERT2 INSERT1 UPDATE2 INSERT3"; got != want {
		t.Errorf("trigger saw %s, want %s", got, want)
	}
}

func TestStopAt(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE big (id int PRIMARY KEY)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	var received atomic.Uint64
	a := o.start(t, target, limit(3), func(c *Config) { c.Received = func() change.LSN { return change.LSN(received.Load()) } })
	count := func() int64 { return target.Int(t, "SELECT count(*) FROM t") }
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()

	// Stop where nothing has come yet; then everything comes in one chunk.
	hold, err := a.StopAt(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends []change.LSN
	for i := range 20 {
		o.tx(t, fmt.Sprintf("INSERT INTO t VALUES (%d)", i))
		ends = append(ends, lsnNow(t, o.Database))
	}
	o.pull(t)
	// A stop at a position takes over from the one without.
	release, err := a.StopAt(ctx, ends[6])
	if err != nil {
		t.Fatal(err)
	}
	hold()
	if n := count(); n != 7 {
		t.Fatalf("%d transactions are there, want 7", n)
	}
	// A second, earlier stop is past; a later one waits for the first to go.
	if _, err := a.StopAt(ctx, ends[2]); !errors.Is(err, ErrPassed) {
		t.Errorf("got %v, want ErrPassed", err)
	}
	later := make(chan error, 1)
	var releaseLater func()
	go func() {
		var err error
		releaseLater, err = a.StopAt(ctx, ends[12])
		later <- err
	}()
	select {
	case err := <-later:
		t.Fatalf("stopped at %s behind a stop at %s: %v", ends[12], ends[6], err)
	case <-time.After(50 * time.Millisecond):
	}
	release()
	release()
	if err := <-later; err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 13 {
		t.Fatalf("%d transactions are there, want 13", n)
	}
	releaseLater()
	a.wait(t, o.log.Head())

	// Idle: no transaction ends at the position, and it counts only once it is received.
	idle := lsnNow(t, o.Database) + 100
	short, cancelShort := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancelShort()
	if _, err := a.StopAt(short, idle); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want a time-out: the position was not received", err)
	}
	received.Store(uint64(idle))
	release, err = a.StopAt(ctx, idle)
	if err != nil {
		t.Fatal(err)
	}
	o.tx(t, "INSERT INTO t VALUES (1000)")
	end := o.pull(t)
	pgtest.Eventually(t, "the next transaction waits", func() bool { return a.gate.read().standing == end })
	if n := count(); n != 20 {
		t.Errorf("%d transactions are there, want 20", n)
	}
	release()
	a.wait(t, end)

	// A large transaction is under way, in parts: nothing of it shows.
	hold, err = a.StopAt(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	o.tx(t, "INSERT INTO big SELECT generate_series(1, 50)")
	end = o.pull(t)
	release, err = a.StopAt(ctx, end-1)
	if err != nil {
		t.Fatal(err)
	}
	hold()
	if n := target.Int(t, "SELECT count(*) FROM big"); n != 0 {
		t.Errorf("%d rows of a transaction behind the stop", n)
	}
	release()
	a.wait(t, end)
	o.equal(t, target)
}

// TestStopBehindALargeTransaction: a stop that comes while a transaction is written in parts waits for its end. Held in the
// middle it would be open for as long, and a slot that is made on the same server waits for every open transaction.
//
// Break that it catches: parts in the middle of a transaction that wait for a stop.
func TestStopBehindALargeTransaction(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE big (id int PRIMARY KEY)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	blocker, err := target.Conn(t).Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blocker.Exec(ctx, "INSERT INTO public.big VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	a := o.start(t, target, limit(3))
	o.tx(t, "INSERT INTO big SELECT generate_series(1, 300)")
	o.pull(t)
	pgtest.Eventually(t, "the first part to be written", func() bool {
		return target.Int(t, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") > 0
	})
	stopped := make(chan error, 1)
	var release func()
	go func() {
		var err error
		release, err = a.StopAt(ctx, 0)
		stopped <- err
	}()
	pgtest.Eventually(t, "the stop to be asked for", func() bool {
		a.gate.mu.Lock()
		defer a.gate.mu.Unlock()
		return len(a.gate.mu.holds) > 0
	})
	if err := blocker.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if n := target.Int(t, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_xid IS NOT NULL"); n != 0 {
		t.Errorf("%d transactions are open at the stop", n)
	}
	if n := target.Int(t, "SELECT count(*) FROM big"); n != 300 {
		t.Errorf("%d rows at the stop, want 300", n)
	}
	release()
}

// TestStopAtUnderLoad stops again and again while transactions keep coming; at every stop the
// target must hold exactly what the source had there.
func TestStopAtUnderLoad(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE l (id int PRIMARY KEY, v int); CREATE TABLE r (id int PRIMARY KEY, v int)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	ends := map[change.LSN]int64{}
	var order []change.LSN
	for i := range 200 {
		o.tx(t, fmt.Sprintf("INSERT INTO l VALUES (%d, 0); INSERT INTO r VALUES (%d, 0)", i, i))
		end := o.pull(t)
		ends[end] = int64(i + 1)
		order = append(order, end)
	}
	a := o.start(t, target, limit(7))
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	stops := 0
	for _, at := range order {
		release, err := a.StopAt(ctx, at)
		if errors.Is(err, ErrPassed) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		got := target.Int(t, "SELECT (SELECT count(*) FROM l) * 1000 + (SELECT count(*) FROM r)")
		if want := ends[at] * 1001; got != want {
			t.Fatalf("at %s: got %d, want %d", at, got, want)
		}
		stops++
		release()
	}
	if stops < 2 {
		t.Errorf("only %d stops", stops)
	}
	a.wait(t, order[len(order)-1])
	o.equal(t, target)
}

func TestSignal(t *testing.T) {
	t.Parallel()
	const control = "; CREATE SCHEMA ficus; CREATE TABLE ficus.signal (nonce text PRIMARY KEY, at timestamptz DEFAULT now()); CREATE TABLE ficus.ownership (only_row bool PRIMARY KEY DEFAULT true, migration text, epoch bigint, owner text)"
	const ddl = "CREATE TABLE t (id int PRIMARY KEY)"
	o, target := newOrigin(t, ddl+control, nil), newTarget(t, ddl)
	a := o.start(t, target)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	o.tx(t, "INSERT INTO ficus.signal VALUES ('one')")
	o.tx(t, "INSERT INTO t VALUES (1); UPDATE ficus.signal SET nonce = 'two'")
	o.tx(t, "DELETE FROM ficus.signal; INSERT INTO ficus.ownership VALUES (true, 'm', 3, 'source')")
	o.pull(t)
	for _, nonce := range []string{"two", "one"} {
		if err := a.WaitSignal(ctx, nonce); err != nil {
			t.Fatal(err)
		}
	}
	if n := target.Int(t, "SELECT count(*) FROM t"); n != 1 {
		t.Error("the signal came before what was committed with it")
	}
	a.wait(t, o.log.Head())
	if got := target.Strings(t, "SELECT signal, epoch FROM ficus.progress"); len(got) != 1 || got[0] != "two|3" {
		t.Errorf("progress says %q", got)
	}
	_ = a.stop()
	if err := a.WaitSignal(ctx, "none"); !errors.Is(err, errTestOver) {
		t.Errorf("got %v, want the reason why the applier stopped", err)
	}
	b := o.start(t, target) // the newest signal is remembered by the destination
	if err := b.WaitSignal(ctx, "two"); err != nil {
		t.Fatal(err)
	}
}

func TestAfterEpoch(t *testing.T) {
	t.Parallel()
	const control = "; CREATE SCHEMA ficus; CREATE TABLE ficus.ownership (only_row bool PRIMARY KEY DEFAULT true, epoch bigint); CREATE TABLE ficus.signal (nonce text); INSERT INTO ficus.ownership VALUES (true, 4)"
	const ddl = "CREATE TABLE t (id int PRIMARY KEY)"
	o, target := newOrigin(t, ddl+control, nil), newTarget(t, ddl)
	after := func(c *Config) { c.AfterEpoch = 5 }
	a := o.start(t, target, after)
	o.tx(t, "INSERT INTO t VALUES (1); INSERT INTO ficus.signal VALUES ('ignored')")
	o.Exec(t, "ALTER TABLE t ADD later int; ALTER TABLE t DROP later") // of no interest before the epoch
	a.wait(t, o.pull(t))
	_ = a.stop()
	if got := target.Strings(t, "SELECT coalesce(signal, '-'), coalesce(epoch, 0) FROM ficus.progress"); got[0] != "-|0" {
		t.Errorf("progress says %q before the epoch", got)
	}

	a = o.start(t, target, after)
	o.tx(t, "INSERT INTO t VALUES (2); UPDATE ficus.ownership SET epoch = 5; INSERT INTO t VALUES (3)")
	o.tx(t, "INSERT INTO t VALUES (4)")
	a.wait(t, o.pull(t))
	_ = a.stop()
	a = o.start(t, target, after) // the epoch has been seen: nothing is ignored again
	o.tx(t, "INSERT INTO t VALUES (5)")
	a.wait(t, o.pull(t))
	if got := strings.Join(target.Strings(t, "SELECT id FROM t ORDER BY id"), " "); got != "4 5" {
		t.Errorf("rows %s are there, want 4 5", got)
	}
}

// It fails when keys are not recorded before the rows are committed, when the key that a row had before is
// left out, or a truncated table. Within a batch a row counts as it was before and is after it: the
// first transaction is therefore waited for.
func TestTouch(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE t (a int, b text, v int, PRIMARY KEY (b, a)); CREATE TABLE f (a int); ALTER TABLE f REPLICA IDENTITY FULL; CREATE TABLE e (a int PRIMARY KEY)"
	o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
	a := o.start(t, target, func(c *Config) { c.Touch = true })
	o.tx(t, "INSERT INTO t VALUES (1, 'x', 0), (2, 'y', 0)")
	first := o.pull(t)
	a.wait(t, first)
	o.tx(t, "UPDATE t SET a = 3 WHERE a = 2; INSERT INTO f VALUES (1); TRUNCATE e")
	second := o.pull(t)
	a.wait(t, second)
	want := map[string]change.LSN{
		`"public"."t"/x/1`: first, `"public"."t"/y/2`: second, `"public"."t"/y/3`: second, `"public"."f"`: second, `"public"."e"`: second,
	}
	if fmt.Sprint(o.log.touched) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", o.log.touched, want)
	}
}

func lsnNow(t *testing.T, db *pgtest.Database) change.LSN {
	t.Helper()
	lsn, err := change.ParseLSN(db.Strings(t, "SELECT pg_current_wal_insert_lsn()")[0])
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}
