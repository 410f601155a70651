package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// What a session has built up is there after a switch, and after the way back.
func TestSessionStateMoves(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	for _, db := range b.dbs {
		db.Exec(t, "CREATE SCHEMA app; CREATE TYPE app.mood AS ENUM ('sad', 'glad'); CREATE TABLE app.t (m app.mood)")
		db.Exec(t, fmt.Sprintf("DO $$BEGIN CREATE ROLE mover; EXCEPTION WHEN duplicate_object THEN END$$; GRANT USAGE ON SCHEMA app TO mover; GRANT SELECT ON here TO mover; GRANT CREATE ON DATABASE %q TO mover",
			db.DSN.Database()))
	}
	// The same type gets another OID on the target.
	b.dbs[target].Exec(t, "CREATE TYPE filler AS (a int); DROP TABLE app.t; DROP TYPE app.mood; CREATE TYPE app.mood AS ENUM ('sad', 'glad')")

	conn := b.client(t, b.Addr(), "&application_name=first")
	pgc := conn.PgConn()
	ctx := t.Context()
	for _, sql := range []string{
		"SET search_path TO app, public", "SET work_mem = '7MB'", "SET TimeZone = 'Asia/Tokyo'", "SET application_name = 'it''s second'",
		"SET app.tenant TO 'acme'", "SELECT set_config('app.\"x', 'no', false), set_config('app.user', 'eve', false)",
		"SET SESSION \"app\".\"Third\" = 'three'", "SELECT set_config('app.gone', 'x', true)",
		"PREPARE byhand(int, mood) AS SELECT $1 + 1, $2", "SET ROLE mover",
	} {
		if _, err := pgc.Exec(ctx, sql).ReadAll(); err != nil && !strings.Contains(sql, `"x`) {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	run(t, conn, "SELECT set_config('app.user', 'eve', false)")
	if _, err := pgc.Prepare(ctx, "named", "SELECT $1::mood, name FROM here", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := pgc.Prepare(ctx, "dropped", "SELECT 1", nil); err != nil {
		t.Fatal(err)
	}
	run(t, conn, "DEALLOCATE dropped")
	if _, err := pgc.Prepare(ctx, "", "SELECT 'unnamed', $1::int4", nil); err != nil {
		t.Fatal(err)
	}
	for epoch, to := range []Backend{target, source, target} {
		b.shift(t, to, int64(epoch+2))
		res := pgc.ExecPrepared(ctx, "", [][]byte{[]byte("5")}, nil, nil).Read()
		if res.Err != nil || string(res.Rows[0][0]) != "unnamed" {
			t.Fatalf("%s: unnamed statement: %v", to, res.Err)
		}
		res = pgc.ExecPrepared(ctx, "named", [][]byte{[]byte("glad")}, nil, nil).Read()
		if res.Err != nil || string(res.Rows[0][1]) != string(to) {
			t.Fatalf("%s: named statement: %v, %q", to, res.Err, res.Rows)
		}
		if got := pgc.ParameterStatus("TimeZone") + pgc.ParameterStatus("application_name"); got != "Asia/Tokyoit's second" {
			t.Errorf("%s: reported parameters: got %q", to, got)
		}
		const settings = `SELECT concat_ws(',', current_setting('search_path'), current_setting('work_mem'), current_setting('TimeZone'),
			current_setting('application_name'), current_setting('app.tenant'), current_setting('app.user'), current_setting('app.third'), current_user)`
		all, err := pgc.Exec(ctx, settings+"; EXECUTE byhand(41, 'sad')").ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		want := "app, public,7MB,Asia/Tokyo,it's second,acme,eve,three,mover"
		if got := string(all[0].Rows[0][0]); got != want {
			t.Errorf("%s: settings: got %q, want %q", to, got, want)
		}
		if got := string(all[1].Rows[0][0]); got != "42" {
			t.Errorf("%s: EXECUTE: got %s, want 42", to, got)
		}
		wantCode(t, pgc.ExecPrepared(ctx, "dropped", nil, nil, nil).Read().Err, "26000")
		// The failed one took the unnamed statement's turn: make it again.
		if _, err := pgc.Prepare(ctx, "", "SELECT 'unnamed', $1::int4", nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.Stats(); got.Moved != 3 || got.Ended != 0 {
		t.Errorf("stats: got %+v, want 3 moved, 0 ended", got)
	}
}

// A session that keeps what cannot move is ended with an error that says so, even when it is idle.
func TestUnmovableSessionsEnd(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	for what, sql := range map[string]string{
		"temporary objects":       "CREATE TEMP TABLE x (a int)",
		"advisory locks":          "SELECT pg_advisory_lock(7)",
		"LISTEN registrations":    "LISTEN news",
		"cursors WITH HOLD":       "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
		"custom settings under":   "SELECT set_config('app.' || 'x', 'v', false)",
		"other server does not":   "PREPARE p AS SELECT * FROM only_on_source",
		"but moves when given up": "CREATE TEMP TABLE y (a int); LISTEN x; SELECT pg_advisory_lock(8)",
	} {
		if strings.Contains(what, "other server") {
			b.dbs[source].Exec(t, "CREATE TABLE only_on_source (a int)")
		}
		conn := b.client(t, b.Addr(), "")
		if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(what, "but") {
			if _, err := conn.PgConn().Exec(t.Context(), "DISCARD ALL").ReadAll(); err != nil {
				t.Fatal(err)
			}
		}
		ended := b.Stats().Ended
		epoch := b.lastEpoch() + 1
		b.shift(t, target, epoch)
		if strings.HasPrefix(what, "but") {
			if got := one[string](t, conn, "SELECT name FROM here"); got != "target" {
				t.Errorf("%s: on %s, want target", what, got)
			}
		} else {
			pgtest.Eventually(t, "the idle session with "+what+" is ended", func() bool { return b.Stats().Ended == ended+1 })
			msg, err := conn.PgConn().ReceiveMessage(t.Context())
			if e, ok := msg.(*pgproto3.ErrorResponse); ok {
				if e.Code != "57P01" || e.Severity != "FATAL" || !strings.Contains(e.Detail, what) {
					t.Errorf("%s: got %+v", what, e)
				}
			} else {
				wantCode(t, err, "57P01")
			}
		}
		b.shift(t, source, epoch+1)
	}
}

// A session whose new server is lost while it is being prepared gets another one.
//
// It fails when every error of making the state anew counts as a state that cannot be made.
func TestMoveIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	for _, db := range b.dbs {
		db.Exec(t, "CREATE TABLE watched (a int)")
	}
	conn := b.client(t, b.Addr(), "")
	run(t, conn, "PREPARE p AS SELECT count(*) FROM watched")
	holds, err := b.dbs[target].Conn(t).Begin(t.Context()) // the statement cannot be prepared there meanwhile
	if err != nil {
		t.Fatal(err)
	}
	if _, err := holds.Exec(t.Context(), "LOCK TABLE watched"); err != nil {
		t.Fatal(err)
	}
	b.shift(t, target, 2)
	pgtest.Eventually(t, "the session that waits for the table to be lost", func() bool {
		return b.dbs[target].Int(t, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") > 0
	})
	if err := holds.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := one[int64](t, conn, "EXECUTE p"); got != 0 {
		t.Errorf("got %d rows, want 0", got)
	}
	if got := one[string](t, conn, "SELECT name FROM here"); got != "target" {
		t.Errorf("on %s, want target", got)
	}
}

func TestHoldWaitsForTransactions(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	conn := b.client(t, b.Addr(), "")
	run(t, conn, "CREATE TABLE w (a int)")
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "INSERT INTO w VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = b.Hold(short, 2)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 sessions") {
		t.Errorf("hold: got %v, want a timeout that names 1 session", err)
	}
	held := make(chan error, 1)
	go func() { held <- b.Hold(t.Context(), 2) }()
	for i := range 3 { // the transaction goes on
		if _, err := tx.Exec(t.Context(), "INSERT INTO w VALUES ($1)", i); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-held:
		t.Fatalf("hold returned %v while a transaction was open", err)
	default:
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-held; err != nil {
		t.Fatal(err)
	}
	if err := b.Release(t.Context(), source, 2); err != nil {
		t.Fatal(err)
	}
	if got := one[int](t, conn, "SELECT count(*)::int FROM w"); got != 4 {
		t.Errorf("rows: got %d, want 4", got)
	}
}

// recorder notes the order in which queries leave the gateway.
type recorder struct {
	sync.Mutex
	who []int
}

type recordedConn struct {
	net.Conn
	r *recorder
}

func (c recordedConn) Write(p []byte) (int, error) {
	if m := regexp.MustCompile(`SELECT (\d+) AS who`).FindSubmatch(p); m != nil {
		n, _ := strconv.Atoi(string(m[1]))
		c.r.Lock()
		c.r.who = append(c.r.who, n)
		c.r.Unlock()
	}
	return c.Conn.Write(p)
}

// Held clients go in the order in which they came, whether they move or stay.
func TestHeldClientsKeepTheirOrder(t *testing.T) {
	t.Parallel()
	rec := &recorder{}
	b := start(t, nil, func(g *Gateway) {
		g.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			return recordedConn{conn, rec}, err
		}
	})
	const n = 12
	var want []int
	conns := make([]*pgx.Conn, n)
	for i := range conns {
		conns[i] = b.client(t, b.Addr(), "")
		want = append(want, i)
	}
	for epoch, to := range []Backend{source, target, target, source} {
		if err := b.Hold(t.Context(), int64(epoch+2)); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i, conn := range conns {
			wg.Go(func() {
				if _, err := conn.PgConn().Exec(t.Context(), fmt.Sprintf("SELECT %d AS who", i)).ReadAll(); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
			})
			pgtest.Eventually(t, "the client is held", func() bool { return b.Stats().Held == i+1 })
		}
		if err := b.Release(t.Context(), to, int64(epoch+2)); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if st := b.Stalls(); st.Clients != n || st.P50 <= 0 || st.P50 > st.P99 || st.P99 > st.Max {
			t.Errorf("stalls: got %+v", st)
		}
		if !slices.Equal(rec.who, want) {
			t.Errorf("to %s: queries left in the order %v", to, rec.who)
		}
		rec.who = nil
	}
}

func TestHoldEnds(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) { c.HoldTimeout, c.MaxHeld = 300*time.Millisecond, 2 })
	conns := []*pgx.Conn{b.client(t, b.Addr(), ""), b.client(t, b.Addr(), ""), b.client(t, b.Addr(), "")}
	if err := b.Hold(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, len(conns))
	for i, conn := range conns {
		go func() {
			_, err := conn.Exec(t.Context(), "SELECT $1::int", i)
			errs <- err
		}()
	}
	codes := map[string]int{}
	for range conns {
		var pe interface{ SQLState() string }
		if err := <-errs; errors.As(err, &pe) {
			codes[pe.SQLState()]++
		}
	}
	if codes["40001"] != 2 || codes["53300"] != 1 {
		t.Errorf("answers: got %v, want 40001 twice and 53300 once", codes)
	}
	_, err := pgx.Connect(t.Context(), b.url(b.Addr(), ""))
	wantCode(t, err, "57P03")
	if err := b.Release(t.Context(), source, 2); err != nil {
		t.Fatal(err)
	}
	for _, conn := range conns { // the sessions live on
		if got := one[string](t, conn, "SELECT name FROM here"); got != "source" {
			t.Errorf("got %q, want source", got)
		}
	}
	if got := b.Stats().Refused; got != 4 {
		t.Errorf("refused: got %d, want 4", got)
	}
}

func TestHeldClientCancelsOrLeaves(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	stays, leaves := b.client(t, b.Addr(), ""), b.client(t, b.Addr(), "")
	if err := b.Hold(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := stays.Exec(t.Context(), "INSERT INTO here VALUES ('canceled')")
		failed <- err
	}()
	pgtest.Eventually(t, "one client is held", func() bool { return b.Stats().Held == 1 })
	if err := stays.PgConn().CancelRequest(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantCode(t, <-failed, "57014")

	raw := leaves.PgConn().Conn()
	if _, err := raw.Write(appendMessage(nil, &pgproto3.Query{String: "INSERT INTO here VALUES ('left')"})); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "the other client is held", func() bool { return b.Stats().Held == 1 })
	_ = raw.Close()
	pgtest.Eventually(t, "it left the queue", func() bool { return b.Stats().Held == 0 })
	if err := b.Release(t.Context(), source, 2); err != nil {
		t.Fatal(err)
	}
	if got := one[int](t, stays, "SELECT count(*)::int FROM here"); got != 1 {
		t.Errorf("rows: got %d, want 1: neither insert may have run", got)
	}
}

func TestEpochs(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	ctx := t.Context()
	ok := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	stale := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrStale) {
			t.Errorf("%s: got %v, want ErrStale", what, err)
		}
	}
	ok("hold at the present epoch", b.Hold(ctx, 1))
	ok("abort", b.Release(ctx, source, 1))
	stale("that hold again", b.Hold(ctx, 1))
	ok("hold for the next epoch", b.Hold(ctx, 2))
	ok("hold twice", b.Hold(ctx, 2))
	stale("late abort of epoch 1", b.Release(ctx, source, 1))
	ok("switch", b.Release(ctx, target, 2))
	ok("switch again", b.Release(ctx, target, 2))
	stale("late hold", b.Hold(ctx, 1))
	stale("late hold of the epoch that was made", b.Hold(ctx, 2))
	ok("hold for epoch 3", b.Hold(ctx, 3))
	ok("abort", b.Release(ctx, target, 3))
	stale("late hold of the attempt that failed", b.Hold(ctx, 3))
	ok("hold for epoch 4", b.Hold(ctx, 4))
	ok("roll back", b.Release(ctx, source, 4))
	if err := b.Release(ctx, "nowhere", 5); err == nil {
		t.Error("release to an unknown backend: no error")
	}
}

