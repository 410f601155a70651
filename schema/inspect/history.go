package inspect

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/schema"
)

// A Leaf is a relation that holds rows: a table, or a partition of one.
type Leaf struct {
	Name schema.Name
	OID  uint32
	File uint32 // pg_class.relfilenode: another one when the rows were written anew
	// Missing holds, by column, the value of rows from before the column was added with a constant
	// default (pg_attribute.attmissingval), as text.
	Missing map[string]string
}

// historySQL lists the relations under the tables named by two arrays, schemas and names. The values
// of attmissingval are arrays of one element, whose text form an array of texts takes over.
const historySQL = `
WITH RECURSIVE tree (root, oid) AS (
	SELECT c.oid, c.oid
	FROM unnest($1::text[], $2::text[]) AS w (nsp, rel)
	JOIN pg_catalog.pg_namespace n ON n.nspname = w.nsp
	JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.rel
	UNION ALL
	SELECT t.root, i.inhrelid
	FROM tree t
	JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
	JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition
)
SELECT rn.nspname, r.relname, n.nspname, c.relname, c.oid, c.relfilenode,
	ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
		WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.atthasmissing ORDER BY a.attnum),
	ARRAY(SELECT (a.attmissingval::text::text[])[1] FROM pg_catalog.pg_attribute a
		WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.atthasmissing ORDER BY a.attnum)
FROM tree t
JOIN pg_catalog.pg_class r ON r.oid = t.root
JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
JOIN pg_catalog.pg_class c ON c.oid = t.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r'
ORDER BY 1, 2, 3, 4`

// Leaves returns the relations that hold the rows of tables, by table.
func Leaves(ctx context.Context, conn *pgx.Conn, tables []schema.Name) (map[schema.Name][]Leaf, error) {
	schemas, names := make([]string, len(tables)), make([]string, len(tables))
	for i, t := range tables {
		schemas[i], names[i] = t.Schema, t.Name
	}
	rows, err := conn.Query(ctx, historySQL, schemas, names)
	if err != nil {
		return nil, fmt.Errorf("read what holds the rows: %w", err)
	}
	leaves := map[schema.Name][]Leaf{}
	var root schema.Name
	var l Leaf
	var columns, values []string
	_, err = pgx.ForEachRow(rows, []any{&root.Schema, &root.Name, &l.Name.Schema, &l.Name.Name, &l.OID, &l.File, &columns, &values}, func() error {
		l.Missing = make(map[string]string, len(columns))
		for i, c := range columns {
			l.Missing[c] = values[i]
		}
		leaves[root] = append(leaves[root], l)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read what holds the rows: %w", err)
	}
	return leaves, nil
}

// An Index is one of a table, or a foreign key of it, with what makes it.
type Index struct {
	Table      schema.Name
	Name       string
	Constraint bool        // a constraint: a key, an exclusion, a foreign key
	References schema.Name // of a foreign key: the other table; else zero
	SQL        string      // CREATE INDEX, or ALTER TABLE ADD CONSTRAINT
}

const indexesSQL = `
SELECT n.nspname, c.relname, x.relname, o.oid IS NOT NULL, '', '',
	CASE WHEN o.oid IS NULL THEN pg_catalog.pg_get_indexdef(i.indexrelid)
		ELSE pg_catalog.format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s', n.nspname, c.relname, o.conname, pg_catalog.pg_get_constraintdef(o.oid)) END
FROM unnest($1::text[], $2::text[]) AS w (nsp, rel)
JOIN pg_catalog.pg_namespace n ON n.nspname = w.nsp
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.rel
JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisvalid AND i.indisready AND i.indislive
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
LEFT JOIN pg_catalog.pg_constraint o ON o.conindid = i.indexrelid AND o.conrelid = i.indrelid AND o.contype IN ('p', 'u', 'x')
UNION ALL
SELECT n.nspname, c.relname, o.conname, true, fn.nspname, f.relname,
	pg_catalog.format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s', n.nspname, c.relname, o.conname, pg_catalog.pg_get_constraintdef(o.oid))
FROM unnest($1::text[], $2::text[]) AS w (nsp, rel)
JOIN pg_catalog.pg_namespace n ON n.nspname = w.nsp
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.rel
JOIN pg_catalog.pg_constraint o ON o.conrelid = c.oid AND o.contype = 'f' AND o.conparentid = 0
JOIN pg_catalog.pg_class f ON f.oid = o.confrelid
JOIN pg_catalog.pg_namespace fn ON fn.oid = f.relnamespace
ORDER BY 1, 2, 6, 3`

// Indexes returns the valid indexes and the foreign keys of tables, not those of their partitions.
func Indexes(ctx context.Context, conn *pgx.Conn, tables []schema.Name) ([]Index, error) {
	schemas, names := make([]string, len(tables)), make([]string, len(tables))
	for i, t := range tables {
		schemas[i], names[i] = t.Schema, t.Name
	}
	rows, err := conn.Query(ctx, indexesSQL, schemas, names)
	if err != nil {
		return nil, fmt.Errorf("read indexes: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (x Index, err error) {
		return x, row.Scan(&x.Table.Schema, &x.Table.Name, &x.Name, &x.Constraint, &x.References.Schema, &x.References.Name, &x.SQL)
	})
	if err != nil {
		return nil, fmt.Errorf("read indexes: %w", err)
	}
	return list, nil
}
