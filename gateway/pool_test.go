package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

func pooled(servers int) func(*Config) {
	return func(c *Config) { c.Pooling, c.MaxServers = TransactionPooling, servers }
}

// Many clients share few server sessions, each with statements of its own that have the same names.
// Breaks that it catches: a statement looked up under the client's name, one not made on the next
// server session.
func TestPooledStatements(t *testing.T) {
	t.Parallel()
	b := start(t, pooled(2))
	const clients, rounds = 6, 20
	var wg sync.WaitGroup
	for i := range clients {
		conn := b.client(t, b.Addr(), "")
		wg.Go(func() {
			pgc := conn.PgConn()
			if _, err := pgc.Prepare(t.Context(), "mine", fmt.Sprintf("SELECT %d + $1::int", i*1000), nil); err != nil {
				t.Error(err)
				return
			}
			if _, err := pgc.Prepare(t.Context(), "ours", "SELECT $1::text", nil); err != nil {
				t.Error(err)
				return
			}
			for n := range rounds {
				res := pgc.ExecPrepared(t.Context(), "mine", [][]byte{fmt.Append(nil, n)}, nil, nil).Read()
				if res.Err != nil || string(res.Rows[0][0]) != fmt.Sprint(i*1000+n) {
					t.Errorf("client %d: %v %q", i, res.Err, res.Rows)
					return
				}
				if res := pgc.ExecPrepared(t.Context(), "ours", [][]byte{[]byte("x")}, nil, nil).Read(); res.Err != nil || string(res.Rows[0][0]) != "x" {
					t.Errorf("client %d: %v %q", i, res.Err, res.Rows)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := b.dbs[source].Int(t, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = ''"); n > 2 {
		t.Errorf("%d server sessions, want at most 2", n)
	}
}

// What goes wrong in the middle of a batch leaves the books right.
// Breaks that it catches: expectations kept after an error, a statement believed to be there whose
// Parse was skipped.
func TestPooledErrors(t *testing.T) {
	t.Parallel()
	b := start(t, pooled(1))
	conn, other := b.client(t, b.Addr(), "").PgConn(), b.client(t, b.Addr(), "").PgConn()
	ctx := t.Context()
	if _, err := other.Prepare(ctx, "known", "SELECT 'known'", nil); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, err := conn.Prepare(ctx, "bad", "SELEC", nil)
		wantCode(t, err, "42601")
		pipe := conn.StartPipeline(ctx)
		pipe.SendPrepare("one", "SELECT 1", nil)
		pipe.SendPrepare("worse", "SELECT nothing_there", nil)
		pipe.SendPrepare("skipped", "SELECT 'skipped'", nil)
		pipe.SendPrepare("known", "SELECT 'known'", nil)
		pipe.SendDeallocate("one")
		wantCode(t, finish(pipe), "42703")
		if res := conn.ExecPrepared(ctx, "one", nil, nil, nil).Read(); res.Err != nil { // its Close was skipped
			t.Fatal(res.Err)
		}
		wantCode(t, conn.ExecPrepared(ctx, "skipped", nil, nil, nil).Read().Err, "26000")
		wantCode(t, conn.ExecPrepared(ctx, "known", nil, nil, nil).Read().Err, "26000")
		if res := other.ExecPrepared(ctx, "known", nil, nil, nil).Read(); res.Err != nil {
			t.Fatal(res.Err)
		}
		_, err = conn.Prepare(ctx, "one", "SELECT 1", nil) // twice
		wantCode(t, err, "42P05")
		if err := conn.Deallocate(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		wantCode(t, conn.ExecPrepared(ctx, "one", nil, nil, nil).Read().Err, "26000")
	}
	if _, err := other.Exec(ctx, "DEALLOCATE ALL").ReadAll(); err != nil {
		t.Fatal(err)
	}
	wantCode(t, other.ExecPrepared(ctx, "known", nil, nil, nil).Read().Err, "26000")
	if _, err := other.Prepare(ctx, "known", "SELECT 'known'", nil); err != nil {
		t.Fatal(err)
	}
}

// More statements than a server session keeps: the oldest go, and come again when they are used.
func TestPooledStatementsAreBounded(t *testing.T) {
	t.Parallel()
	b := start(t, pooled(1))
	conn := b.client(t, b.Addr(), "").PgConn()
	const n = maxMade + 20
	for i := range n {
		if _, err := conn.Prepare(t.Context(), fmt.Sprint("s", i), fmt.Sprint("SELECT ", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		if res := conn.ExecPrepared(t.Context(), fmt.Sprint("s", i), nil, nil, nil).Read(); res.Err != nil || string(res.Rows[0][0]) != fmt.Sprint(i) {
			t.Fatalf("statement %d: %v", i, res.Err)
		}
	}
	all, err := conn.Exec(t.Context(), "SELECT count(*) FROM pg_prepared_statements").ReadAll()
	if err != nil || string(all[0].Rows[0][0]) != fmt.Sprint(maxMade) {
		t.Errorf("kept: %v, %q", err, all[0].Rows)
	}
}

// Nothing of one client is left for the next.
func TestPooledSessionsAreClean(t *testing.T) {
	t.Parallel()
	b := start(t, pooled(1))
	for _, sql := range []string{
		"SET work_mem = '77MB'", "SELECT set_config('work_mem', '77MB', false)", "SET ROLE pg_monitor", "CREATE TEMP TABLE left_over (a int)",
		"SELECT pg_advisory_lock(9)", "LISTEN news", "DECLARE c CURSOR WITH HOLD FOR SELECT 1", "PREPARE by_hand AS SELECT 1",
	} {
		conn := b.client(t, b.Addr(), "").PgConn()
		if _, err := conn.Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		next := b.client(t, b.Addr(), "")
		const left = `SELECT concat_ws(',', current_setting('work_mem'), current_user, pg_my_temp_schema()::regnamespace::text = '-' OR to_regclass('left_over') IS NULL,
			(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), (SELECT count(*) FROM pg_listening_channels()),
			(SELECT count(*) FROM pg_cursors WHERE is_holdable), (SELECT count(*) FROM pg_prepared_statements WHERE from_sql))`
		all, err := next.PgConn().Exec(t.Context(), left).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		if got := string(all[0].Rows[0][0]); got != "4MB,postgres,t,0,0,0,0" {
			t.Errorf("after %s: %s", sql, got)
		}
	}
}

// Transactions, COPY, cancel and errors are as without pooling, and a transaction keeps its session.
func TestPooledProtocol(t *testing.T) {
	t.Parallel()
	b := start(t, pooled(2))
	conn, other := b.client(t, b.Addr(), ""), b.client(t, b.Addr(), "")
	run(t, conn, "CREATE TABLE c (id int, v text)")
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := tx.Exec(t.Context(), "INSERT INTO c VALUES ($1, 'tx')", i); err != nil {
			t.Fatal(err)
		}
		if got := one[int](t, other, "SELECT count(*)::int FROM c"); got != 0 {
			t.Errorf("another client sees %d rows", got)
		}
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	var in bytes.Buffer
	for i := range 50_000 {
		fmt.Fprintf(&in, "%d\tvalue %d\n", i, i)
	}
	want := in.String()
	if tag, err := conn.PgConn().CopyFrom(t.Context(), &in, "COPY c FROM STDIN"); err != nil || tag.RowsAffected() != 50_000 {
		t.Fatalf("copy in: %v, %v", tag, err)
	}
	var out bytes.Buffer
	if _, err := other.PgConn().CopyTo(t.Context(), &out, "COPY c TO STDOUT"); err != nil || out.String() != want {
		t.Fatalf("copy out: %v, %d bytes", err, out.Len())
	}
	_, err = conn.PgConn().CopyFrom(t.Context(), strings.NewReader("not a number\tx\n"), "COPY c FROM STDIN")
	wantCode(t, err, "22P02")
	big := strings.Repeat("x", 3<<20)
	if got := one[string](t, conn, "SELECT $1::text", big); got != big {
		t.Errorf("large message: %d bytes", len(got))
	}
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Exec(t.Context(), "SELECT pg_sleep(60)")
		failed <- err
	}()
	pgtest.Eventually(t, "the query runs", func() bool {
		return b.dbs[source].Int(t, "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active' AND datname = current_database()") == 1
	})
	if err := conn.PgConn().CancelRequest(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantCode(t, <-failed, "57014")
	if err := conn.PgConn().CancelRequest(t.Context()); err != nil { // of nothing
		t.Fatal(err)
	}
	_ = one[string](t, other, "SELECT name FROM here")
}

// A switch needs no session to move; held clients go on, in their order, and nothing fails.
func TestPooledSwitch(t *testing.T) {
	t.Parallel()
	b := start(t, pooled(4))
	for _, db := range b.dbs {
		pgtest.Load(t, db, "pgbench")
	}
	for _, mode := range []string{"simple", "extended", "prepared"} {
		cmd := exec.CommandContext(t.Context(), "pgbench", "-n", "-M", mode, "-c", "12", "-j", "12", "-T", "2", b.url(b.Addr(), ""))
		done := make(chan struct{})
		var out []byte
		var err error
		go func() {
			defer close(done)
			out, err = cmd.CombinedOutput()
		}()
		flips := 0
		for running := true; running; {
			select {
			case <-done:
				running = false
			case <-time.After(100 * time.Millisecond):
				flips++
				b.shift(t, []Backend{target, source}[flips%2], b.lastEpoch()+1)
			}
		}
		if err != nil || !regexp.MustCompile(`number of failed transactions: 0 `).Match(out) || flips < 3 {
			t.Errorf("%s: %v, %d flips\n%s", mode, err, flips, out)
		}
	}
	if st := b.Stats(); st.Ended != 0 || st.Refused != 0 {
		t.Errorf("stats: got %+v", st)
	}
}

// A client that leaves while its last transaction ends takes no server session from those who come
// next, nor one that was told to end with it.
// Breaks that it catches: a session given back that hangUp has told to end.
func TestPooledLeaving(t *testing.T) {
	t.Parallel()
	b := start(t, pooled(4))
	const clients, rounds = 8, 60
	last, err := (&pgproto3.Query{String: "SELECT 1"}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	if last, err = (&pgproto3.Terminate{}).Encode(last); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range rounds {
				conn, err := pgx.Connect(t.Context(), b.url(b.Addr(), ""))
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := conn.Exec(t.Context(), "SELECT name FROM here"); err != nil {
					t.Error(err)
				}
				if _, err := conn.PgConn().Conn().Write(last); err != nil {
					t.Error(err)
				}
				_ = conn.PgConn().Conn().Close()
			}
		})
	}
	wg.Wait()
}

// Held for too long, and a server session that ended while nobody used it.
func TestPooledRefusals(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) { pooled(2)(c); c.HoldTimeout = 200 * time.Millisecond })
	conn := b.client(t, b.Addr(), "")
	_ = one[string](t, conn, "SELECT name FROM here")
	if err := b.Hold(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err := conn.Exec(t.Context(), "SELECT name FROM here")
		wantCode(t, err, "40001")
		_, err = conn.PgConn().Exec(t.Context(), "SELECT 1").ReadAll()
		wantCode(t, err, "40001")
	}
	if err := b.Release(t.Context(), target, 2); err != nil {
		t.Fatal(err)
	}
	if got := one[string](t, conn, "SELECT name FROM here"); got != "target" {
		t.Errorf("got %s, want target", got)
	}
	b.dbs[target].Exec(t, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'")
	if got := one[string](t, conn, "SELECT name FROM here"); got != "target" {
		t.Errorf("after its server session ended: %s", got)
	}
	_, err := conn.Exec(t.Context(), "SELECT pg_terminate_backend(pg_backend_pid())")
	if pe, ok := errors.AsType[*pgconn.PgError](err); !ok || pe.Code != "57P01" {
		t.Errorf("a server session that ends in the middle: %v", err)
	}
	again, err := pgx.Connect(t.Context(), b.url(b.Addr(), ""))
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close(context.WithoutCancel(t.Context()))
}