func TestReadDoor(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	conns := make([]*pgx.Conn, 40)
	for i := range conns {
		conns[i] = b.client(t, b.ReadAddr(), "")
	}
	onTarget := func() (n int) {
		for _, conn := range conns {
			if one[string](t, conn, "SELECT name FROM here") == "target" {
				n++
			}
		}
		return n
	}
	_, err := conns[0].Exec(t.Context(), "INSERT INTO here VALUES ('x')")
	wantCode(t, err, "25006")
	for _, step := range []struct{ percent, low, high int }{{0, 0, 0}, {100, 40, 40}, {50, 8, 32}, {0, 0, 0}} {
		if err := b.Reads(t.Context(), step.percent); err != nil {
			t.Fatal(err)
		}
		if got := onTarget(); got < step.low || got > step.high {
			t.Errorf("%d %%: %d of 40 on the target, want %d to %d", step.percent, got, step.low, step.high)
		}
	}
	if err := b.Reads(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	if err := b.Hold(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if got := onTarget(); got != 40 { // not held
		t.Errorf("while held: %d of 40 on the target, want 40", got)
	}
	if err := b.Release(t.Context(), target, 2); err != nil {
		t.Fatal(err)
	}
	if got := onTarget(); got != 0 { // the source follows now
		t.Errorf("after the switch: %d of 40 on the target, want 0", got)
	}
	if err := b.Reads(t.Context(), 101); err == nil {
		t.Error("101 percent: no error")
	}
}

// TestPgbench flips between two backends under pgbench in every protocol mode; no transaction fails.
// One thread per client: a thread of pgbench prepares statements synchronously, and would not end the
// transaction of another client of its own while a hold keeps it waiting for that.
func TestPgbench(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	for _, db := range b.dbs {
		pgtest.Load(t, db, "pgbench")
	}
	for _, mode := range []string{"simple", "extended", "prepared"} {
		cmd := exec.CommandContext(t.Context(), "pgbench", "-n", "-M", mode, "-c", "8", "-j", "8", "-T", "3", b.url(b.Addr(), ""))
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
			case <-time.After(150 * time.Millisecond):
				flips++
				to := []Backend{target, source}[flips%2]
				b.shift(t, to, b.lastEpoch()+1)
			}
		}
		if err != nil || !regexp.MustCompile(`number of failed transactions: 0 `).Match(out) || flips < 10 {
			t.Errorf("%s: %v, %d flips\n%s", mode, err, flips, out)
		}
		t.Logf("%s: %d flips, last stalls %+v, %s", mode, flips, b.Stalls(), regexp.MustCompile(`tps = [\d.]+`).Find(out))
	}
	if st := b.Stats(); st.Ended != 0 || st.Refused != 0 || st.Moved < 100 {
		t.Errorf("stats: got %+v", st)
	}
}
