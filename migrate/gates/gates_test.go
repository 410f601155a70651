package gates

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// measured wants a gate to be open or closed, and its text to contain something.
func measured(t *testing.T, g migrate.Gate, open bool, text string) {
	t.Helper()
	r, err := g.Measure(t.Context(), migrate.Status{Name: "m", Owner: migrate.Source})
	said := r.Measured
	if err != nil {
		said = err.Error()
	}
	if r.Open != open || !strings.Contains(said, text) || r.Wanted == "" {
		t.Errorf("gate %s: open %v, %q, wanted %q; want open %v, %q", g.Name(), r.Open, said, r.Wanted, open, text)
	}
}

func check(t *testing.T, c Check) migrate.Gate {
	t.Helper()
	c.Before = migrate.Promoting
	g, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestWindow: before, in, after and across midnight. It fails when the length is measured from now.
func TestWindow(t *testing.T) {
	t.Parallel()
	nights, err := cron.ParseStandard("CRON_TZ=UTC 0 23 * * 6")
	if err != nil {
		t.Fatal(err)
	}
	for now, want := range map[string]string{
		"2026-11-21T22:59:59Z": "opens at 2026-11-21T23:00:00Z",
		"2026-11-21T23:00:00Z": "closes at 2026-11-22T01:00:00Z", // a Saturday
		"2026-11-22T00:59:59Z": "closes at 2026-11-22T01:00:00Z",
		"2026-11-22T01:00:00Z": "opens at 2026-11-28T23:00:00Z",
	} {
		at, err := time.Parse(time.RFC3339, now)
		if err != nil {
			t.Fatal(err)
		}
		open, text := within(nights, 2*time.Hour, at)
		if text != want || open != strings.HasPrefix(want, "closes") {
			t.Errorf("at %s: open %v, %q; want %q", now, open, text, want)
		}
	}
	for _, bad := range []string{"", "61 * * * *", "every night"} {
		if _, err := Window(migrate.Promoting, bad, time.Hour); err == nil {
			t.Errorf("window %q was taken", bad)
		}
	}
	if _, err := Window(migrate.Promoting, "* * * * *", 0); err == nil {
		t.Error("a window without length was taken")
	}
	always, err := Window(migrate.Promoting, "* * * * *", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	measured(t, always, true, "closes at ")
}

// TestChecks: what each kind measures, and that what cannot be measured is closed.
func TestChecks(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	measured(t, check(t, Check{Name: "c", DSN: db.DSN, SQL: `SELECT true`}), true, "true")
	measured(t, check(t, Check{Name: "c", DSN: db.DSN, SQL: `SELECT 1 > 2, 'one is not more'`}), false, "one is not more")
	measured(t, check(t, Check{Name: "c", DSN: db.DSN, SQL: `SELECT true WHERE false`}), false, "no row")
	measured(t, check(t, Check{Name: "c", DSN: db.DSN, SQL: `SELECT NULL::boolean`}), false, "false")
	measured(t, check(t, Check{Name: "c", DSN: db.DSN, SQL: `SELECT 1`}), false, "not a boolean")
	measured(t, check(t, Check{Name: "c", DSN: db.DSN, SQL: `CREATE TABLE public.x ()`}), false, "read-only")
	measured(t, check(t, Check{Name: "c", DSN: db.DSN, SQL: `SELECT pg_sleep(60) IS NOT NULL`, Timeout: 100 * time.Millisecond}), false, "no answer within 100ms")

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ready" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	measured(t, check(t, Check{Name: "h", HTTP: server.URL + "/ready"}), true, "200 OK")
	measured(t, check(t, Check{Name: "h", HTTP: server.URL + "/busy"}), false, "503")
	measured(t, check(t, Check{Name: "h", HTTP: "http://127.0.0.1:1/"}), false, "refused")

	measured(t, check(t, Check{Name: "p", Command: []string{"sh", "-c", "echo fine"}}), true, "exit status 0: fine")
	measured(t, check(t, Check{Name: "p", Command: []string{"sh", "-c", "echo one; echo $FICUS_MIGRATION on $FICUS_OWNER; exit 7"}}), false, "exit status 7: m on source")
	measured(t, check(t, Check{Name: "p", Command: []string{"/no/such/program"}}), false, "no such file")
	measured(t, check(t, Check{Name: "p", Command: []string{"sleep", "60"}, Timeout: 100 * time.Millisecond}), false, "no answer within 100ms")

	for _, bad := range []Check{{Name: "none"}, {SQL: "SELECT true"}, {Name: "two", SQL: "SELECT true", HTTP: "http://x"}} {
		if _, err := New(bad); err == nil {
			t.Errorf("check %+v was taken", bad)
		}
	}
}

// TestTransactions: an old transaction closes the gate and is named, Ficus' own do not.
// It fails when the age is not compared, or our own sessions count.
func TestTransactions(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	servers := Servers{migrate.Source: db.DSN}
	measured(t, Transactions(migrate.Promoting, servers, 0), true, "none")
	own, err := db.DSN.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close(t.Context()) }() // as the test ends
	if _, err := own.Exec(t.Context(), `BEGIN; SELECT 1`); err != nil {
		t.Fatal(err)
	}
	measured(t, Transactions(migrate.Promoting, servers, 0), true, "none")
	conn := db.Conn(t)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	measured(t, Transactions(migrate.Promoting, servers, time.Hour), true, "idle in transaction")
	measured(t, Transactions(migrate.Promoting, servers, time.Nanosecond), false, "idle in transaction")
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	measured(t, Transactions(migrate.Promoting, Servers{migrate.Source: db.DSN.WithDatabase("no_such_database")}, time.Hour), false, "does not exist")
}

// TestRoom: what disk and slots leave. It fails when the comparison is turned round.
func TestRoom(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	dir := t.TempDir()
	measured(t, Disk(migrate.Promoting, dir, 1), true, "free")
	measured(t, Disk(migrate.Promoting, dir, 1<<62), false, "free")
	measured(t, Disk(migrate.Promoting, dir+"/none", 1), false, "no such file")
	measured(t, WALRoom(migrate.Promoting, Servers{migrate.Source: db.DSN}, 1<<40), true, "no limit")
}

// TestShadow: the gate wants enough reads, and few enough of them answered otherwise.
func TestShadow(t *testing.T) {
	t.Parallel()
	g := Shadow(migrate.Promoting, 100, 0.01)
	if r, err := g.Measure(t.Context(), migrate.Status{}); err == nil || r.Open {
		t.Errorf("without shadow reads: %+v, %v", r, err)
	}
	for _, c := range []struct {
		compared, mismatched int64
		open                 bool
	}{{99, 0, false}, {100, 0, true}, {200, 2, true}, {200, 3, false}} {
		f := migrate.ShadowFigures{Compared: c.compared, Mismatched: c.mismatched}
		if c.mismatched > 0 {
			f.Mismatches = []migrate.ReadMismatch{{Query: "SELECT ?"}}
		}
		r, err := g.Measure(t.Context(), migrate.Status{Traffic: &migrate.Traffic{Shadow: &f}})
		if err != nil || r.Open != c.open || c.mismatched > 0 && !strings.Contains(r.Measured, "SELECT ?") {
			t.Errorf("%d of %d: %+v, %v", c.mismatched, c.compared, r, err)
		}
	}
}
