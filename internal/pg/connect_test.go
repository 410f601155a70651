package pg_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m, pgtest.CheckLeaks()) }

func TestConnect(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	db.Exec(t, "ALTER DATABASE "+db.Name+" SET statement_timeout = '5s'")
	conn, err := db.DSN.Connect(t.Context(), "check", pg.Setting("work_mem", "5MB"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	got := map[string]string{}
	want := map[string]string{
		"application_name": "ficus/check", "search_path": "", "TimeZone": "UTC", "statement_timeout": "0",
		"lock_timeout": "0", "idle_in_transaction_session_timeout": "0", "extra_float_digits": "3", "work_mem": "5MB",
	}
	for name := range want {
		var value string
		if err := conn.QueryRow(t.Context(), "SELECT current_setting($1)", name).Scan(&value); err != nil {
			t.Fatal(err)
		}
		got[name] = value
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("session (-want +got):\n%s", diff)
	}
}

func TestConnectReplication(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	conn, err := db.DSN.ConnectReplication(t.Context(), "stream")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	for _, sql := range []string{"IDENTIFY_SYSTEM", "SELECT current_database()"} {
		results, err := conn.Exec(t.Context(), sql).ReadAll()
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		row := results[0].Rows[0]
		if got := string(row[len(row)-1]); got != db.Name {
			t.Errorf("%s names database %q, want %q", sql, got, db.Name)
		}
	}
}

// A second database of the same DSN, and options of one connection, leave the DSN as it was.
func TestConnectionsDoNotShareSettings(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	for purpose, want := range map[string]string{"one": "6MB", "two": "4MB"} {
		var opts []pg.Option
		if purpose == "one" {
			opts = append(opts, pg.Setting("work_mem", want))
		}
		conn, err := db.DSN.Connect(t.Context(), purpose, opts...)
		if err != nil {
			t.Fatal(err)
		}
		var got string
		if err := conn.QueryRow(t.Context(), "SHOW work_mem").Scan(&got); err != nil || got != want {
			t.Errorf("%s: work_mem = %s, %v; want %s", purpose, got, err, want)
		}
		_ = conn.Close(t.Context())
	}
}

func TestConnectErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	nobody := refusing(t)
	for name, c := range map[string]struct {
		dsn        pg.DSN
		text, hint string
		retry      bool
	}{
		"no such database": {db.DSN.WithDatabase("nowhere"), `"nowhere" does not exist`, "create it", false},
		"no such role":     {parse(t, strings.Replace(db.URL, "postgres@", "somebody@", 1)), "somebody", "pg_hba.conf", false},
		"nobody listens":   {parse(t, nobody), "connect to app@127.0.0.1", "check that PostgreSQL runs", true},
		"wrong password":   {answering(t, "28P01"), "28P01", "check user and password", false},
		"full":             {answering(t, "53300"), "53300", "max_connections", true},
		"starting":         {answering(t, "57P03"), "57P03", "try again", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := c.dsn.Connect(t.Context(), "test")
			if err == nil {
				_ = conn.Close(t.Context())
				t.Fatal("connected")
			}
			if !strings.Contains(err.Error(), c.text) || !strings.Contains(hint.Of(err), c.hint) {
				t.Errorf("error %q, hint %q; want %q and %q in them", err, hint.Of(err), c.text, c.hint)
			}
			if strings.Contains(err.Error()+hint.Of(err), secret) || strings.Contains(err.Error(), "\n") {
				t.Errorf("the error shows the password or has several lines: %q", err)
			}
			if got := pg.Retryable(err); got != c.retry {
				t.Errorf("Retryable = %t, want %t: %v", got, c.retry, err)
			}
		})
	}
}

// refusing returns a connection string to a port where nobody listens.
func refusing(t *testing.T) string {
	t.Helper()
	l := listen(t)
	addr := l.Addr()
	_ = l.Close()
	return fmt.Sprintf("postgresql://app:%s@%s/shop?sslmode=disable", secret, addr)
}

// answering returns the DSN of a server that answers every start-up with an error, which repeats
// the password as a careless proxy might.
func answering(t *testing.T, code string) pg.DSN {
	t.Helper()
	l := listen(t)
	done := make(chan struct{})
	go func() { // ends when the listener closes
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			backend := pgproto3.NewBackend(conn, conn)
			if _, err := backend.ReceiveStartupMessage(); err == nil {
				backend.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: code, Message: "no entry for " + secret})
				_ = backend.Flush()
			}
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return parse(t, fmt.Sprintf("postgresql://app:%s@%s/shop?sslmode=disable", secret, l.Addr()))
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// elsewhere lets a connection look as if its server were on another machine.
type elsewhere struct{ net.Conn }

func (elsewhere) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5432} }

func TestCores(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	for name, tt := range map[string]struct {
		workers string
		remote  bool
		want    int
	}{
		"here":                      {"64", false, runtime.GOMAXPROCS(0)},
		"elsewhere, as it comes":    {"8", true, 4},
		"elsewhere, raised":         {"24", true, 12},
		"elsewhere, raised by much": {"200", true, 16},
		"elsewhere, lowered":        {"0", true, 2},
	} {
		conn, err := db.DSN.Connect(t.Context(), "test", pg.Setting("max_parallel_workers", tt.workers), func(cfg *pgx.ConnConfig) {
			if tt.remote {
				cfg.AfterNetConnect = func(_ context.Context, _ *pgconn.Config, c net.Conn) (net.Conn, error) { return elsewhere{c}, nil }
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := pg.Cores(t.Context(), conn)
		if err != nil || got != tt.want || pg.Local(conn) == tt.remote {
			t.Errorf("%s: %d cores, %v, local %t; want %d", name, got, err, pg.Local(conn), tt.want)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
