package pgtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgserver"
)

// A Bouncer is a PgBouncer of a test's own.
type Bouncer struct {
	Admin pg.DSN // its console
	Port  int
	File  string // its configuration

	mu  sync.Mutex
	cmd *exec.Cmd
}

// NewBouncer starts a PgBouncer with these lines of [databases] and of [pgbouncer]. It listens on
// 127.0.0.1, trusts everybody and pools transactions unless settings say otherwise.
func NewBouncer(t testing.TB, databases, settings string) *Bouncer {
	t.Helper()
	program := findBouncer(t)
	port, err := pgserver.FreePort(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { //nolint:gosec // PgBouncer does not run as root, and has to read it
		t.Fatal(err)
	}
	b := &Bouncer{Port: port, File: filepath.Join(dir, "pgbouncer.ini")}
	users := filepath.Join(dir, "users.txt")
	if err := os.WriteFile(users, []byte("\"postgres\" \"\"\n\"admin\" \"\"\n"), 0o644); err != nil { //nolint:gosec // PgBouncer reads it
		t.Fatal(err)
	}
	text := fmt.Sprintf("[databases]\n%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = trust\nauth_file = %s\nadmin_users = admin\npool_mode = transaction\nignore_startup_parameters = extra_float_digits\n%s\n",
		databases, port, users, settings)
	if err := os.WriteFile(b.File, []byte(text), 0o644); err != nil { //nolint:gosec // likewise
		t.Fatal(err)
	}
	if b.Admin, err = pg.Parse(fmt.Sprintf("postgres://admin@127.0.0.1:%d/pgbouncer?sslmode=disable", port)); err != nil {
		t.Fatal(err)
	}
	b.Start(t, program)
	t.Cleanup(b.Kill)
	return b
}

// Start runs it again after Kill.
func (b *Bouncer) Start(t testing.TB, program ...string) {
	t.Helper()
	if len(program) == 0 {
		program = []string{findBouncer(t)}
	}
	args := []string{"-q", b.File}
	if os.Geteuid() == 0 {
		args = append([]string{"-u", "nobody"}, args...)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program[0], args...)
	log := &bouncerLog{}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.cmd = cmd
	b.mu.Unlock()
	defer func() {
		if t.Failed() {
			t.Log(log)
		}
	}()
	Eventually(t, "pgbouncer to answer", func() bool {
		conn, err := pgconn.ConnectConfig(t.Context(), &b.Admin.Config().Config)
		if err != nil {
			return false
		}
		_ = conn.Close(t.Context())
		return true
	})
}

// Kill ends it at once.
func (b *Bouncer) Kill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cmd != nil {
		_ = b.cmd.Process.Kill()
		_ = b.cmd.Wait()
		b.cmd = nil
	}
}

// findBouncer finds the program, or skips the test where it is not installed.
func findBouncer(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer", "/usr/local/sbin/pgbouncer"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("pgbouncer is missing: .ci/need-postgres installs it")
	}
	t.Skip("pgbouncer is missing: apt-get install pgbouncer")
	return ""
}

// bouncerLog keeps what it said.
type bouncerLog struct {
	mu   sync.Mutex
	text []byte
}

func (l *bouncerLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

func (l *bouncerLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}
