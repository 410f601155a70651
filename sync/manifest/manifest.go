// Package manifest remembers, in the destination, what of each table was copied and under which
// snapshot: the table's base.
//
// A finished part is recorded in the transaction that wrote its rows, so that rows and record come
// and go together, whatever is killed. From the manifest a later process knows which parts need not
// be read again, and the applier knows which transactions a table holds already: those that its
// base sees.
//
// It is a vocabulary of SQL: it decides nothing. sync/snapshot writes it, sync/apply reads it,
// sync/link removes it. Functions that change rows belong into the caller's transaction.
package manifest

// Storage layout, schema ficus at the destination. Rows go with the link (Forget).
//
//	manifest       one row for each link and source table
//	  link         text
//	  table_name   text      the source's, quoted and qualified
//	  base         text      pg_snapshot that the rows were read under; '' while there are none yet
//	  until        pg_lsn    what commits at or after it is not visible in base
//	  shape        text      fingerprint of the mapping
//	  relations    text[]    what held the rows at the source: name, oid and file of each relation
//	  parts        int       into how many parts the copy was cut
//	  mended       bigint    rows that a change of base added, less those that it removed
//	  run          int       counts who claimed the table; a part of an earlier run is refused
//
//	manifest_rename  one row for each change of names that was carried out
//	  link, id
//
//	manifest_part  one row for each finished part
//	  link, table_name
//	  relation     text      the relation at the source, quoted and qualified
//	  from_page    bigint    pages [from_page, to_page) of it; to_page is null for one without end
//	  to_page      bigint
//	  rows, bytes  bigint

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
)

const installSQL = `
SELECT pg_advisory_xact_lock(hashtext('ficus.install'));
CREATE SCHEMA IF NOT EXISTS ficus;
CREATE TABLE IF NOT EXISTS ficus.manifest (
	link       text NOT NULL,
	table_name text NOT NULL,
	base       text NOT NULL,
	until      pg_lsn NOT NULL,
	shape      text NOT NULL,
	relations  text[] NOT NULL,
	parts      int NOT NULL,
	mended     bigint NOT NULL DEFAULT 0,
	run        int NOT NULL DEFAULT 1,
	PRIMARY KEY (link, table_name)
);
CREATE TABLE IF NOT EXISTS ficus.manifest_part (
	link       text NOT NULL,
	table_name text NOT NULL,
	relation   text NOT NULL,
	from_page  bigint NOT NULL,
	to_page    bigint,
	rows       bigint NOT NULL,
	bytes      bigint NOT NULL,
	PRIMARY KEY (link, table_name, relation, from_page)
);
CREATE TABLE IF NOT EXISTS ficus.manifest_rename (
	link text NOT NULL,
	id   text NOT NULL,
	PRIMARY KEY (link, id)
)`

// ErrTaken says that another process claimed the table, and that what this one wrote must not count.
var ErrTaken = errors.New("another process has taken over the copy of this table")

// A Table is what the manifest knows of one table.
type Table struct {
	Source    schema.Name
	Base      change.Snapshot // zero while nothing was copied
	Until     change.LSN
	Shape     string
	Relations []string
	Parts     int
	Mended    int64
	Run       int
	Done      []Part // ordered by relation and page
}

// A Part is a range of pages of one relation that the source's rows were read from.
type Part struct {
	Relation string // quoted and qualified
	From     int64
	To       int64 // Open: to the end, however long the relation becomes
	Rows     int64
	Bytes    int64 // of COPY data
}

// Open is the end of a part without end.
const Open int64 = -1

// Complete reports whether every part is there.
func (t *Table) Complete() bool { return !t.Base.IsZero() && len(t.Done) >= t.Parts }

// Copied returns how much is there.
func (t *Table) Copied() (rows, bytes int64) {
	rows = t.Mended
	for _, p := range t.Done {
		rows, bytes = rows+p.Rows, bytes+p.Bytes
	}
	return rows, bytes
}

// A DB is a connection or a transaction.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Install creates the tables where they are missing.
func Install(ctx context.Context, conn *pgx.Conn) error {
	// One simple query is one transaction; the lock is the one that migrate/fence takes.
	if _, err := conn.PgConn().Exec(ctx, installSQL).ReadAll(); err != nil {
		return hint.Wrap(fmt.Errorf("create ficus.manifest: %w", err), "the role needs CREATE on the database")
	}
	return nil
}

