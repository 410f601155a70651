package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A Sum is what two tables that hold the same rows have in common: how many there are, and the sum
// of a hash of each, whatever their order.
type Sum struct {
	Rows int64
	Hash string
}

// How a row is hashed. The first needs a hash function for the type of every column and PostgreSQL 14;
// the second needs neither and is slower. The hash of a record is a sum of its columns' hashes, each
// times a power of 31: summed up over rows, it would not tell that two rows have swapped a value. So it
// is hashed once more. Values of an enum are hashed by a number that each cluster gives out for itself: tables
// with types that the database made are hashed as text.
const (
	hashRecord = "hashint8extended(hash_record_extended(t.*, 0), 0)"
	hashText   = "hashtextextended(t::text, 0)"
)

// codeNoFunction is what a server says of a row that it cannot hash.
const codeNoFunction = "42883"

// Fingerprint is the state of a database's tables, by name.
type Fingerprint struct {
	sums map[string]Sum
	by   map[string]string // how each table's rows were hashed
}

// Rows returns how many rows there are in all tables.
func (f Fingerprint) Rows() (n int64) {
	for _, s := range f.sums {
		n += s.Rows
	}
	return n
}

// Fingerprint reads every row of every table in schemas other than PostgreSQL's and Ficus' own.
func (c *Cluster) Fingerprint(ctx context.Context, database string) (Fingerprint, error) {
	return c.fingerprint(ctx, database, nil)
}

// fingerprint hashes rows by what is given for a table, and as it can where nothing is.
func (c *Cluster) fingerprint(ctx context.Context, database string, by map[string]string) (Fingerprint, error) {
	conn, err := c.Connect(ctx, database)
	if err != nil {
		return Fingerprint{}, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	tables, err := userTables(ctx, conn)
	if err != nil {
		return Fingerprint{}, fmt.Errorf("tables of the %s: %w", c.name, err)
	}
	made, err := withMadeTypes(ctx, conn)
	if err != nil {
		return Fingerprint{}, fmt.Errorf("types of the %s: %w", c.name, err)
	}
	f := Fingerprint{sums: map[string]Sum{}, by: map[string]string{}}
	for _, table := range tables {
		tries := []string{hashRecord, hashText}
		if made[table] {
			tries = []string{hashText}
		}
		if how := by[table]; how != "" {
			tries = []string{how}
		}
		for _, how := range tries {
			var s Sum
			err = conn.QueryRow(ctx, fmt.Sprintf("SELECT count(*), coalesce(sum(%s::numeric), 0)::text FROM ONLY %s t", how, table)).Scan(&s.Rows, &s.Hash)
			if f.sums[table], f.by[table] = s, how; code(err) != codeNoFunction {
				break
			}
		}
		if err != nil {
			return Fingerprint{}, fmt.Errorf("read %s of the %s: %w", table, c.name, err)
		}
	}
	return f, nil
}

func userTables(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	rows, err := conn.Query(ctx, `SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'ficus') AND n.nspname NOT LIKE 'pg\_%' ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// withMadeTypes returns the tables that have columns of types other than base types and arrays of them.
func withMadeTypes(ctx context.Context, conn *pgx.Conn) (map[string]bool, error) {
	rows, err := conn.Query(ctx, `SELECT DISTINCT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped JOIN pg_type t ON t.oid = a.atttypid
		WHERE c.relkind = 'r' AND (t.typtype <> 'b' OR EXISTS (SELECT FROM pg_type e WHERE e.oid = t.typelem AND e.typtype <> 'b'))`)
	if err != nil {
		return nil, err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	made := make(map[string]bool, len(names))
	for _, n := range names {
		made[n] = true
	}
	return made, err
}

// Same reads a database of the target and returns an error unless its tables hold the rows that want
// has of the source.
func (l *Lab) Same(ctx context.Context, want Fingerprint, database string) error {
	got, err := l.Target.fingerprint(ctx, database, want.by)
	if err != nil {
		return err
	}
	var wrong []string
	for _, table := range slices.Sorted(maps.Keys(want.sums)) {
		switch w, g := want.sums[table], got.sums[table]; {
		case w == g:
		case w.Rows != g.Rows:
			wrong = append(wrong, fmt.Sprintf("%s has %d rows, the source %d", table, g.Rows, w.Rows))
		default:
			wrong = append(wrong, table+" holds other values than the source")
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("the target is wrong: %s", strings.Join(wrong, "; "))
	}
	if len(want.sums) == 0 {
		return errors.New("there was no table to compare")
	}
	return nil
}

// Indexes returns how many valid indexes and how many constraints a database has in the schemas that
// Fingerprint looks at, as text to compare.
func (c *Cluster) Indexes(ctx context.Context, database string) (string, error) {
	const own = `n.nspname NOT IN ('pg_catalog', 'information_schema', 'ficus') AND n.nspname NOT LIKE 'pg\_%'`
	return c.Text(ctx, database, `SELECT format('%s indexes, %s constraints',
		(SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE i.indisvalid AND `+own+`),
		(SELECT count(*) FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace WHERE c.convalidated AND c.contype <> 'n' AND `+own+`))`)
}

func code(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}
