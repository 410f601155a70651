package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/ficus-migrate/ficus/bench/lab"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// tools are the paths of other programs; "" for one that is not installed.
type tools struct {
	psql, pgDump, pgRestore, pgbench, pgRecvlogical, pgcopydb, pgbouncer string
}

// findTools looks beside the server first, then in PATH. All but the last three have to be there.
func findTools(bin string) (tools, error) {
	find := func(name string) string {
		if path := filepath.Join(bin, name); executable(path) {
			return path
		}
		path, err := exec.LookPath(name)
		if err != nil {
			return ""
		}
		return path
	}
	t := tools{find("psql"), find("pg_dump"), find("pg_restore"), find("pgbench"), find("pg_recvlogical"), find("pgcopydb"), find("pgbouncer")}
	if system := "/usr/sbin/pgbouncer"; t.pgbouncer == "" && executable(system) { // not in everybody's PATH
		t.pgbouncer = system
	}
	for name, path := range map[string]string{"psql": t.psql, "pg_dump": t.pgDump, "pg_restore": t.pgRestore, "pgbench": t.pgbench} {
		if path == "" {
			return tools{}, hint.Wrap(fmt.Errorf("no %s on this machine", name), "Debian, Ubuntu: apt-get install postgresql postgresql-client")
		}
	}
	return t, nil
}

func executable(path string) bool {
	info, err := os.Stat(path) //nolint:gosec // the program that the command line names, or that is in PATH
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// psqlInto returns how psql reads SQL that it stops at the first error of.
func (t tools) psqlInto(url string) []string {
	return []string{t.psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-d", url}
}

// A Machine is where and with what the benchmark ran.
type Machine struct {
	CPU      string            `json:"cpu"`
	Cores    int               `json:"cores"`
	MemoryMB int               `json:"memory_mb"`
	Kernel   string            `json:"kernel"`
	Versions map[string]string `json:"versions"`
}

// versionNames lists the programs of Machine.Versions in the order in which they are printed.
func versionNames() []string {
	return []string{"source", "target", "ficus", "pgcopydb", "pgbouncer", "pg_dump", "pgbench", "go"}
}

// describe asks the machine and every program for its version.
func describe(ctx context.Context, b *bench) Machine {
	m := Machine{Cores: runtime.NumCPU(), CPU: runtime.GOARCH, Kernel: runtime.GOOS, Versions: map[string]string{
		"source": "PostgreSQL " + b.Source.Install().Version,
		"target": "PostgreSQL " + b.Target.Install().Version,
		"go":     runtime.Version(),
	}}
	if v := field("/proc/cpuinfo", "model name"); v != "" {
		m.CPU = v
	}
	_, _ = fmt.Sscanf(field("/proc/meminfo", "MemTotal"), "%d", &m.MemoryMB) // stays 0 where there is none
	m.MemoryMB >>= 10
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel += " " + strings.TrimSpace(string(text))
	}
	for name, command := range map[string][]string{
		"ficus": {b.ficus, "version"}, "pg_dump": {b.tools.pgDump, "--version"}, "pgbench": {b.tools.pgbench, "--version"}, "pgcopydb": {b.tools.pgcopydb, "--version"}, "pgbouncer": {b.tools.pgbouncer, "--version"},
	} {
		m.Versions[name] = "not installed"
		if command[0] == "" {
			continue
		}
		if out, _, err := lab.Run(ctx, command[0], command[1:]...); err == nil {
			m.Versions[name], _, _ = strings.Cut(strings.TrimSpace(out), "\n")
		}
	}
	return m
}

// field returns what stands after "name:" in a file of such lines.
func field(path, name string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// load returns the machine's load averages, "" where it does not say.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}
