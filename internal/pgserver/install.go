package pgserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// ErrNotFound says that no usable PostgreSQL is on this machine.
var ErrNotFound = errors.New("no PostgreSQL server binaries found")

// binEnv names a list of folders, separated as in PATH, that are searched first.
const binEnv = "FICUS_PG_BIN"

// versionTimeout bounds "postgres --version".
const versionTimeout = 10 * time.Second

// An Install is one PostgreSQL server installation.
type Install struct {
	Major   int    // 15
	Version string // "15.18"
	Bin     string // folder that holds initdb and postgres, symbolic links resolved
	Fetched bool   // found in .cache/pg, where "make pg" puts versions for development
}

// String returns the version and where it is, for people.
func (i Install) String() string { return fmt.Sprintf("PostgreSQL %s (%s)", i.Version, i.Bin) }

// Find returns the installations that this process can start, newest major first and at most one
// per major. Where one major is there several times, the first place wins: FICUS_PG_BIN, PATH, the
// distributions' folders, .cache/pg/<major> of the module that the working directory is in.
// With none it returns ErrNotFound and a hint.
func Find() ([]Install, error) {
	fetched := ""
	if root := moduleRoot(); root != "" {
		fetched = filepath.Join(root, ".cache/pg/*/bin")
	}
	system := candidates()
	var found []Install
	for i, dir := range append(system, newestFirst(fetched)...) {
		in, err := inspect(dir)
		in.Fetched = i >= len(system)
		if err != nil || slices.ContainsFunc(found, func(f Install) bool { return f.Major == in.Major }) {
			continue // not an installation, or one that a nearer place already gave
		}
		found = append(found, in)
	}
	if len(found) == 0 {
		return nil, hint.Wrap(ErrNotFound, "%s", installHint())
	}
	slices.SortStableFunc(found, func(a, b Install) int { return cmp.Compare(b.Major, a.Major) })
	return found, nil
}

// candidates lists the system's folders that may hold server binaries, the most wanted first.
func candidates() []string {
	dirs := filepath.SplitList(os.Getenv(binEnv))
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		// Some distributions link single programs into PATH; the rest lives beside the link's target.
		if target, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres")); err == nil {
			dirs = append(dirs, filepath.Dir(target))
		}
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",         // Debian, Ubuntu
		"/usr/pgsql-*/bin",                  // RPMs of the PostgreSQL project
		"/usr/libexec/postgresql*",          // Alpine
		"/opt/homebrew/opt/postgresql*/bin", // Homebrew on Apple silicon
		"/usr/local/opt/postgresql*/bin",    // Homebrew on Intel
		"/usr/local/pgsql/bin",              // built from source
	} {
		dirs = append(dirs, newestFirst(pattern)...)
	}
	return dirs
}

func newestFirst(pattern string) []string {
	dirs, err := filepath.Glob(pattern)
	if err != nil {
		return nil // the patterns are constants, but a module root may hold a bracket
	}
	slices.Reverse(dirs)
	return dirs
}

// moduleRoot returns the nearest folder above the working directory that holds a go.mod, or "".
func moduleRoot() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return ""
		}
		dir = parent
	}
}

var versionText = regexp.MustCompile(`\) ((\d+)[.\w]*)`)

// inspect reports the installation in dir, an error when there is none that the cluster's user can run.
func inspect(dir string) (Install, error) {
	postgres, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres"))
	if err != nil {
		return Install{}, err
	}
	bin := filepath.Dir(postgres)
	if _, err := os.Stat(filepath.Join(bin, "initdb")); err != nil {
		return Install{}, err
	}
	who, err := runAs()
	if err != nil {
		return Install{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, postgres, "--version")
	who.prepare(cmd, "/")
	out, err := cmd.Output()
	if err != nil {
		return Install{}, fmt.Errorf("%s --version: %w", postgres, err)
	}
	m := versionText.FindSubmatch(out)
	if m == nil {
		return Install{}, fmt.Errorf("%s --version: cannot read %q", postgres, out)
	}
	major, err := strconv.Atoi(string(m[2]))
	return Install{Major: major, Version: string(m[1]), Bin: bin}, err
}

func installHint() string {
	how := "install a PostgreSQL server (13 or later)"
	switch runtime.GOOS {
	case "darwin":
		how = "brew install postgresql@17"
	case "linux":
		how = "Debian, Ubuntu: apt-get install postgresql; Fedora, RHEL: dnf install postgresql-server"
	}
	return how + "; or set " + binEnv + " to the folders that hold initdb and postgres"
}
