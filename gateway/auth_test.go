package gateway

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// An authority signs certificates for 127.0.0.1.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.sign(t, "ca", &x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true})
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// sign writes name.crt and name.key.
func (a *authority) sign(t *testing.T, name string, what *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.n++
	what.SerialNumber, what.Subject = big.NewInt(a.n), pkix.Name{CommonName: name}
	what.NotBefore, what.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	what.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = what, key
	}
	der, err := x509.CreateCertificate(rand.Reader, what, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, name+".crt", "CERTIFICATE", der)
	a.write(t, name+".key", "PRIVATE KEY", pkcs8)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (a *authority) write(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(a.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// serverFiles lets a server that runs as another user read the files, which lie in one temporary directory.
func serverFiles(t *testing.T, paths ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	account, err := osuser.Lookup("postgres")
	if err != nil {
		account, err = osuser.Lookup("nobody")
	}
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(account.Uid)
	if err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(paths[0]); dir != filepath.Clean(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range paths {
		if err := os.Chown(p, uid, -1); err != nil {
			t.Fatal(err)
		}
	}
}

func usersFile(t *testing.T, lines string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users.txt")
	if err := os.WriteFile(path, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Clients of every kind come in under TLS, see the gateway's certificate, and can bind their login to
// it. Breaks that it catches: the binding made of another certificate, TLS declined for direct
// clients, Required not looked at, a Reload that keeps the old certificate.
func TestTLSOfClients(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	first, _ := ca.sign(t, "gateway", &x509.Certificate{})
	b := start(t, func(c *Config) {
		c.Users = usersFile(t, `"postgres" "geheim"`)
		c.TLS = TLS{Cert: ca.file("gateway.crt"), Key: ca.file("gateway.key"), Required: true}
	})
	secure := func(more string) string {
		u := fmt.Sprintf("postgres://postgres:geheim@%s/%s?sslrootcert=%s%s", b.Addr(), b.dbs[source].DSN.Database(), url.QueryEscape(ca.file("ca.crt")), more)
		return u
	}
	for _, more := range []string{
		"&sslmode=require", "&sslmode=verify-full", "&sslmode=verify-full&channel_binding=require", "&sslmode=verify-full&channel_binding=disable",
		"&sslmode=verify-full&sslnegotiation=direct", "&sslmode=verify-full&sslnegotiation=direct&channel_binding=require",
	} {
		conn, err := pgx.Connect(t.Context(), secure(more))
		if err != nil {
			t.Errorf("%s: %v", more, err)
			continue
		}
		big := strings.Repeat("x", 1<<20)
		if got := one[string](t, conn, "SELECT $1::text", big); got != big {
			t.Errorf("%s: got %d bytes", more, len(got))
		}
		b.shift(t, target, b.lastEpoch()+1)
		if got := one[string](t, conn, "SELECT name FROM here"); got != "target" {
			t.Errorf("%s: after the switch on %s", more, got)
		}
		b.shift(t, source, b.lastEpoch()+1)
		_ = conn.Close(t.Context())
	}
	out, err := exec.CommandContext(t.Context(), "psql", "-XAtc", "SELECT 1", secure("&sslmode=verify-full&channel_binding=require")).CombinedOutput()
	if err != nil || string(out) != "1\n" {
		t.Errorf("psql: %v %s", err, out)
	}
	_, err = pgx.Connect(t.Context(), secure("&sslmode=disable"))
	wantCode(t, err, "28000")

	second, _ := ca.sign(t, "gateway", &x509.Certificate{})
	if err := b.Reload(); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), secure("&sslmode=verify-full&channel_binding=require"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if shown := b.Hall().tls.Load().Certificates[0].Leaf; shown.Equal(first) || !shown.Equal(second) {
		t.Error("Reload kept the old certificate")
	}
	ca.write(t, "gateway.key", "PRIVATE KEY", []byte("broken"))
	if err := b.Reload(); err == nil {
		t.Error("Reload took a broken key")
	}
	_ = one[string](t, conn, "SELECT name FROM here")
}

// With an authority given, a client must show a certificate of it.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	ca.sign(t, "gateway", &x509.Certificate{})
	ca.sign(t, "app", &x509.Certificate{})
	other.sign(t, "app", &x509.Certificate{})
	b := start(t, func(c *Config) {
		c.TLS = TLS{Cert: ca.file("gateway.crt"), Key: ca.file("gateway.key"), ClientCA: ca.file("ca.crt")}
	})
	try := func(more string) error {
		conn, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://postgres@%s/%s?%s", b.Addr(), b.dbs[source].DSN.Database(), more))
		if err == nil {
			_ = conn.Close(t.Context())
		}
		return err
	}
	own := "sslmode=require&sslcert=%s&sslkey=%s"
	if err := try(fmt.Sprintf(own, ca.file("app.crt"), ca.file("app.key"))); err != nil {
		t.Errorf("its own certificate: %v", err)
	}
	if err := try(fmt.Sprintf(own, other.file("app.crt"), other.file("app.key"))); err == nil {
		t.Error("a stranger's certificate came in")
	}
	if err := try("sslmode=require"); err == nil {
		t.Error("no certificate came in")
	}
	wantCode(t, try("sslmode=disable"), "28000")
}

// Direct TLS without the protocol's name is refused: whoever sends it means another service.
func TestDirectTLSNeedsTheName(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	ca.sign(t, "gateway", &x509.Certificate{})
	b := start(t, func(c *Config) { c.TLS = TLS{Cert: ca.file("gateway.crt"), Key: ca.file("gateway.key")} })
	out, err := exec.CommandContext(t.Context(), "openssl", "s_client", "-connect", b.Addr().String(), "-quiet", "-no_ign_eof").CombinedOutput()
	if bytes.Contains(out, []byte("BEGIN")) {
		t.Errorf("got %v, %s", err, out)
	}
	// In the clear it is still open: TLS is not required.
	conn := b.client(t, b.Addr(), "")
	_ = one[string](t, conn, "SELECT name FROM here")
}

// The gateway knows no password: a query on the owner gives the secret, and the client's own login
// opens the server session, under TLS bound to the server's certificate, before and after a switch.
// Breaks that it catches: keys taken from the wrong part of the talk, a nonce of the server's that is
// not used, the binding left away.
func TestLoginOpensTheServerSession(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	ca.sign(t, "server", &x509.Certificate{})
	hba := ca.file("hba.conf")
	if err := os.WriteFile(hba, []byte("local all all trust\nhostssl all app 127.0.0.1/32 scram-sha-256\nhost all postgres 127.0.0.1/32 trust\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	serverFiles(t, hba, ca.file("server.crt"), ca.file("server.key"))
	cluster := pgtest.NewCluster(t, pgtest.Setting("ssl", "on"), pgtest.Setting("hba_file", hba),
		pgtest.Setting("ssl_cert_file", ca.file("server.crt")), pgtest.Setting("ssl_key_file", ca.file("server.key")))
	dbs := map[Backend]*pgtest.Database{source: cluster.DB(t), target: cluster.DB(t)}
	dsns := map[Backend]pg.DSN{}
	for name, db := range dbs {
		db.Exec(t, fmt.Sprintf("CREATE TABLE here AS SELECT '%s'::text AS name; GRANT SELECT ON here TO public", name))
		var err error
		if dsns[name], err = pg.Parse(fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=verify-full&sslrootcert=%s",
			db.Port(), db.DSN.Database(), ca.file("ca.crt"))); err != nil {
			t.Fatal(err)
		}
	}
	dbs[source].Exec(t, "SET password_encryption = 'scram-sha-256'; CREATE ROLE app LOGIN PASSWORD 'first'; CREATE ROLE plain LOGIN")
	b := start(t, func(c *Config) {
		c.Backends, c.Users = dsns, usersFile(t, "")
		c.AuthQuery = "SELECT rolname::text, rolpassword FROM pg_catalog.pg_authid WHERE rolname = $1 AND rolcanlogin"
	})
	b.dbs = dbs
	login := func(user, password string) (*pgx.Conn, error) {
		return pgx.Connect(t.Context(), fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable", user, password, b.Addr(), dbs[source].DSN.Database()))
	}
	conn, err := login("app", "first")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	for epoch, to := range []Backend{source, target, source} {
		b.shift(t, to, int64(epoch+2))
		if got := one[string](t, conn, "SELECT name || current_user || (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()) FROM here"); got != string(to)+"apptrue" {
			t.Errorf("got %s", got)
		}
	}
	for user, password := range map[string]string{"app": "wrong", "plain": "", "nobody": "first"} {
		_, err := login(user, cmp.Or(password, "x"))
		wantCode(t, err, "28P01")
	}
	dbs[source].Exec(t, "ALTER ROLE app PASSWORD 'second'") // noticed at once
	_, err = login("app", "first")
	wantCode(t, err, "28P01")
	again, err := login("app", "second")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close(context.WithoutCancel(t.Context()))
	_ = one[string](t, again, "SELECT name FROM here")
	if n := dbs[source].Int(t, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ficus/gateway-auth'"); n != 1 {
		t.Errorf("sessions that ask for users: got %d, want 1", n)
	}
	dbs[source].Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ficus/gateway-auth'")
	third, err := login("app", "second") // on a new session
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close(context.WithoutCancel(t.Context()))
}
