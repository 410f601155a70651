package faultpg

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m, pgtest.CheckLeaks()) }

// echo is a server that sends back what it gets.
func echo(t *testing.T) pg.DSN {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() { // until the listener is closed
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { // until the client leaves
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	dsn, err := pg.Parse("postgresql://u@" + listener.Addr().String() + "/d?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	return dsn
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", p.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
}

// receive reads n bytes, or less when the connection ends or limit passes.
func receive(t *testing.T, conn net.Conn, n int, limit time.Duration) (string, error) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, n)
	got, err := io.ReadFull(conn, buf)
	return string(buf[:got]), err
}

const soon, enough = 100 * time.Millisecond, 10 * time.Second

func TestResetAfter(t *testing.T) {
	t.Parallel()
	for _, d := range []Direction{ToServer, ToClient} {
		t.Run(d.String(), func(t *testing.T) {
			t.Parallel()
			p := New(t, echo(t))
			conn := dial(t, p)
			p.ResetAfter(d, 100_000)
			send(t, conn, strings.Repeat("x", 60_000))
			if got, err := receive(t, conn, 60_000, enough); err != nil {
				t.Fatalf("%d bytes before the reset: %v", len(got), err)
			}
			_, _ = io.WriteString(conn, strings.Repeat("x", 60_000)) // may fail already
			// A reset takes back what had not been read, so fewer may arrive, but never more.
			got, err := receive(t, conn, 60_000, enough)
			if len(got) > 40_000 || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%d bytes, then %v", len(got), err)
			}
			pgtest.Eventually(t, "the connection to be gone", func() bool { return p.Connections() == 0 })
			if p.Resets() != 1 {
				t.Errorf("%d resets", p.Resets())
			}
			conn = dial(t, p) // once only
			send(t, conn, strings.Repeat("x", 200_000))
			if _, err := receive(t, conn, 200_000, enough); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestStall(t *testing.T) {
	t.Parallel()
	for _, d := range []Direction{ToServer, ToClient} {
		t.Run(d.String(), func(t *testing.T) {
			t.Parallel()
			p := New(t, echo(t))
			conn := dial(t, p)
			p.Stall(d)
			send(t, conn, "hello")
			var timeout net.Error
			if got, err := receive(t, conn, 5, soon); !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Fatalf("through a stall: %q, %v", got, err)
			}
			p.Flow()
			if got, err := receive(t, conn, 5, enough); got != "hello" {
				t.Fatalf("after the stall: %q, %v", got, err)
			}
		})
	}
}

func TestSlowAndDelay(t *testing.T) {
	t.Parallel()
	p := New(t, echo(t))
	conn := dial(t, p)
	took := func(n int) time.Duration {
		began := time.Now()
		send(t, conn, strings.Repeat("x", n))
		if _, err := receive(t, conn, n, enough); err != nil {
			t.Fatal(err)
		}
		return time.Since(began)
	}
	p.Slow(ToClient, 100_000)
	if d := took(20_000); d < 150*time.Millisecond {
		t.Errorf("20 kB at 100 kB/s took %s", d)
	}
	p.Flow()
	p.Delay(200 * time.Millisecond)
	if d := took(1); d < 200*time.Millisecond {
		t.Errorf("a round trip of 200 ms took %s", d)
	}
	p.Flow()
	if d := took(1); d > 150*time.Millisecond {
		t.Errorf("a round trip without faults took %s", d)
	}
}

// A delay that is there when a connection is made limits no rate: with nearPieces on the way the bytes
// would take 16 seconds each way.
func TestDelayLimitsNoRate(t *testing.T) {
	t.Parallel()
	p := New(t, echo(t))
	p.Delay(time.Second)
	conn := dial(t, p)
	const size = 8 << 20
	began := time.Now()
	go func() { _, _ = conn.Write(make([]byte, size)) }() // until the test closes conn
	if got, err := receive(t, conn, size, 20*time.Second); err != nil {
		t.Fatalf("%d of %d bytes: %v", len(got), size, err)
	}
	if d := time.Since(began); d < time.Second || d > 8*time.Second {
		t.Errorf("it took %s", d)
	}
}

func TestCutAndRefuse(t *testing.T) {
	t.Parallel()
	p := New(t, echo(t))
	conn := dial(t, p)
	send(t, conn, "a")
	if _, err := receive(t, conn, 1, enough); err != nil {
		t.Fatal(err)
	}
	p.Cut()
	if _, err := receive(t, conn, 1, enough); !errors.Is(err, io.EOF) {
		t.Errorf("after the cut: %v", err)
	}
	p.Refuse(true)
	if _, err := receive(t, dial(t, p), 1, enough); !errors.Is(err, io.EOF) {
		t.Errorf("refused: %v", err)
	}
	p.Refuse(false)
	conn = dial(t, p)
	send(t, conn, "b")
	if got, err := receive(t, conn, 1, enough); got != "b" {
		t.Errorf("let in again: %q, %v", got, err)
	}
}

// PostgreSQL speaks through a proxy as without it, and sees its client go with a cut.
func TestPostgres(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	p := New(t, db.DSN)
	conn, err := p.DSN(db.Name).Connect(t.Context(), "faultpg")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	var n int
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM generate_series(1, 1000)`).Scan(&n); err != nil || n != 1000 {
		t.Fatalf("%d, %v", n, err)
	}
	p.Reset()
	if err := conn.Ping(t.Context()); !pg.Retryable(err) {
		t.Errorf("after a reset: %v", err)
	}
	pgtest.Eventually(t, "the session to end", func() bool {
		return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ficus/faultpg' AND datname = current_database()`) == 0
	})
}
