package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestPgBouncerRun: an application behind its own PgBouncer writes through a promotion and a rollback; nothing
// fails, nothing is lost, and each side has what was written while it owned.
func TestPgBouncerRun(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY)`)
	bouncer := pgtest.NewBouncer(t, fmt.Sprintf("shop = host=%s port=%d dbname=%s", source.Host(), source.Port(), source.Name), "")
	file := filepath.Join(t.TempDir(), "book.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, `
name: %s
router:
  type: pgbouncer
  pgbouncers: [{admin: "postgres://admin@127.0.0.1:%d/pgbouncer?sslmode=disable", database: shop, file: %q}]
promote: {hold_budget: 60s, fence_budget: 60s, drain_budget: 60s, proof_budget: 60s}
`, nameFor(source), bouncer.Port, bouncer.File), 0o600))

	app := connectTo(t, fmt.Sprintf("127.0.0.1:%d", bouncer.Port), "shop")
	ctx, stop := context.WithCancelCause(t.Context())
	written := make(chan int, 1)
	go func() { // ends with stop
		n := 0
		for ; ctx.Err() == nil; n++ {
			if _, err := app.Exec(t.Context(), `INSERT INTO public.t VALUES ($1)`, n); err != nil {
				t.Errorf("write %d: %v", n, err)
				break
			}
		}
		written <- n
	}()

	_, api := freeAddrs(t)
	dir := t.TempDir()
	run := ficus(t, dir, "run", "-f", file, "--source", source.URL, "--target", target.URL, "--yes", "--listen", api)
	run.line("phase", map[string]any{"phase": "promoted"})
	grows := func(db *pgtest.Database) {
		t.Helper()
		before := db.Int(t, `SELECT count(*) FROM public.t`)
		pgtest.Eventually(t, "the application to write", func() bool { return db.Int(t, `SELECT count(*) FROM public.t`) > before })
	}
	grows(target)
	if out, status := once(t, dir, "rollback", nameFor(source), "--wait", "--api", "http://"+api); status != 0 {
		t.Fatalf("rollback: status %d, %v", status, out)
	}
	grows(source)
	stop(errors.New("enough"))
	n := <-written
	if have := source.Int(t, `SELECT count(*) FROM public.t`); have != int64(n) {
		t.Errorf("%d rows of %d acknowledged writes", have, n)
	}
}

// TestReadsRun: with a link that runs, reads on the other database see what their user has just written, and
// shadow reads compare until their gate opens.
func TestReadsRun(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.t (id int PRIMARY KEY, v int); INSERT INTO public.t VALUES (1, 0)`)
	file := filepath.Join(t.TempDir(), "book.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, `
name: %s
router:
  reads: {your_writes: wait, max_wait: 30s, max_slower: -1}
  shadow: {share: 1, timeout: 30s}
promote: {reads: [50], reads_watch: 1s}
gates: {shadow: {min: 10}}
`, nameFor(source)), 0o600))
	gateway, api := freeAddrs(t)
	run := ficus(t, t.TempDir(), "run", "-f", file, "--source", source.URL, "--target", target.URL, "--gateway-listen", gateway, "--listen", api)
	run.line("step", map[string]any{"message": "50 percent of reads go to the side that does not own"})
	host, port, err := net.SplitHostPort(gateway)
	must(t, err)
	p, err := strconv.Atoi(port)
	must(t, err)
	writer := connectTo(t, gateway, source.Name)
	readers := make([]*pgx.Conn, 8) // of which about half go to the other database
	for i := range readers {
		readers[i] = connectTo(t, net.JoinHostPort(host, strconv.Itoa(p+1)), source.Name)
	}
	seen := map[string]int{}
	for v := 1; v <= 10; v++ {
		_, err := writer.Exec(t.Context(), `UPDATE public.t SET v = $1`, v)
		must(t, err)
		for _, reader := range readers {
			var got int
			var where string
			must(t, reader.QueryRow(t.Context(), `SELECT v, pg_catalog.current_database() FROM public.t`).Scan(&got, &where))
			if got != v {
				t.Fatalf("wrote %d, read %d in %s", v, got, where)
			}
			_, err := reader.Exec(t.Context(), `SELECT * FROM public.t`)
			must(t, err)
			seen[where]++
		}
	}
	if len(seen) != 2 {
		t.Errorf("reads were led to %v", seen)
	}
	pgtest.Eventually(t, "the gate shadow to open", func() bool {
		for _, reader := range readers { // what is not looked at in time is left out
			_, err := reader.Exec(t.Context(), `SELECT * FROM public.t`)
			must(t, err)
		}
		out, err := program(t, "status", nameFor(source), "--api", "http://"+api).Output()
		return err == nil && strings.Contains(string(out), "waiting for approval") && strings.Contains(string(out), " compared, 0 answered otherwise (0 %)") &&
			strings.Contains(string(out), "9 connected, 0 held, ")
	})
}

// TestSecureRun: the gateway of a migration takes TLS, refuses clients without it, and asks the owner for users.
func TestSecureRun(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	role := nameFor(source) + "_app"
	source.Exec(t, fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD 'right'; CREATE TABLE public.t (id int PRIMARY KEY); GRANT SELECT ON public.t TO %[1]s`, role))
	t.Cleanup(func() { source.Exec(t, "DROP OWNED BY "+role+"; DROP ROLE "+role) })
	cert, key := certificate(t)
	file := filepath.Join(t.TempDir(), "book.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, `
name: %s
router:
  auth_query: SELECT usename::text, passwd FROM pg_catalog.pg_shadow WHERE usename = $1
  tls: {cert: %q, key: %q, required: true}
`, nameFor(source), cert, key), 0o600))
	gateway, api := freeAddrs(t)
	run := ficus(t, t.TempDir(), "run", "-f", file, "--source", source.URL, "--target", target.URL, "--until", "following", "--gateway-listen", gateway, "--listen", api)
	run.line("listening", nil)
	dial := func(password, more string) error {
		conn, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://%s:%s@%s/%s?%s", role, password, gateway, source.Name, more))
		if err != nil {
			return err
		}
		defer conn.Close(t.Context())
		_, err = conn.Exec(t.Context(), "SELECT id FROM public.t")
		return err
	}
	must(t, dial("right", "sslmode=verify-full&sslrootcert="+cert))
	if err := dial("right", "sslmode=disable"); pg.Code(err) != "28000" {
		t.Errorf("a client without TLS: %v", err)
	}
	if err := dial("wrong", "sslmode=verify-full&sslrootcert="+cert); pg.Code(err) != "28P01" {
		t.Errorf("a wrong password: %v", err)
	}
}

// certificate makes one for 127.0.0.1 that signs itself, and returns the paths of it and its key.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	what := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, what, what, k.Public(), k)
	must(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	must(t, err)
	dir := t.TempDir()
	for name, b := range map[string]pem.Block{"crt": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: secret}} {
		must(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&b), 0o600))
	}
	return filepath.Join(dir, "crt"), filepath.Join(dir, "key")
}

func connectTo(t *testing.T, addr, database string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable&default_query_exec_mode=simple_protocol", addr, database))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}
