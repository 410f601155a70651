package dump

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// fake puts a pg_dump and a pg_restore that only know their version into a folder.
func fake(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"pg_dump", "pg_restore"} {
		script := fmt.Sprintf("#!/bin/sh\necho '%s (PostgreSQL) %s'\n", name, version)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFindTools(t *testing.T) {
	t.Parallel()
	v13, v16, v18, beta := fake(t, "13.22"), fake(t, "16.4 (Debian 16.4-1)"), fake(t, "18.0"), fake(t, "19beta1")
	other16, odd, empty := fake(t, "16.9"), fake(t, "unknown"), t.TempDir()
	noRestore := fake(t, "20.0")
	if err := os.Remove(filepath.Join(noRestore, "pg_restore")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		server int
		dirs   []string
		want   string // folder, "" for none
		major  int
	}{
		{15, []string{v13, v16, v18}, v18, 18},
		{13, []string{v13}, v13, 13},
		{16, []string{empty, v16, other16}, v16, 16},
		{18, []string{beta, v18}, beta, 19},
		{15, []string{odd, noRestore, v16}, v16, 16},
		{17, []string{v13, v16}, "", 0},
		{17, []string{empty, "/nonexistent"}, "", 0},
	} {
		got, err := findTools(t.Context(), tt.server, tt.dirs)
		if tt.want == "" {
			if !errors.Is(err, ErrNoTools) || !strings.Contains(hint.Of(err), fmt.Sprintf("postgresql-client-%d", tt.server)) {
				t.Errorf("server %d: got %v (hint: %s)", tt.server, err, hint.Of(err))
			}
			continue
		}
		if err != nil || filepath.Dir(got.PgDump) != tt.want || got.Major != tt.major {
			t.Errorf("server %d: got %+v, %v, want %d in %s", tt.server, got, err, tt.major, tt.want)
		}
	}
	// A wrapper is asked only where there is nothing else: this one leads to a newer version.
	wrapper := fake(t, "18.0")
	for _, name := range []string{"pg_dump", "pg_restore"} {
		path := filepath.Join(wrapper, name)
		if err := errors.Join(os.Rename(path, path+"_wrapper"), os.Symlink(path+"_wrapper", path)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := findTools(t.Context(), 16, []string{v16, wrapper}); err != nil || got.Major != 16 {
		t.Errorf("beside a wrapper: got %+v, %v", got, err)
	}
	if got, err := findTools(t.Context(), 17, []string{v16, wrapper}); err != nil || got.Major != 18 {
		t.Errorf("nothing but a wrapper: got %+v, %v", got, err)
	}
	_, err := findTools(t.Context(), 17, []string{v13, v16})
	if err == nil || !strings.Contains(err.Error(), "found only 13 in ") || !strings.Contains(err.Error(), "16 in ") {
		t.Errorf("too old: got %v, want both versions in it", err)
	}
}

func TestFindToolsEnvironment(t *testing.T) { // not parallel: sets a variable
	dir := fake(t, "99.1")
	t.Setenv("FICUS_PG_BIN", "/nonexistent"+string(filepath.ListSeparator)+dir)
	got, err := FindTools(t.Context(), 98)
	if err != nil || filepath.Dir(got.PgRestore) != dir {
		t.Errorf("FICUS_PG_BIN: got %+v, %v", got, err)
	}
}

// pg_dump reads servers of its own and of older versions only.
func TestServerNewerThanTools(t *testing.T) {
	t.Parallel()
	source := pgtest.DB(t)
	cfg := Config{Source: source.DSN, Tools: tools(t)}
	cfg.Tools.Major = source.Major - 1
	_, err := Open(t.Context(), cfg)
	if !errors.Is(err, ErrNoTools) || !strings.Contains(hint.Of(err), fmt.Sprintf("postgresql-client-%d", source.Major)) {
		t.Errorf("got %v (hint: %s)", err, hint.Of(err))
	}
	if _, err := Open(t.Context(), Config{Source: source.DSN}); !errors.Is(err, ErrNoTools) {
		t.Errorf("no tools: got %v", err)
	}
}

// The tools see the DSN's connection and no other of the process, and no password on a command line.
func TestEnvironment(t *testing.T) { // not parallel: sets variables
	dsn, err := pg.Parse("host=h user=u password=secret dbname=d port=7 sslmode=disable")
	must(t, err)
	for _, name := range []string{"PGHOSTADDR", "PGSERVICE", "PGOPTIONS", "PGPASSWORD", "PGSSLMODE"} {
		t.Setenv(name, "elsewhere")
	}
	t.Setenv("PGSSLROOTCERT", "/ca.pem")
	env := map[string]string{}
	for _, kv := range environment(dsn) {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	for name, want := range map[string]string{
		"PGHOST": "h", "PGUSER": "u", "PGPASSWORD": "secret", "PGDATABASE": "d", "PGPORT": "7", "PGSSLMODE": "disable", "PGSSLROOTCERT": "/ca.pem",
	} {
		if env[name] != want {
			t.Errorf("%s: got %q, want %q", name, env[name], want)
		}
	}
	for _, name := range []string{"PGHOSTADDR", "PGSERVICE", "PGOPTIONS"} {
		if v, ok := env[name]; ok {
			t.Errorf("%s: got %q", name, v)
		}
	}
}
