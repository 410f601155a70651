package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

func TestPasswords(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "users.txt")
	// A secret that PostgreSQL makes serves as well as a password.
	db := pgtest.DB(t)
	db.Exec(t, "SET password_encryption = 'scram-sha-256'; CREATE ROLE gateway_scram LOGIN PASSWORD 'from the server'")
	t.Cleanup(func() { db.Exec(t, "DROP ROLE gateway_scram") })
	secret := db.Strings(t, "SELECT rolpassword FROM pg_authid WHERE rolname = 'gateway_scram'")[0]
	users := "\"postgres\" \"a \"\"secret\"\"\"\n\"gateway_scram\" \"" + secret + "\"\n"
	if err := os.WriteFile(path, []byte(users), 0o600); err != nil {
		t.Fatal(err)
	}
	b := start(t, func(c *Config) { c.Users = path })
	login := func(user, password string) error {
		cfg, err := pgx.ParseConfig(b.url(b.Addr(), ""))
		if err != nil {
			t.Fatal(err)
		}
		cfg.User, cfg.Password = user, password
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			return err
		}
		defer conn.Close(context.WithoutCancel(t.Context()))
		if got := one[string](t, conn, "SELECT current_user::text"); got != user {
			t.Errorf("current_user: got %q, want %q", got, user)
		}
		return nil
	}
	for user, password := range map[string]string{"postgres": `a "secret"`, "gateway_scram": "from the server"} {
		if err := login(user, password); err != nil {
			t.Errorf("%s: %v", user, err)
		}
		wantCode(t, login(user, "wrong"), "28P01")
	}
	wantCode(t, login("nobody", "wrong"), "28P01")
	for range 50 {
		wantCode(t, login("postgres", "guess"), "28P01")
	}
	if n := b.Stats().Clients; n != 0 {
		pgtest.Eventually(t, "all have left", func() bool { return b.Stats().Clients == 0 })
	}
}

// raw opens a plain connection.
func raw(t *testing.T, addr net.Addr) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func hello(user string, more ...string) []byte {
	params := map[string]string{"user": user}
	for i := 0; i+1 < len(more); i += 2 {
		params[more[i]] = more[i+1]
	}
	return appendMessage(nil, &pgproto3.StartupMessage{ProtocolVersion: protocol3, Parameters: params})
}

// Whatever a client says, it gets an answer or is dropped, and others are served.
func TestHostileClients(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) { c.StartupTimeout = 500 * time.Millisecond })
	for what, tc := range map[string]struct{ say, want string }{
		"nothing":             {"", ""},
		"half a length":       {"\x00\x00", ""},
		"huge startup":        {"\x7f\xff\xff\xff\x00\x03\x00\x00", "invalid length of startup packet"},
		"tiny startup":        {"\x00\x00\x00\x04\x00\x03\x00\x00", "invalid length of startup packet"},
		"http":                {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "invalid length of startup packet"},
		"tls hello":           {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "invalid length of startup packet"},
		"no terminator":       {"\x00\x00\x00\x0d\x00\x03\x00\x00user\x00", "invalid startup packet layout"},
		"no user":             {"\x00\x00\x00\x09\x00\x03\x00\x00\x00", "no PostgreSQL user name"},
		"protocol 2":          {"\x00\x00\x00\x09\x00\x02\x00\x00\x00", "unsupported frontend protocol 2.0"},
		"endless SSL":         {strings.Repeat("\x00\x00\x00\x08\x04\xd2\x16\x2f", 5), "too many encryption requests"},
		"cancel of nobody":    {"\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x00\x01\x00\x00\x00\x02", ""},
		"short cancel":        {"\x00\x00\x00\x0a\x04\xd2\x16\x2e\x00\x00", ""},
		"unknown message":     {string(hello("postgres")) + "\x01\x00\x00\x00\x04", "invalid frontend message type 1"},
		"negative length":     {string(hello("postgres")) + "Q\xff\xff\xff\xff", "invalid length"},
		"length of three":     {string(hello("postgres")) + "Q\x00\x00\x00\x03", "invalid length"},
		"garbage after login": {string(hello("postgres")) + strings.Repeat("\xde\xad\xbe\xef", 5000), "invalid"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			conn := raw(t, b.Addr())
			if _, err := io.WriteString(conn, tc.say); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(conn)
			if !strings.Contains(string(got), tc.want) || err != nil && tc.want == "" {
				t.Errorf("got %q, %v; want %q in it and the end", got, err, tc.want)
			}
		})
	}
}

// A newer minor version and protocol options are negotiated down.
func TestNegotiation(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	conn := raw(t, b.Addr())
	msg := hello("postgres", "_pq_.compression", "on")
	msg[7] = 2 // 3.2
	if _, err := conn.Write(msg); err != nil {
		t.Fatal(err)
	}
	front := pgproto3.NewFrontend(conn, conn)
	m, err := front.Receive()
	if n, ok := m.(*pgproto3.NegotiateProtocolVersion); err != nil || !ok || len(n.UnrecognizedOptions) != 1 {
		t.Fatalf("got %+v, %v; want NegotiateProtocolVersion", m, err)
	}
	for {
		m, err := front.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := m.(*pgproto3.ReadyForQuery); ok {
			return
		}
	}
}

