package pgserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// account is the operating-system user that PostgreSQL runs as; nil credentials mean the caller's own.
type account struct {
	name string
	cred *syscall.Credential
}

// runAs returns the caller's own account, and for root that of postgres or else nobody.
func runAs() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return account{}, fmt.Errorf("user %s: %w", name, err)
		}
		return account{name, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return account{}, hint.Wrap(errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody"),
		"run as another user, or create one: useradd --system postgres")
}

// prepare makes cmd run as the account, in dir, with a clean environment and out of reach of the
// terminal's Ctrl-C: who stops it is the caller or the watchdog.
func (a account) prepare(cmd *exec.Cmd, dir string) {
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: a.cred}
}

// own gives path to the account.
func (a account) own(path string) error {
	if a.cred == nil {
		return nil
	}
	return os.Chown(path, int(a.cred.Uid), int(a.cred.Gid))
}

// tempRoot returns a folder for temporary directories that the account can reach.
func (a account) tempRoot() string {
	dir := os.TempDir()
	if a.cred == nil || worldReachable(dir) {
		return dir
	}
	return "/tmp"
}

// worldReachable reports whether everybody may enter dir and every folder above it.
func worldReachable(dir string) bool {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == "/" {
			return true
		}
		dir = filepath.Dir(dir)
	}
}

// A pidFile is what PostgreSQL says about itself in postmaster.pid.
// Source: PostgreSQL source, src/include/utils/pidfile.h.
type pidFile struct {
	pid    int
	status string // "starting", "stopping", "ready" or "standby"
}

// readPidFile returns the zero pidFile when there is none yet.
func readPidFile(data string) (pidFile, error) {
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return pidFile{}, nil
	} else if err != nil {
		return pidFile{}, err
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) < 8 {
		return pidFile{}, nil // still being written
	}
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil {
		return pidFile{}, fmt.Errorf("postmaster.pid: %w", err)
	}
	return pidFile{pid, strings.TrimSpace(lines[7])}, nil
}
