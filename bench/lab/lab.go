package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pgserver"
)

// Config says what to set up. The zero value is a pair of the machine's default version.
type Config struct {
	// SourceVersion and TargetVersion are majors. Default: 15, and where there is none, the newest.
	SourceVersion, TargetVersion int
	// Dir is the folder for clusters and working files; it must be one that PostgreSQL's user may
	// enter. Default: that for temporary files.
	Dir string
	// Settings are added to [Settings], on both sides. Default: none.
	Settings map[string]string

	Log *slog.Logger // default: discard
}

// defaultMajor is the version of the comparison in docs/benchmarks.md.
const defaultMajor = 15

// A Lab is two running clusters and a folder. Not safe for concurrent use, but for its clusters'
// Connect and URL.
type Lab struct {
	Source, Target *Cluster

	dir      string
	settings map[string]string
}

// Settings returns what both clusters run with, the same for every program that is measured: sizes
// of a small production server, durable as such a server is, and nothing that starts work of its
// own in the middle of one run and not of another (autovacuum, a checkpoint by the clock).
func Settings() map[string]string {
	return map[string]string{
		"wal_level":                    "logical",
		"max_wal_senders":              "64",
		"max_replication_slots":        "64",
		"max_connections":              "200",
		"max_worker_processes":         "16",
		"shared_buffers":               "1GB",
		"maintenance_work_mem":         "256MB",
		"max_wal_size":                 "8GB",
		"checkpoint_timeout":           "1h",
		"autovacuum":                   "off",
		"jit":                          "off",
		"wal_retrieve_retry_interval":  "50ms", // or a native subscription that was enabled again may rest for 5 s
		"wal_receiver_status_interval": "1s",
		"log_line_prefix":              "%m [%p] %a ",
	}
}

// New starts both clusters. Whoever calls it calls Close.
func New(ctx context.Context, cfg Config) (*Lab, error) {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	settings := Settings()
	maps.Copy(settings, cfg.Settings)
	dir, err := os.MkdirTemp(cfg.Dir, "ficus-bench-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // PostgreSQL runs as another user and has its clusters below
		return nil, err
	}
	l := &Lab{dir: dir, settings: settings}
	if l.Source, err = l.cluster(ctx, cfg, "source", cfg.SourceVersion); err == nil {
		l.Target, err = l.cluster(ctx, cfg, "target", cfg.TargetVersion)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(ctx))
	}
	return l, nil
}

func (l *Lab) cluster(ctx context.Context, cfg Config, name string, major int) (*Cluster, error) {
	install, err := find(major) //nolint:contextcheck // looking for binaries takes no context
	if err != nil {
		return nil, err
	}
	server, err := pgserver.Start(ctx, pgserver.Config{Install: install, Dir: filepath.Join(l.dir, name), Settings: l.settings, Log: cfg.Log})
	if err != nil {
		return nil, fmt.Errorf("start the %s cluster: %w", name, err)
	}
	return &Cluster{Server: server, name: name}, nil
}

// find returns the installation of a major; 0 asks for the default, or the newest where that is missing.
func find(major int) (pgserver.Install, error) {
	found, err := pgserver.Find()
	if err != nil {
		return pgserver.Install{}, err
	}
	for _, in := range found {
		if in.Major == cmp.Or(major, defaultMajor) {
			return in, nil
		}
	}
	if major == 0 {
		return found[0], nil
	}
	return pgserver.Install{}, hint.Wrap(fmt.Errorf("no PostgreSQL %d on this machine", major), "make pg fetches it")
}

// Close stops the clusters and removes everything.
func (l *Lab) Close(ctx context.Context) error {
	var errs []error
	for _, c := range []*Cluster{l.Source, l.Target} {
		if c != nil {
			errs = append(errs, c.Stop(ctx))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(l.dir))...)
}

// Scratch returns a new empty folder, which Close removes unless its user did.
func (l *Lab) Scratch() (string, error) { return os.MkdirTemp(l.dir, "work-") }

// SettingsText returns the clusters' settings as one line each, sorted.
func (l *Lab) SettingsText() []string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(l.settings)) {
		lines = append(lines, name+" = "+l.settings[name])
	}
	return lines
}

// Checkpoint writes out what both clusters have in memory, so that one run does not pay for another.
func (l *Lab) Checkpoint(ctx context.Context) error {
	for _, c := range []*Cluster{l.Source, l.Target} {
		if err := c.Exec(ctx, "postgres", "CHECKPOINT"); err != nil {
			return err
		}
	}
	return nil
}

// A Cluster is one of the two.
type Cluster struct {
	*pgserver.Server
	name string
}

// Connect opens a session as any application would. Its caller closes it.
func (c *Cluster) Connect(ctx context.Context, database string) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, c.URL(database))
	if err != nil {
		return nil, fmt.Errorf("connect to the %s: %w", c.name, err)
	}
	return conn, nil
}

// Exec runs statements in a session of their own, each as its own transaction unless one string
// holds several.
func (c *Cluster) Exec(ctx context.Context, database string, statements ...string) error {
	conn, err := c.Connect(ctx, database)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, sql := range statements {
		if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
			return fmt.Errorf("on the %s, %s: %w", c.name, firstLine(sql), err)
		}
	}
	return nil
}

// Text returns the single value of a query, as text.
func (c *Cluster) Text(ctx context.Context, database, sql string) (string, error) {
	conn, err := c.Connect(ctx, database)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var text *string
	if err := conn.QueryRow(ctx, "SELECT ("+sql+")::text").Scan(&text); err != nil {
		return "", fmt.Errorf("on the %s, %s: %w", c.name, firstLine(sql), err)
	}
	if text == nil {
		return "", nil
	}
	return *text, nil
}

// Create makes a database, empty, or as a copy of another one of the cluster.
func (c *Cluster) Create(ctx context.Context, name, template string) error {
	sql := "CREATE DATABASE " + name + " TEMPLATE " + cmp.Or(template, "template0")
	if template != "" && c.Install().Major >= 15 {
		sql += " STRATEGY file_copy" // the other one writes all of it to the WAL
	}
	return c.Exec(ctx, "postgres", sql)
}

// Drop removes databases that may be there, and whoever is connected to them.
func (c *Cluster) Drop(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := c.Exec(ctx, "postgres", "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
			return err
		}
	}
	return nil
}

func firstLine(sql string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(sql), "\n")
	return line
}
