package killtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// A server is a cluster that is killed with all its processes at once, as kill -9 of each of them, or the
// loss of the machine but for its disk cache, would.
type server struct {
	*pgtest.Cluster
	admin *pgtest.Database
	down  bool
}

func newServer(t *testing.T, opts ...pgtest.Option) *server {
	t.Helper()
	c := pgtest.NewCluster(t, opts...)
	return &server{Cluster: c, admin: c.DB(t)}
}

// kill9 ends the postmaster and its children by SIGKILL; where they are not to be found (another
// system, a container), as an immediate shutdown does.
func (s *server) kill9(t *testing.T) {
	t.Helper()
	s.down = true
	if pid := s.postmaster(t); pid > 0 {
		_ = syscall.Kill(pid, syscall.SIGSTOP) // or it would start new ones
		for _, child := range children(pid) {
			_ = syscall.Kill(child, syscall.SIGKILL)
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	s.Kill(t)
}

func (s *server) start(t *testing.T) {
	t.Helper()
	if s.down {
		s.Start(t)
		s.down = false
	}
}

// postmaster returns the process id of the server; 0 when it is not known.
func (s *server) postmaster(t *testing.T) int {
	t.Helper()
	backend := s.admin.Int(t, `SELECT pg_backend_pid()`)
	pid, name := parent(fmt.Sprintf("/proc/%d/stat", backend))
	if _, above := parent(fmt.Sprintf("/proc/%d/stat", pid)); pid <= 1 || name != "postgres" || above != "postgres" {
		return 0
	}
	return pid
}

// children returns the processes whose parent is pid.
func children(pid int) (all []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		if p, _ := parent(f); p == pid {
			if child, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}

// parent reads a process' parent and its own name; 0 when it is gone. Source: proc(5).
func parent(stat string) (pid int, name string) {
	text, err := os.ReadFile(stat)
	if err != nil {
		return 0, ""
	}
	_, rest, _ := strings.Cut(string(text), "(")
	at := strings.LastIndexByte(rest, ')')
	if at < 0 {
		return 0, ""
	}
	fields := strings.Fields(rest[at+1:])
	if len(fields) < 2 {
		return 0, ""
	}
	pid, _ = strconv.Atoi(fields[1])
	return pid, rest[:at]
}