// Read returns the tables of a link, by name; none where the manifest is not installed.
func Read(ctx context.Context, db DB, link string) (map[schema.Name]*Table, error) {
	tables, err := read(ctx, db, link)
	if err != nil {
		return nil, fmt.Errorf("read the manifest of %s: %w", link, err)
	}
	return tables, nil
}

func read(ctx context.Context, db DB, link string) (map[schema.Name]*Table, error) {
	var there bool // asked for, lest the error of a missing table ends the caller's transaction
	if err := db.QueryRow(ctx, `SELECT to_regclass('ficus.manifest') IS NOT NULL`).Scan(&there); err != nil || !there {
		return nil, err
	}
	rows, err := db.Query(ctx, `
		SELECT table_name, base, until::text, shape, relations, parts, mended, run FROM ficus.manifest WHERE link = $1`, link)
	if err != nil {
		return nil, err
	}
	tables := map[schema.Name]*Table{}
	var t Table
	var name, base, until string
	_, err = pgx.ForEachRow(rows, []any{&name, &base, &until, &t.Shape, &t.Relations, &t.Parts, &t.Mended, &t.Run}, func() error {
		found := t
		found.Relations = slices.Clone(t.Relations)
		var errs [3]error
		found.Source, errs[0] = schema.ParseName(name)
		found.Until, errs[1] = change.ParseLSN(until)
		if base != "" {
			found.Base, errs[2] = change.ParseSnapshot(base)
		}
		tables[found.Source] = &found
		return errors.Join(errs[:]...)
	})
	if err != nil {
		return nil, err
	}
	return tables, readParts(ctx, db, link, tables)
}

func readParts(ctx context.Context, db DB, link string, tables map[schema.Name]*Table) error {
	rows, err := db.Query(ctx, `
		SELECT table_name, relation, from_page, coalesce(to_page, $2), rows, bytes
		FROM ficus.manifest_part WHERE link = $1 ORDER BY table_name, relation, from_page`, link, Open)
	if err != nil {
		return err
	}
	var name string
	var p Part
	_, err = pgx.ForEachRow(rows, []any{&name, &p.Relation, &p.From, &p.To, &p.Rows, &p.Bytes}, func() error {
		n, err := schema.ParseName(name)
		if t := tables[n]; t != nil {
			t.Done = append(t.Done, p)
		}
		return err
	})
	return err
}

// Claim makes the caller the only one who may finish parts of the link's tables. It waits for
// transactions that are about to, of a process that was killed, say.
func Claim(ctx context.Context, db DB, link string) error {
	if _, err := db.Exec(ctx, `UPDATE ficus.manifest SET run = run + 1 WHERE link = $1`, link); err != nil {
		return fmt.Errorf("claim the manifest of %s: %w", link, err)
	}
	return nil
}

// Begin starts a table from nothing, in the transaction that empties it, and sets t.Run.
func Begin(ctx context.Context, db DB, link string, t *Table) error {
	err := db.QueryRow(ctx, `
		INSERT INTO ficus.manifest (link, table_name, base, until, shape, relations, parts)
		VALUES ($1, $2, $3, $4::text::pg_lsn, $5, $6, $7)
		ON CONFLICT (link, table_name) DO UPDATE SET base = EXCLUDED.base, until = EXCLUDED.until, shape = EXCLUDED.shape,
			relations = EXCLUDED.relations, parts = EXCLUDED.parts, mended = 0, run = manifest.run + 1
		RETURNING run`,
		link, t.Source.String(), t.Base.String(), t.Until.String(), t.Shape, append([]string{}, t.Relations...), t.Parts).Scan(&t.Run)
	if err == nil {
		_, err = db.Exec(ctx, `DELETE FROM ficus.manifest_part WHERE link = $1 AND table_name = $2`, link, t.Source.String())
	}
	return doing("begin", t.Source, err)
}

// Require notes that a table has to be copied before the link may run.
func Require(ctx context.Context, db DB, link string, table schema.Name) error {
	return Begin(ctx, db, link, &Table{Source: table, Parts: 1})
}

