package pgserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pgserver"
)

// ownerEnv makes this binary start a cluster, say where it is, and wait to be killed.
const ownerEnv = "PGSERVER_TEST_OWNER"

func TestMain(m *testing.M) {
	if os.Getenv(ownerEnv) != "" {
		own()
	}
	goleak.VerifyTestMain(m)
}

func own() {
	s, err := pgserver.Start(context.Background(), pgserver.Config{Install: anInstall()})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	pid, _, _ := strings.Cut(postmasterPid(s.Dir()), "\n")
	fmt.Println(pid, s.Dir())
	select {}
}

func anInstall() pgserver.Install {
	found, err := pgserver.Find()
	if err != nil {
		fmt.Println(err, hint.Of(err))
		os.Exit(1)
	}
	return found[0]
}

func postmasterPid(dir string) string {
	text, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		return ""
	}
	return string(text)
}

func start(t *testing.T, cfg pgserver.Config) *pgserver.Server {
	t.Helper()
	cfg.Install = anInstall()
	s, err := pgserver.Start(t.Context(), cfg)
	if err != nil {
		t.Fatalf("%v\nhint: %s", err, hint.Of(err))
	}
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(s.Dir()); cfg.Dir == "" && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the temporary directory %s is still there", s.Dir())
		}
	})
	return s
}

func query(t *testing.T, s *pgserver.Server, sql string) string {
	t.Helper()
	conn, err := s.DSN("postgres").Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	var out string
	if err := conn.QueryRow(t.Context(), sql).Scan(&out); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return out
}

func TestLifeOfAServer(t *testing.T) {
	t.Parallel()
	s := start(t, pgserver.Config{Settings: map[string]string{"work_mem": "5MB"}})
	if got := query(t, s, "SHOW work_mem"); got != "5MB" {
		t.Errorf("work_mem = %s, want the setting of the config", got)
	}
	port := s.Port()
	for name, down := range map[string]func() error{
		"shutdown": func() error { return s.Shutdown(t.Context()) },
		"kill":     s.Kill,
	} {
		if err := down(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if s.Running() {
			t.Errorf("%s: still running", name)
		}
		if err := down(); err != nil {
			t.Errorf("%s a second time: %v", name, err)
		}
		if err := s.Restart(t.Context()); err != nil {
			t.Fatalf("restart after %s: %v", name, err)
		}
	}
	if query(t, s, "SELECT 'up'") != "up" || s.Port() != port {
		t.Errorf("after the restarts: port %d, was %d", s.Port(), port)
	}
	if log := s.LogTail(50); !strings.Contains(log, "ready to accept connections") {
		t.Errorf("log:\n%s", log)
	}
	if got := len(strings.Split(s.LogTail(2), "\n")); got != 2 {
		t.Errorf("LogTail(2) gives %d lines", got)
	}
}

func TestKeepsAGivenDirectory(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "ficus-keep-") //nolint:usetesting // the parents of t.TempDir are the caller's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, sql := range []string{"CREATE TABLE kept (id int)", "DROP TABLE kept"} {
		s, err := pgserver.Start(t.Context(), pgserver.Config{Install: anInstall(), Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := s.DSN("postgres").Connect(t.Context(), "test")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), "SET search_path = public; "+sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
		_ = conn.Close(t.Context())
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStartSaysWhy(t *testing.T) {
	t.Parallel()
	running := start(t, pgserver.Config{})
	for name, c := range map[string]struct {
		cfg  pgserver.Config
		want string
	}{
		"port taken":      {pgserver.Config{Install: anInstall(), Port: running.Port()}, "Address already in use"},
		"unknown setting": {pgserver.Config{Install: anInstall(), Settings: map[string]string{"no_such": "1"}}, "no_such"},
		"no installation": {pgserver.Config{}, "no installation"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := pgserver.Start(t.Context(), c.cfg)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want it to contain %q", err, c.want)
			}
		})
	}
}

// Whoever started a cluster may end in any way: the cluster and its directory go.
func TestNothingOutlivesItsOwner(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			pid, dir := killOwner(t, sig)
			deadline := time.After(20 * time.Second)
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				_, err := os.Stat(dir)
				if errors.Is(err, fs.ErrNotExist) && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
					return
				}
				select {
				case <-tick.C:
				case <-deadline:
					t.Fatalf("postmaster %d or %s is still there", pid, dir)
				}
			}
		})
	}
}

// killOwner runs another process that starts a cluster, and ends it with a signal to its group,
// as a terminal does.
func killOwner(t *testing.T, sig syscall.Signal) (pid int, dir string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), ownerEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	first, dir, ok := strings.Cut(strings.TrimSpace(line), " ")
	if pid, err = strconv.Atoi(first); err != nil || !ok {
		t.Fatalf("the owner says %q", line)
	}
	if err := syscall.Kill(-cmd.Process.Pid, sig); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	return pid, dir
}

func TestFind(t *testing.T) {
	found, err := pgserver.Find()
	if err != nil {
		t.Fatal(err)
	}
	for i, in := range found {
		if in.Major < 9 || !strings.HasPrefix(in.Version, strconv.Itoa(in.Major)) || i > 0 && in.Major >= found[i-1].Major {
			t.Errorf("found[%d] = %v", i, in)
		}
	}
	// A folder with a link to postgres, but no initdb beside the link, stands for the link's target.
	links := t.TempDir()
	last := found[len(found)-1]
	if err := os.Symlink(filepath.Join(last.Bin, "postgres"), filepath.Join(links, "postgres")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FICUS_PG_BIN", links)
	again, err := pgserver.Find()
	if err != nil {
		t.Fatal(err)
	}
	if got := again[len(again)-1]; got.Bin != last.Bin {
		t.Errorf("through a link: %v, want %v", got, last)
	}
}
