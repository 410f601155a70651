package dump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
)

// ErrNoTools is in the chain of FindTools' error.
var ErrNoTools = errors.New("no pg_dump that can read this server")

// Tools are PostgreSQL's own programs, of one installation.
type Tools struct {
	PgDump, PgRestore string // paths
	Major             int    // of pg_dump
}

// FindTools returns the newest tools that can read a server of that major version: pg_dump reads
// servers of its own and of older versions. It looks in the folders of FICUS_PG_BIN, in those where
// distributions put PostgreSQL, and in PATH. The error, an [ErrNoTools], names the package to install.
func FindTools(ctx context.Context, serverMajor int) (Tools, error) {
	return findTools(ctx, serverMajor, folders())
}

// folders returns where PostgreSQL's programs may be. PATH comes last: on Debian it holds a wrapper
// that chooses a version by its own rules.
func folders() []string {
	dirs := filepath.SplitList(os.Getenv("FICUS_PG_BIN"))
	for _, glob := range []string{
		"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
		"/usr/pgsql-*/bin",                   // Red Hat, from postgresql.org
		"/usr/libexec/postgresql*",           // Alpine
		"/opt/homebrew/opt/postgresql@*/bin", // macOS
		"/opt/homebrew/opt/libpq/bin",        //
		"/usr/local/opt/postgresql@*/bin",    // macOS on Intel
		"/usr/local/opt/libpq/bin",           //
		"/Applications/Postgres.app/Contents/Versions/*/bin",
		"/usr/local/pgsql/bin", // from source
	} {
		found, err := filepath.Glob(glob)
		if err == nil { // the only error is a malformed pattern
			dirs = append(dirs, found...)
		}
	}
	return append(dirs, filepath.SplitList(os.Getenv("PATH"))...)
}

func findTools(ctx context.Context, serverMajor int, dirs []string) (Tools, error) {
	var best Tools
	var tooOld []string
	for _, dir := range dirs {
		t := Tools{PgDump: filepath.Join(dir, "pg_dump"), PgRestore: filepath.Join(dir, "pg_restore")}
		if !executable(t.PgDump) || !executable(t.PgRestore) || best.Major > 0 && wrapped(t.PgDump) {
			continue
		}
		var err error
		if t.Major, err = major(ctx, t.PgDump); err != nil {
			if ctx.Err() != nil {
				return Tools{}, context.Cause(ctx)
			}
			continue // not a pg_dump that runs here
		}
		switch {
		case t.Major < serverMajor:
			tooOld = append(tooOld, fmt.Sprintf("%d in %s", t.Major, dir))
		case t.Major > best.Major:
			best = t
		}
	}
	if best.Major > 0 {
		return best, nil
	}
	err := fmt.Errorf("find pg_dump for PostgreSQL %d: %w", serverMajor, ErrNoTools)
	if len(tooOld) > 0 {
		slices.Sort(tooOld)
		err = fmt.Errorf("find pg_dump for PostgreSQL %d: %w: found only %s", serverMajor, ErrNoTools,
			strings.Join(slices.Compact(tooOld), ", "))
	}
	return Tools{}, hint.Wrap(err, "%s", installHint(serverMajor))
}

func installHint(major int) string {
	return fmt.Sprintf("install the client programs of PostgreSQL %[1]d or newer: apt-get install postgresql-client-%[1]d "+
		"(Debian, Ubuntu; apt.postgresql.org has every version), dnf install postgresql%[1]d (Red Hat, from postgresql.org), "+
		"brew install postgresql@%[1]d (macOS); or name the folder that holds them in FICUS_PG_BIN", major)
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir() && info.Mode()&0o111 != 0
}

// wrapped reports whether a program is a link to another one, which chooses what to run: on Debian a
// script, whose start takes several times as long.
func wrapped(path string) bool {
	resolved, err := filepath.EvalSymlinks(path)
	return err == nil && filepath.Base(resolved) != filepath.Base(path)
}

// major finds the version version in "pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"; betas
// read "19beta1".
func major(ctx context.Context, pgDump string) (int, error) {
	out, err := exec.CommandContext(ctx, pgDump, "--version").Output()
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`\(PostgreSQL\) (\d+)`).FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("%s --version: unexpected %q", pgDump, out)
	}
	return strconv.Atoi(string(m[1]))
}

// run runs a tool and returns its standard output. The error ends with the tool's own complaint.
func run(ctx context.Context, env []string, tool string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Env = env
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", fmt.Errorf("%s: %w", filepath.Base(tool), &toolError{lastLines(complaint.String()), err})
	}
	return out.String(), nil
}

// A toolError is what a tool printed before it failed.
type toolError struct {
	text string
	err  error
}

func (e *toolError) Error() string {
	if e.text == "" {
		return e.err.Error()
	}
	return e.text
}

func (e *toolError) Unwrap() error { return e.err }

// lastLines returns the complaint of a verbose run: the lines from the first error on.
func lastLines(s string) string {
	for _, mark := range []string{": error: ", ": fatal: "} {
		if i := strings.Index(s, mark); i >= 0 {
			s = s[i+len(mark):]
			break
		}
	}
	const most = 600
	s = strings.Join(strings.Fields(s), " ")
	return s[:min(len(s), most)]
}

// environment returns the process's environment with the connection of dsn and nothing else of what
// libpq reads, except for its TLS and Kerberos files.
func environment(dsn pg.DSN) []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "PGSSL") || strings.HasPrefix(kv, "PGKRB") || strings.HasPrefix(kv, "PGPASSFILE") {
			env = append(env, kv)
		}
	}
	for _, kv := range dsn.Env() {
		if !strings.HasSuffix(kv, "=") { // PGSERVICE= would look for a service without a name
			env = append(env, kv)
		}
	}
	return append(env, "LC_ALL=C", "PG_COLOR=never")
}
