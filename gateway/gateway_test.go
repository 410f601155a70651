package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m, pgtest.CheckLeaks()) }

const (
	source Backend = "source"
	target Backend = "target"
)

// bench is a running gateway in front of two databases, each of which knows its name.
type bench struct {
	*Gateway
	dbs  map[Backend]*pgtest.Database
	stop func() error
}

// start runs a gateway; change may adjust the configuration, tweak the gateway before it runs.
func start(t testing.TB, change func(*Config), tweak ...func(*Gateway)) *bench {
	t.Helper()
	b := &bench{dbs: map[Backend]*pgtest.Database{source: pgtest.DB(t), target: pgtest.DB(t)}}
	for name, db := range b.dbs {
		db.Exec(t, fmt.Sprintf("CREATE TABLE here AS SELECT '%s'::text AS name", name))
	}
	cfg := Config{
		Listen: "127.0.0.1:0", ReadListen: "127.0.0.1:0", Owner: source, Epoch: 1,
		Backends: map[Backend]pg.DSN{source: b.dbs[source].DSN, target: b.dbs[target].DSN},
		Log:      slog.New(slog.NewTextHandler(&lines{t: t}, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.Gateway = g
	for _, f := range tweak {
		f(g)
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	b.stop = sync.OnceValue(func() error {
		cancel(errStopped)
		return <-done
	})
	t.Cleanup(func() {
		if err := b.stop(); !errors.Is(err, errStopped) {
			t.Errorf("Run returned %v, want its context's cause", err)
		}
	})
	<-g.Listening()
	return b
}

var errStopped = errors.New("test stopped the gateway")

// lines writes the gateway's log to the test's.
type lines struct{ t testing.TB }

func (l *lines) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (b *bench) url(addr net.Addr, more string) string {
	return fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable%s", addr, b.dbs[source].DSN.Database(), more)
}

func (b *bench) client(t testing.TB, addr net.Addr, more string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.url(addr, more))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func one[T any](t testing.TB, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func run(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// shift moves ownership.
func (b *bench) shift(t testing.TB, to Backend, epoch int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := b.Hold(ctx, epoch); err != nil {
		t.Fatalf("hold: %v", err)
	}
	if err := b.Release(ctx, to, epoch); err != nil {
		t.Fatalf("release: %v", err)
	}
}

func (b *bench) lastEpoch() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.epoch
}

func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	if got := pg.Code(err); got != code {
		t.Errorf("got error %v (SQLSTATE %q), want SQLSTATE %s", err, got, code)
	}
}

func TestRelay(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	conn := b.client(t, b.Addr(), "&application_name=shop&options=-c%20work_mem%3D7MB")
	if got := one[string](t, conn, "SELECT name FROM here"); got != "source" {
		t.Errorf("owner: got %q, want source", got)
	}
	if got := one[string](t, conn, "SELECT current_setting('application_name') || current_setting('work_mem')"); got != "shop7MB" {
		t.Errorf("startup parameters: got %q, want shop7MB", got)
	}
	big := strings.Repeat("x", 3<<20)
	if got := one[string](t, conn, "SELECT $1::text", big); got != big {
		t.Errorf("large message: got %d bytes, want %d", len(got), len(big))
	}
	if got := one[int](t, conn, "SELECT count(*)::int FROM generate_series(1, 100000)"); got != 100000 {
		t.Errorf("count: got %d", got)
	}
	batch := &pgx.Batch{}
	for i := range 50 {
		batch.Queue("SELECT $1::int", i)
	}
	res := conn.SendBatch(t.Context(), batch)
	for i := range 50 {
		var got int
		if err := res.QueryRow().Scan(&got); err != nil || got != i {
			t.Fatalf("batch: got %d, %v; want %d", got, err, i)
		}
	}
	if err := res.Close(); err != nil {
		t.Fatal(err)
	}
	if st := b.Stats(); st.Sessions != 1 || st.Clients != 1 || st.Transactions < 4 {
		t.Errorf("stats: got %+v", st)
	}
}

func TestCopyBothWays(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	conn := b.client(t, b.Addr(), "")
	run(t, conn, "CREATE TABLE c (id int, v text)")
	var in bytes.Buffer
	for i := range 100_000 {
		fmt.Fprintf(&in, "%d\tvalue %d\n", i, i)
	}
	want := in.String()
	tag, err := conn.PgConn().CopyFrom(t.Context(), &in, "COPY c FROM STDIN")
	if err != nil || tag.RowsAffected() != 100_000 {
		t.Fatalf("copy in: %v, %v", tag, err)
	}
	var out bytes.Buffer
	if _, err := conn.PgConn().CopyTo(t.Context(), &out, "COPY c TO STDOUT"); err != nil {
		t.Fatal(err)
	}
	if out.String() != want {
		t.Errorf("copy out: got %d bytes, want the %d that went in", out.Len(), len(want))
	}
	_, err = conn.PgConn().CopyFrom(t.Context(), strings.NewReader("not a number\tx\n"), "COPY c FROM STDIN")
	wantCode(t, err, "22P02")
	b.shift(t, target, 2) // the failed COPY did not leave the session inside a transaction
	if got := one[string](t, conn, "SELECT name FROM here"); got != "target" {
		t.Errorf("after the switch: got %q, want target", got)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	conn := b.client(t, b.Addr(), "")
	for epoch, to := range []Backend{source, target, source} { // the key stays good after switches
		b.shift(t, to, int64(epoch+2))
		_ = one[string](t, conn, "SELECT name FROM here")
		failed := make(chan error, 1)
		go func() {
			_, err := conn.Exec(t.Context(), "SELECT pg_sleep(60)")
			failed <- err
		}()
		pgtest.Eventually(t, "the query runs", func() bool {
			return b.dbs[to].Int(t, "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active' AND datname = current_database()") == 1
		})
		if err := conn.PgConn().CancelRequest(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantCode(t, <-failed, "57014")
	}
}

// Errors, notices and all else arrive as the server sent them.
func TestBytesAreTheSame(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	through := b.client(t, b.Addr(), "").PgConn()
	direct := b.dbs[source].Conn(t).PgConn()
	for _, sql := range []string{
		"SELECT 1/0", "SELEC", "SELECT nothing FROM here", "DO $$BEGIN RAISE 'x' USING detail='d', hint='h', errcode='P0007', table='t'; END$$",
		"INSERT INTO here SELECT 'a'; SELECT count(*) FROM here; DELETE FROM here WHERE name = 'a'; SELECT 2", "SHOW search_path", "",
	} {
		want, wantErr := direct.Exec(t.Context(), sql).ReadAll()
		got, gotErr := through.Exec(t.Context(), sql).ReadAll()
		var g, w *pgconn.PgError
		if errors.As(gotErr, &g) != errors.As(wantErr, &w) || g != nil && *g != *w {
			t.Errorf("%q: got error %+v, want %+v", sql, g, w)
		}
		if gs, ws := fmt.Sprintf("%q", rows(got)), fmt.Sprintf("%q", rows(want)); gs != ws {
			t.Errorf("%q: got %s, want %s", sql, gs, ws)
		}
	}
	for _, name := range []string{"server_version", "client_encoding", "TimeZone", "DateStyle", "integer_datetimes", "is_superuser"} {
		if g, w := through.ParameterStatus(name), direct.ParameterStatus(name); g != w && name != "TimeZone" && name != "DateStyle" {
			t.Errorf("parameter %s: got %q, want %q", name, g, w)
		}
	}
}

func rows(rs []*pgconn.Result) (out [][][]byte) {
	for _, r := range rs {
		out = append(out, [][]byte{[]byte(r.CommandTag.String())})
		out = append(out, r.Rows...)
	}
	return out
}

func TestDatabaseNames(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	for _, name := range []string{b.dbs[source].DSN.Database(), b.dbs[target].DSN.Database()} {
		conn, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable", b.Addr(), name))
		if err != nil {
			t.Fatal(err)
		}
		if got := one[string](t, conn, "SELECT name FROM here"); got != "source" {
			t.Errorf("database %s: got %q, want source", name, got)
		}
		_ = conn.Close(t.Context())
	}
	_, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://postgres@%s/elsewhere?sslmode=disable", b.Addr()))
	wantCode(t, err, "3D000")
	_, err = pgx.Connect(t.Context(), fmt.Sprintf("postgres://nobody_here@%s/%s?sslmode=disable", b.Addr(), b.dbs[source].DSN.Database()))
	wantCode(t, err, "28000") // the server's own words
	_, err = pgconn.Connect(t.Context(), b.url(b.Addr(), "&replication=database"))
	wantCode(t, err, "0A000")
}

func TestPsql(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	script := "\\set ON_ERROR_STOP 1\nCREATE TEMP TABLE p (a int);\n\\copy p FROM STDIN\n1\n2\n\\.\nSELECT sum(a) FROM p;\n\\copy p TO STDOUT\nSELECT 5 \\gdesc\nPREPARE x AS SELECT 7; EXECUTE x;\n"
	cmd := exec.CommandContext(t.Context(), "psql", "-X", "-q", "-A", "-t", "-f", "-", b.url(b.Addr(), "&gssencmode=prefer"))
	cmd.Stdin = strings.NewReader(script)
	cmd.Env = append(os.Environ(), "PGSSLMODE=")
	out, err := cmd.CombinedOutput()
	if want := "3\n1\n2\n?column?|integer\n7\n"; err != nil || string(out) != want {
		t.Errorf("psql: %v, got %q, want %q", err, out, want)
	}
}
