package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
)

// A node is one side's connections: workers, which read one snapshot together, and control, which
// looks at the present.
type node struct {
	side     side
	dsn      pg.DSN
	workers  []*pgx.Conn
	control  *pgx.Conn
	version  int // server_version_num
	encoding string
	settings map[string]string

	using sync.Mutex // control, while workers run
}

// settingsSQL turns off what newer servers add to end long or idle transactions. Parallel query is
// turned off, too, where the work can be cut into ranges of blocks (PostgreSQL 14).
const settingsSQL = `SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings
WHERE name IN ('transaction_timeout', 'idle_session_timeout')
OR name = 'max_parallel_workers_per_gather' AND current_setting('server_version_num')::int >= 140000`

func connect(ctx context.Context, sd side, dsn pg.DSN, workers int) (_ *node, err error) {
	n := &node{side: sd, dsn: dsn, workers: make([]*pgx.Conn, workers)}
	defer func() {
		if err != nil {
			n.close(context.WithoutCancel(ctx))
		}
	}()
	g, gctx := errgroup.WithContext(ctx)
	open := func(slot **pgx.Conn) func() error {
		return func() error {
			conn, err := dsn.Connect(gctx, "verify",
				pg.Setting("row_security", "off"), // an error, where a policy would hide rows
				pg.Setting("jit", "off"),
				pg.Setting("lc_monetary", "C"),
				pg.Setting("quote_all_identifiers", "off"),
				pg.Setting("plan_cache_mode", "force_custom_plan"),
				pg.Setting("random_page_cost", "0.1")) // looks keys up by index on tables of every size
			if err != nil {
				return fmt.Errorf("%s: %w", sd, err)
			}
			*slot = conn
			if _, err := conn.Exec(gctx, settingsSQL); err != nil {
				return n.fail("prepare session", err)
			}
			return nil
		}
	}
	g.Go(open(&n.control))
	for i := range n.workers {
		g.Go(open(&n.workers[i]))
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	err = n.control.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_encoding')`).
		Scan(&n.version, &n.encoding)
	if err != nil {
		return nil, n.fail("read server version", err)
	}
	return n, n.readSettings(ctx)
}

// readSettings reads what a reader of the evidence may want to know of the server.
func (n *node) readSettings(ctx context.Context) error {
	rows, err := n.control.Query(ctx, `SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ('server_version', 'server_encoding', 'TimeZone',
		'DateStyle', 'IntervalStyle', 'extra_float_digits', 'bytea_output', 'block_size', 'data_checksums', 'wal_level', 'track_commit_timestamp')
		UNION ALL SELECT 'collate', datcollate FROM pg_catalog.pg_database WHERE datname = current_database()
		UNION ALL SELECT 'ctype', datctype FROM pg_catalog.pg_database WHERE datname = current_database()`)
	if err != nil {
		return n.fail("read settings", err)
	}
	n.settings = map[string]string{}
	var name, value string
	if _, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		n.settings[name] = value
		return nil
	}); err != nil {
		return n.fail("read settings", err)
	}
	return nil
}

func (n *node) close(ctx context.Context) {
	for _, conn := range append(n.workers, n.control) {
		if conn != nil {
			_ = conn.Close(ctx) // a session that is already gone is as good
		}
	}
}

// describe says which database this is, without its password.
func (n *node) describe() Database {
	return Database{DSN: n.dsn.String(), Version: n.version, Settings: n.settings}
}

// major is PostgreSQL's major version.
func (n *node) major() int { return n.version / 10000 }

// fail says on which side something went wrong, with advice where the cause is a common one.
func (n *node) fail(doing string, err error) error {
	at := fmt.Errorf("%s: %s: %w", n.side, doing, err)
	switch code := pg.Code(err); {
	case code == pg.CodeInsufficientPrivilege && strings.Contains(err.Error(), "row-level security"):
		return hint.Wrap(at, "the role must see every row: ALTER ROLE %s BYPASSRLS", n.dsn.User())
	case code == pg.CodeInsufficientPrivilege:
		return hint.Wrap(at, "the role %s needs SELECT on the table and USAGE on its schema", n.dsn.User())
	case code == pg.CodeUndefinedTable:
		return hint.Wrap(at, "the table is not in database %s: copy the schema first, or exclude the table", n.dsn.Database())
	}
	return at
}

// failTable is fail for work on one table.
func (n *node) failTable(t *table, doing string, err error) error {
	return fmt.Errorf("table %s: %w", t.name, n.fail(doing, err))
}

// parallel calls fn for 0 <= i < jobs, spread over the workers, and stops at the first error.
func (n *node) parallel(ctx context.Context, jobs int, fn func(ctx context.Context, conn *pgx.Conn, i int) error) error {
	return spread(ctx, len(n.workers), jobs, func(ctx context.Context, worker, i int) error {
		return fn(ctx, n.workers[worker], i)
	})
}

// spread runs jobs on a number of workers, in order of their index, until all are done or one fails.
func spread(ctx context.Context, workers, jobs int, fn func(ctx context.Context, worker, i int) error) error {
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for w := range min(workers, jobs) {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= jobs {
					return nil
				}
				if err := fn(ctx, w, i); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// errShape says that a table was not the same from beginning to end.
var errShape = errors.New("truncated or rewritten while it was compared")
