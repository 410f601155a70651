package pgtest

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
)

// logLines is how much of the server's log a failing test shows.
const logLines = 40

// sqlTimeout bounds one statement of a helper, so that a lock somebody forgot fails the test by name.
const sqlTimeout = time.Minute

// An Option chooses a cluster.
type Option func(*options)

type options struct {
	encoding string
	template *Database
	major    int
	dir      string
	settings map[string]string
}

// Version asks for a major version. Where the machine has none of it, the default major is used and
// the test's log says so.
func Version(major int) Option { return func(o *options) { o.major = major } }

// Encoding makes the database of another encoding than UTF8, such as LATIN1, under locale C.
func Encoding(name string) Option { return func(o *options) { o.encoding = name } }

// Template makes the database a copy of db, of the same cluster, to which nobody may be connected.
func Template(db *Database) Option { return func(o *options) { o.template = db } }

// Setting sets a configuration parameter of a cluster made by NewCluster.
func Setting(name, value string) Option {
	return func(o *options) { o.settings[name] = value }
}

// Dir puts all files of a cluster made by NewCluster into an empty directory, which stays: one on a file
// system of the test's own, say. Everybody must be able to enter the folders above it.
func Dir(path string) Option { return func(o *options) { o.dir = path } }

func newOptions(opts []Option) options {
	o := options{settings: sharedSettings()}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// A Database is one test's own database.
type Database struct {
	DSN   pg.DSN
	URL   string // the same, for other programs
	Name  string
	Major int // of the server

	idle chan *pgx.Conn // holds at most one connection between calls
}

// DB returns a fresh, empty database in the cluster that the tests of this binary share; it is
// dropped when the test ends, with the slots and prepared transactions left in it.
func DB(t testing.TB, opts ...Option) *Database {
	t.Helper()
	o := newOptions(opts)
	srv, err := shared.get(o.major)
	if err != nil {
		t.Fatalf("shared PostgreSQL cluster: %v", err)
	}
	return newDatabase(t, srv, o)
}

var databases atomic.Int64 //nolint:gochecknoglobals // numbers the databases of this test binary

func newDatabase(t testing.TB, srv server, o options) *Database {
	t.Helper()
	name := fmt.Sprintf("t%d_%s", databases.Add(1), identifier(t.Name()))
	admin := &Database{DSN: srv.DSN("postgres"), idle: make(chan *pgx.Conn, 1)}
	create := "CREATE DATABASE " + name
	if o.encoding != "" {
		create += " ENCODING '" + o.encoding + "' LOCALE 'C' TEMPLATE template0"
	}
	if o.template != nil {
		o.template.close()
		create += " TEMPLATE " + o.template.Name
	}
	admin.Exec(t, create)
	major := int(admin.Int(t, "SELECT current_setting('server_version_num')::int / 10000"))
	admin.close()
	if o.major != 0 && o.major != major {
		t.Logf("PostgreSQL %d is not on this machine (make pg fetches it): using %d", o.major, major)
	}

	db := &Database{DSN: srv.DSN(name), URL: srv.URL(name), Name: name, Major: major, idle: make(chan *pgx.Conn, 1)}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("PostgreSQL's log:\n%s", logOf(srv, name))
		}
		db.close()
		if err := drop(srv, name); err != nil {
			t.Logf("drop database %s: %v", name, err)
		}
	})
	return db
}

// logOf returns the last lines of the server's log that are about a database, or none in particular.
func logOf(srv server, name string) string {
	var kept []string
	keep := true
	for line := range strings.Lines(srv.LogTail(10 * logLines)) {
		if db, ok := logDatabase(line); ok { // other lines continue the one before
			keep = db == "" || db == name
		}
		if keep {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept[max(0, len(kept)-logLines):], "")
}

// logDatabase returns the database that the prefix of a log line names; see log_line_prefix in
// sharedSettings.
func logDatabase(line string) (string, bool) {
	_, rest, ok := strings.Cut(line, "<")
	db, _, closed := strings.Cut(rest, ">")
	return db, ok && closed && strings.HasPrefix(line, "20")
}

// identifier makes a short, harmless part of a database name out of a test's name.
func identifier(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(s))
	return s[:min(len(s), 40)]
}

// Host returns the server's address.
func (d *Database) Host() string { return d.DSN.Host() }

// Port returns the server's TCP port.
func (d *Database) Port() int { return int(d.DSN.Port()) }

// User returns the superuser's name.
func (d *Database) User() string { return d.DSN.User() }