// Rebase gives a table another base, in the transaction that brings the rows of its finished parts
// there; mended is how many rows that added.
func Rebase(ctx context.Context, db DB, link string, t *Table, base change.Snapshot, until change.LSN, mended int64) error {
	tag, err := db.Exec(ctx, `
		UPDATE ficus.manifest SET base = $3, until = $4::text::pg_lsn, mended = mended + $5
		WHERE link = $1 AND table_name = $2 AND run = $6`, link, t.Source.String(), base.String(), until.String(), mended, t.Run)
	if err == nil && tag.RowsAffected() != 1 {
		err = ErrTaken
	}
	return doing("rebase", t.Source, err)
}

// Recut notes into how many parts a table is cut now, those that are finished included.
func Recut(ctx context.Context, db DB, link string, t *Table, parts int) error {
	tag, err := db.Exec(ctx, `UPDATE ficus.manifest SET parts = $3 WHERE link = $1 AND table_name = $2 AND run = $4`,
		link, t.Source.String(), parts, t.Run)
	if err == nil && tag.RowsAffected() != 1 {
		err = ErrTaken
	}
	return doing("cut", t.Source, err)
}

// Enter begins a part, first in its transaction: who claims the table from now on waits until it ends.
func Enter(ctx context.Context, db DB, link string, table schema.Name, run int) error {
	tag, err := db.Exec(ctx, `SELECT FROM ficus.manifest WHERE link = $1 AND table_name = $2 AND run = $3 FOR SHARE`,
		link, table.String(), run)
	if err == nil && tag.RowsAffected() != 1 {
		err = ErrTaken
	}
	return doing("enter", table, err)
}

// Finish records a part, in the transaction that wrote its rows.
func Finish(ctx context.Context, db DB, link string, table schema.Name, p Part) error {
	_, err := db.Exec(ctx, `
		INSERT INTO ficus.manifest_part (link, table_name, relation, from_page, to_page, rows, bytes)
		VALUES ($1, $2, $3, $4, nullif($5::bigint, $6::bigint), $7, $8)`,
		link, table.String(), p.Relation, p.From, p.To, Open, p.Rows, p.Bytes)
	return doing("record a part", table, err)
}

// Rename gives tables that have other names at the source now those names, in the transaction that does
// what belongs to it. id names the change: repeated, it does nothing.
func Rename(ctx context.Context, tx pgx.Tx, link, id string, names map[schema.Name]schema.Name) error {
	tag, err := tx.Exec(ctx, `INSERT INTO ficus.manifest_rename (link, id) VALUES ($1, $2) ON CONFLICT DO NOTHING`, link, id)
	if err != nil {
		return fmt.Errorf("rename in the manifest of %s: %w", link, err)
	}
	if tag.RowsAffected() == 0 {
		return nil
	}
	var from, to []string
	for was, is := range names {
		from, to = append(from, was.String()), append(to, is.String())
	}
	for _, table := range []string{"ficus.manifest", "ficus.manifest_part"} {
		// By way of names that no table has: two may have swapped theirs.
		for _, sql := range []string{
			`UPDATE ` + table + ` m SET table_name = 'renamed ' || n.new_name FROM unnest($2::text[], $3::text[]) n (old, new_name) WHERE m.link = $1 AND m.table_name = n.old`,
			`UPDATE ` + table + ` m SET table_name = n.new_name FROM unnest($2::text[], $3::text[]) n (old, new_name) WHERE m.link = $1 AND m.table_name = 'renamed ' || n.new_name`,
		} {
			if _, err := tx.Exec(ctx, sql, link, from, to); err != nil {
				return fmt.Errorf("rename in the manifest of %s: %w", link, err)
			}
		}
	}
	return nil
}

// Forget removes what is known of a link; no error when there is nothing.
func Forget(ctx context.Context, db DB, link string) error {
	for _, table := range []string{"ficus.manifest", "ficus.manifest_part", "ficus.manifest_rename"} {
		if _, err := db.Exec(ctx, `DELETE FROM `+table+` WHERE link = $1`, link); err != nil && pg.Code(err) != pg.CodeUndefinedTable {
			return fmt.Errorf("forget the manifest of %s: %w", link, err)
		}
	}
	return nil
}

func doing(what string, table schema.Name, err error) error {
	if err != nil {
		return fmt.Errorf("manifest of %s: %s: %w", table.Display(), what, err)
	}
	return nil
}
