package dump

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
)

// lockWait bounds how long pg_dump waits for a table that a DDL statement holds.
const lockWait = "60s"

// Config says what to copy. Fields without a stated default are required.
type Config struct {
	Source pg.DSN
	Tools  Tools // see FindTools

	// Snapshot is an exported snapshot of the source to read under. Default: now.
	Snapshot string

	// Filter chooses tables as [schema.Filter] says; a partition follows its root. With Include
	// set, other objects come along from the schemas of the chosen tables and where a chosen object
	// needs them. What depends on a table that is left out is left out, too. Default: everything.
	Filter schema.Filter

	// SkipTables are left out with their partitions, indexes, constraints, triggers and whatever
	// depends on them, because somebody else makes their counterparts. A serial column's sequence
	// stays, as a sequence without owner, for the counterpart to use.
	SkipTables []schema.Name

	// Analyze names tables of which Indexes gathers statistics. Default: none.
	Analyze []schema.Name

	Dir     string       // where the archive lies until Open returns; default: the system's temporary folder
	Workers int          // sessions that build indexes and check foreign keys; default: cores of the target (see [pg.Cores]), at least 2
	Log     *slog.Logger // default: none
}

// A Dump is a source's schema, ready to be built on a target.
type Dump struct {
	cfg     Config
	archive *archive
	parents map[int]int // partition to partitioned table, by their entries' numbers
	entries []*entry    // of the archive, those to build, plus steps of our own

	mu struct {
		sync.Mutex
		warnings []string
	}
}

// A Progress is called before each object that a section builds, with how many of the section's
// objects are done. Calls come one at a time.
type Progress func(what string, done, total int)

// Open reads the source's schema.
func Open(ctx context.Context, cfg Config) (*Dump, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Tools.PgDump == "" || cfg.Tools.PgRestore == "" {
		return nil, fmt.Errorf("read schema of %s: %w", cfg.Source, ErrNoTools)
	}
	d := &Dump{cfg: cfg}
	match, err := cfg.Filter.Compile()
	if err != nil {
		return nil, err
	}
	conn, err := cfg.Source.Connect(ctx, "schema")
	if err != nil {
		return nil, fmt.Errorf("read schema of %s: %w", cfg.Source, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	unfilled, err := d.ask(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("read schema of %s: %w", cfg.Source, err)
	}
	if d.archive, err = d.read(ctx); err != nil {
		return nil, fmt.Errorf("read schema of %s: %w", cfg.Source, serverGone(ctx, conn, err))
	}
	if d.entries, err = d.choose(match); err != nil {
		return nil, fmt.Errorf("choose objects of %s: %w", cfg.Source, err)
	}
	d.entries = d.plan(unfilled)
	return d, nil
}

// Warnings returns what was left out and what belongs to another role than on the source, as far as
// the sections that ran so far know. Open knows the objects that depend on a table left out.
func (d *Dump) Warnings() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.mu.warnings)
}

// Analyzed returns those of Config.Analyze of which Indexes gathers statistics.
func (d *Dump) Analyzed() (tables []schema.Name) {
	for _, e := range d.entries {
		if e.stage == stageStatistics {
			tables = append(tables, e.tableName())
		}
	}
	return tables
}

func (d *Dump) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Contains(d.mu.warnings, text) {
		d.mu.warnings = append(d.mu.warnings, text)
	}
}

// ask compares versions before pg_dump does, and returns the materialized views that hold no rows.
func (d *Dump) ask(ctx context.Context, conn *pgx.Conn) (map[schema.Name]bool, error) {
	var server int
	if err := conn.QueryRow(ctx, `SELECT pg_catalog.current_setting('server_version_num')::int / 10000`).Scan(&server); err != nil {
		return nil, err
	}
	if server > d.cfg.Tools.Major {
		return nil, hint.Wrap(fmt.Errorf("%s is of version %d and cannot read a server of version %d: %w",
			d.cfg.Tools.PgDump, d.cfg.Tools.Major, server, ErrNoTools), "%s", installHint(server))
	}
	rows, err := conn.Query(ctx, `SELECT n.nspname, c.relname FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'm' AND NOT c.relispopulated`)
	if err != nil {
		return nil, err
	}
	names, err := pgx.CollectRows(rows, pgx.RowToStructByPos[schema.Name])
	unfilled := make(map[schema.Name]bool, len(names))
	for _, n := range names {
		unfilled[n] = true
	}
	return unfilled, err
}

// read runs pg_dump and takes the result apart. The archive may hold passwords (of user mappings);
// nobody else can read it and it is gone afterwards.
func (d *Dump) read(ctx context.Context) (*archive, error) {
	dir, err := os.MkdirTemp(d.cfg.Dir, "schema-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "schema.dump")
	env := environment(d.cfg.Source)

	args := []string{
		"--format=custom", "--schema-only", "--encoding=UTF8", "--no-publications", "--no-subscriptions",
		"--exclude-schema=ficus", "--no-password", "--lock-wait-timeout=" + lockWait, "--file=" + file,
	}
	if d.cfg.Snapshot != "" {
		args = append(args, "--snapshot="+d.cfg.Snapshot)
	}
	if _, err := run(ctx, env, d.cfg.Tools.PgDump, args...); err != nil {
		return nil, dumpHint(err, d.cfg.Source.User())
	}
	scripts := make([]string, 2)
	g, gctx := errgroup.WithContext(ctx)
	for i, owner := range [][]string{nil, {"--no-owner"}} {
		g.Go(func() (err error) {
			args := append([]string{"--verbose", "--no-tablespaces", "--file=-"}, owner...)
			scripts[i], err = run(gctx, env, d.cfg.Tools.PgRestore, append(args, file)...)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	a, err := parse(scripts[0], scripts[1])
	if err != nil {
		return nil, fmt.Errorf("pg_restore's script: %w", err)
	}
	return a, nil
}

// serverGone adds to a tool's error what a session that was open meanwhile meets: the tools have no error codes, and
// whoever decides whether to try again wants to know that the server went away.
func serverGone(ctx context.Context, conn *pgx.Conn, err error) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if ping := conn.Ping(ctx); ping != nil {
		return fmt.Errorf("%w: the server went away: %w", err, ping)
	}
	return err
}

// dumpHint reads pg_dump's own words, in English by LC_ALL: it has no error codes.
func dumpHint(err error, role string) error {
	text := err.Error()
	switch {
	case strings.Contains(text, "permission denied"):
		return hint.Wrap(err, "pg_dump has to read every table's definition: GRANT SELECT ON ALL TABLES IN SCHEMA ... TO %s, for each schema", schema.QuoteIdent(role))
	case strings.Contains(text, "lock timeout"):
		return hint.Wrap(err, "some DDL statement holds a table for more than %s: wait for it to end, or cancel it, and run again", lockWait)
	case strings.Contains(text, "server version mismatch"):
		return hint.Wrap(err, "install client programs as new as the server, or name their folder in FICUS_PG_BIN")
	}
	return err
}