// Conn opens a connection with the server's default settings; it is closed when the test ends.
func (d *Database) Conn(t testing.TB) *pgx.Conn {
	t.Helper()
	conn, err := d.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// Exec runs SQL; several statements are allowed when there are no arguments.
func (d *Database) Exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	ctx, conn, put := d.take(t)
	defer put()
	if _, err := conn.Exec(ctx, sql, d.args(args)...); err != nil {
		t.Fatalf("%s: %v", shorten(sql), err)
	}
}

// Strings returns the rows of a query as text, columns joined by "|", NULL as "NULL".
func (d *Database) Strings(t testing.TB, sql string, args ...any) []string {
	t.Helper()
	ctx, conn, put := d.take(t)
	defer put()
	rows, err := conn.Query(ctx, sql, d.args(args)...)
	if err != nil {
		t.Fatalf("%s: %v", shorten(sql), err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		cols := make([]string, 0, len(row.RawValues()))
		for _, v := range row.RawValues() {
			if v == nil {
				cols = append(cols, "NULL")
			} else {
				cols = append(cols, string(v))
			}
		}
		return strings.Join(cols, "|"), nil
	})
	if err != nil {
		t.Fatalf("%s: %v", shorten(sql), err)
	}
	return out
}

// Int returns the single number that a query gives.
func (d *Database) Int(t testing.TB, sql string, args ...any) int64 {
	t.Helper()
	ctx, conn, put := d.take(t)
	defer put()
	var n int64
	if err := conn.QueryRow(ctx, sql, d.args(args)...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", shorten(sql), err)
	}
	return n
}

// args asks for the simple protocol: several statements at once, and results as text.
func (d *Database) args(args []any) []any {
	return append([]any{pgx.QueryExecModeSimpleProtocol}, args...)
}

func (d *Database) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg := d.DSN.Config()
	cfg.RuntimeParams["application_name"] = "pgtest"
	cfg.RuntimeParams["client_encoding"] = "UTF8"
	return pgx.ConnectConfig(ctx, cfg)
}

// take returns a connection that nobody else uses until put, and a context that ends with put.
func (d *Database) take(t testing.TB) (ctx context.Context, conn *pgx.Conn, put func()) {
	t.Helper()
	// Not the test's own context: cleanups run SQL, too.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), sqlTimeout)
	select {
	case conn = <-d.idle:
		if conn.Ping(ctx) != nil { // the server was restarted
			_ = conn.Close(ctx)
			conn = nil
		}
	default:
	}
	if conn == nil {
		var err error
		if conn, err = d.connect(ctx); err != nil {
			cancel()
			t.Fatal(err)
		}
	}
	return ctx, conn, func() {
		defer cancel()
		if conn.PgConn().TxStatus() == 'I' {
			select {
			case d.idle <- conn:
				return
			default: // one is enough
			}
		}
		_ = conn.Close(ctx)
	}
}

func (d *Database) close() {
	select {
	case conn := <-d.idle:
		_ = conn.Close(context.Background())
	default:
	}
}

// drop removes a database with everything that would keep PostgreSQL from dropping it.
func drop(srv server, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), sqlTimeout)
	defer cancel()
	conn, err := srv.DSN(name).Connect(ctx, "pgtest")
	if err != nil {
		return err // the cluster is gone, and the database with it
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, step := range []struct{ list, run string }{
		{"SELECT gid FROM pg_prepared_xacts WHERE database = current_database()", "ROLLBACK PREPARED %s"},
		{"SELECT slot_name FROM pg_replication_slots WHERE database = current_database()", dropSlot},
	} {
		rows, err := conn.Query(ctx, step.list)
		if err != nil {
			return err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, n := range names {
			quoted := "'" + strings.ReplaceAll(n, "'", "''") + "'"
			if _, err := conn.Exec(ctx, strings.ReplaceAll(step.run, "%s", quoted)); err != nil {
				return err
			}
		}
	}
	admin, err := srv.DSN("postgres").Connect(ctx, "pgtest")
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close(ctx) }()
	_, err = admin.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)")
	return err
}

// dropSlot ends the walsender that still holds a slot, waits until it let go, and drops the slot.
const dropSlot = `DO $$
DECLARE holder int;
BEGIN
	LOOP
		SELECT active_pid INTO holder FROM pg_replication_slots WHERE slot_name = %s;
		EXIT WHEN NOT FOUND;
		IF holder IS NULL THEN
			PERFORM pg_drop_replication_slot(%s);
			EXIT;
		END IF;
		PERFORM pg_terminate_backend(holder), pg_sleep(0.01);
	END LOOP;
END $$`

func shorten(sql string) string {
	sql = strings.Join(strings.Fields(sql), " ")
	if len(sql) > 120 {
		return sql[:120] + " ..."
	}
	return sql
}