// A client that reads nothing slows nobody but itself, and does not keep a hold waiting.
func TestSlowClient(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	slow := raw(t, b.Addr())
	if _, err := slow.Write(append(hello("postgres"),
		appendMessage(nil, &pgproto3.Query{String: "SELECT repeat('x', 1000) FROM generate_series(1, 100000)"})...)); err != nil {
		t.Fatal(err)
	}
	quick := b.client(t, b.Addr(), "")
	for range 100 {
		_ = one[int](t, quick, "SELECT 1")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.Hold(ctx, 2); err == nil {
		t.Error("hold returned while a query was running")
	}
	if err := b.Release(t.Context(), target, 2); err != nil {
		t.Fatal(err)
	}
	if got := one[string](t, quick, "SELECT name FROM here"); got != "target" {
		t.Errorf("got %q, want target", got)
	}
}

func TestTooManyClients(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) { c.MaxClients = 1 })
	conn := b.client(t, b.Addr(), "")
	_, err := pgx.Connect(t.Context(), b.url(b.Addr(), ""))
	wantCode(t, err, "53300")
	_ = conn.Close(t.Context())
	pgtest.Eventually(t, "the place is free", func() bool {
		conn, err := pgx.Connect(t.Context(), b.url(b.Addr(), ""))
		if err != nil {
			return false
		}
		_ = conn.Close(t.Context())
		return true
	})
}

// When a backend goes, its clients hear so and nobody else does.
func TestServerLost(t *testing.T) {
	t.Parallel()
	cluster := pgtest.NewCluster(t)
	db := cluster.DB(t)
	db.Exec(t, "CREATE TABLE here AS SELECT 'cluster'::text AS name")
	b := start(t, func(c *Config) { c.Backends[target] = db.DSN; c.MoveTimeout = time.Second })
	conn := b.client(t, b.Addr(), "")
	reader := b.client(t, b.ReadAddr(), "")
	b.shift(t, target, 2)
	if got := one[string](t, conn, "SELECT name FROM here"); got != "cluster" {
		t.Fatalf("got %q, want cluster", got)
	}
	db.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")
	_, err := conn.Exec(t.Context(), "SELECT 1")
	wantCode(t, err, "57P01")

	conn = b.client(t, b.Addr(), "")
	cluster.Kill(t)
	if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
		t.Error("query on a killed server: no error")
	}
	_, err = pgx.Connect(t.Context(), b.url(b.Addr(), ""))
	wantCode(t, err, "08006")
	_ = reader
	b.shift(t, source, 3) // nobody is stuck
	conn = b.client(t, b.Addr(), "")
	if got := one[string](t, conn, "SELECT name FROM here"); got != "source" {
		t.Errorf("got %q, want source", got)
	}
}

// A read-only session stays where it can read when the other backend is gone.
func TestReadsFallBack(t *testing.T) {
	t.Parallel()
	nowhere, err := pg.Parse("postgres://postgres@127.0.0.1:1/x?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	b := start(t, func(c *Config) { c.Backends[target] = nowhere; c.MoveTimeout = 200 * time.Millisecond })
	before := b.client(t, b.ReadAddr(), "")
	if err := b.Reads(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	after := b.client(t, b.ReadAddr(), "")
	for _, conn := range []*pgx.Conn{before, after} {
		if got := one[string](t, conn, "SELECT name FROM here"); got != "source" {
			t.Errorf("got %q, want source", got)
		}
	}
}

// Stopping ends idle sessions at once, held ones too, and transactions when they are over.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) { c.StopTimeout = 10 * time.Second })
	idle, busy, held := b.client(t, b.Addr(), ""), b.client(t, b.Addr(), ""), b.client(t, b.Addr(), "")
	tx, err := busy.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := b.Hold(ctx, 2); err == nil {
		t.Error("hold returned during a transaction")
	}
	answer := make(chan error, 1)
	go func() {
		_, err := held.Exec(t.Context(), "SELECT 1")
		answer <- err
	}()
	pgtest.Eventually(t, "one is held", func() bool { return b.Stats().Held == 1 })
	stopped := make(chan error, 1)
	go func() { stopped <- b.stop() }()
	wantCode(t, <-answer, "57P01")
	if msg, err := idle.PgConn().ReceiveMessage(t.Context()); err != nil {
		wantCode(t, err, "57P01")
	} else if e, ok := msg.(*pgproto3.ErrorResponse); !ok || e.Code != "57P01" {
		t.Errorf("idle client: got %+v", msg)
	}
	if _, err := tx.Exec(t.Context(), "INSERT INTO here VALUES ('last')"); err != nil {
		t.Errorf("in the transaction: %v", err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Errorf("commit: %v", err)
	}
	if err := <-stopped; err == nil {
		t.Error("Run returned nil, want its context's cause")
	}
	if got := b.dbs[source].Int(t, "SELECT count(*) FROM here"); got != 2 {
		t.Errorf("rows: got %d, want 2", got)
	}
	_, err = pgx.Connect(t.Context(), b.url(b.Addr(), ""))
	if err == nil {
		t.Error("the door is still open")
	}
}

// A transaction that does not end is cut off when StopTimeout is over.
func TestStopTimeout(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) { c.StopTimeout = 50 * time.Millisecond })
	conn := b.client(t, b.Addr(), "")
	run(t, conn, "BEGIN")
	if err := b.stop(); err == nil {
		t.Error("Run returned nil, want its context's cause")
	}
	if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
		t.Error("the session is still there")
	}
}

func TestDoorTaken(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	g, err := New(Config{
		Listen: "127.0.0.1:0", ReadListen: b.Addr().String(), Owner: source,
		Backends: map[Backend]pg.DSN{source: b.dbs[source].DSN},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Run(t.Context()); err == nil || !strings.Contains(fmt.Sprint(err), "read-only door") {
		t.Errorf("got %v, want an error that names the door", err)
	}
}
