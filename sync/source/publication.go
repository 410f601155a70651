package source

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
)

// PublicationOptions adjusts EnsurePublication.
type PublicationOptions struct {
	// InsertOnly names those of the tables of which updates and deletes are not published, because
	// they have nothing to identify a row by. They go to a second publication, InsertPublication.
	InsertOnly []schema.Name
}

// InsertPublication returns the name of the second publication, of tables without an identity.
func InsertPublication(name string) string { return name + "_ins" }

// EnsurePublication makes a publication hold exactly the given tables, and schema ficus' own
// tables where they exist. Changes of partitions are published as their root's. Where all tables
// of InsertOnly are gone, the second publication is gone too. It takes a SHARE UPDATE EXCLUSIVE
// lock on tables that are added or removed, which no reader or writer waits for.
// Source: PostgreSQL manual, CREATE PUBLICATION.
func EnsurePublication(ctx context.Context, conn *pgx.Conn, name string, tables []schema.Name, opts PublicationOptions) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		own, err := ownTables(ctx, tx)
		if err != nil {
			return err
		}
		full := slices.DeleteFunc(slices.Clone(tables), func(t schema.Name) bool { return slices.Contains(opts.InsertOnly, t) })
		if err := ensure(ctx, tx, name, append(full, own...), "insert, update, delete, truncate"); err != nil {
			return err
		}
		second := InsertPublication(name)
		if len(opts.InsertOnly) == 0 {
			return dropPublication(ctx, tx, second)
		}
		// TRUNCATE needs no identity, and a target that did not follow one would be wrong.
		return ensure(ctx, tx, second, opts.InsertOnly, "insert, truncate")
	})
	switch pg.Code(err) {
	case pg.CodeInsufficientPrivilege:
		err = hint.Wrap(err, "the role must own the tables and have CREATE on the database: GRANT CREATE ON DATABASE ... TO ...")
	case pg.CodeUndefinedTable:
		err = hint.Wrap(err, "a table was dropped or renamed since the plan was made: start again")
	}
	if err != nil {
		return fmt.Errorf("publication %q: %w", name, err)
	}
	return nil
}

// DropPublication removes a publication and its insert-only companion; no error when they are not
// there.
func DropPublication(ctx context.Context, conn *pgx.Conn, name string) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := dropPublication(ctx, tx, name); err != nil {
			return err
		}
		return dropPublication(ctx, tx, InsertPublication(name))
	})
	if err != nil {
		return fmt.Errorf("publication %q: %w", name, err)
	}
	return nil
}

// ownTables returns those tables of schema ficus that a stream must carry: the nonces of a drain
// and the changes of owner.
func ownTables(ctx context.Context, tx pgx.Tx) ([]schema.Name, error) {
	rows, err := tx.Query(ctx, `
		SELECT tablename::text FROM pg_tables
		WHERE schemaname = 'ficus' AND tablename IN ('signal', 'ownership') ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (schema.Name, error) {
		n := schema.Name{Schema: "ficus"}
		return n, row.Scan(&n.Name)
	})
}

func ensure(ctx context.Context, tx pgx.Tx, name string, tables []schema.Name, publish string) error {
	var exists bool
	err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)`, name).Scan(&exists)
	if err != nil {
		return err
	}
	with := fmt.Sprintf("(publish = '%s', publish_via_partition_root = true)", publish)
	if generated, err := needGenerated(ctx, tx, tables); err != nil {
		return err
	} else if generated {
		with = strings.TrimSuffix(with, ")") + ", publish_generated_columns = stored)"
	}
	quoted := schema.QuoteIdent(name)
	if !exists {
		_, err := tx.Exec(ctx, "CREATE PUBLICATION "+quoted+forTables(" FOR TABLE ", tables)+" WITH "+with)
		return err
	}
	if _, err := tx.Exec(ctx, "ALTER PUBLICATION "+quoted+" SET "+with); err != nil {
		return err
	}
	if len(tables) > 0 {
		_, err := tx.Exec(ctx, "ALTER PUBLICATION "+quoted+forTables(" SET TABLE ", tables))
		return err
	}
	// No statement empties a publication.
	if err := dropPublication(ctx, tx, name); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "CREATE PUBLICATION "+quoted+" WITH "+with)
	return err
}

// needGenerated reports whether generated columns have to be published, although nobody reads them:
// since 18 the server refuses the application's updates of a table with REPLICA IDENTITY FULL and a
// stored generated column that is not.
func needGenerated(ctx context.Context, tx pgx.Tx, tables []schema.Name) (need bool, err error) {
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.String()
	}
	err = tx.QueryRow(ctx, `SELECT current_setting('server_version_num')::int >= 180000 AND EXISTS (
		SELECT FROM unnest($1::text[]) n CROSS JOIN LATERAL (SELECT to_regclass(n)::oid UNION SELECT relid FROM pg_partition_tree(to_regclass(n))) t(oid)
		JOIN pg_class c ON c.oid = t.oid AND c.relreplident = 'f'
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attgenerated = 's' AND NOT a.attisdropped)`, names).Scan(&need)
	return need, err
}

// forTables lists the tables themselves, without those that inherit from them: these are listed
// for themselves. Partitions always come with their root.
func forTables(verb string, tables []schema.Name) string {
	if len(tables) == 0 {
		return ""
	}
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = "ONLY " + t.String()
	}
	return verb + strings.Join(names, ", ")
}

func dropPublication(ctx context.Context, tx pgx.Tx, name string) error {
	_, err := tx.Exec(ctx, "DROP PUBLICATION IF EXISTS "+schema.QuoteIdent(name))
	return err
}
