package inspect

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/schema"
)

// A Filter chooses tables by name; see [schema.Filter].
//
// A partition is chosen exactly when the root of its partition tree is, whatever its own name. A
// sequence is chosen with the table that owns it, when a chosen table's default needs it, or, where
// nobody owns it, by its own name.
type Filter = schema.Filter

// isUser is the condition on pg_class c joined with pg_namespace n for the relations that belong to
// the user.
const isUser = `n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'ficus')
	AND c.relpersistence <> 't'
	AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e
		WHERE e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND e.objid = c.oid AND e.deptype = 'e')`

// Tables returns the chosen tables, partitioned tables, their partitions, foreign tables and
// materialized views, ordered by name.
func Tables(ctx context.Context, conn *pgx.Conn, f Filter) ([]schema.Table, error) {
	rels, err := relations(ctx, conn, f)
	if err != nil {
		return nil, fmt.Errorf("read tables: %w", err)
	}
	byOID := make(map[uint32]*schema.Table, len(rels))
	oids := make([]uint32, len(rels))
	for i := range rels {
		byOID[rels[i].OID] = &rels[i].Table
		oids[i] = rels[i].OID
	}
	if err := addColumns(ctx, conn, oids, byOID); err != nil {
		return nil, fmt.Errorf("read columns: %w", err)
	}
	if err := addKeys(ctx, conn, oids, byOID); err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	addUp(rels)

	tables := make([]schema.Table, len(rels))
	for i := range rels {
		tables[i] = rels[i].Table
	}
	return tables, nil
}

// Occupied returns the chosen tables that exist, without partitions: what stands in the way on a
// target that should be empty.
func Occupied(ctx context.Context, conn *pgx.Conn, f Filter) ([]schema.Name, error) {
	rels, err := relations(ctx, conn, f)
	if err != nil {
		return nil, fmt.Errorf("read tables: %w", err)
	}
	var names []schema.Name
	for i := range rels {
		if rels[i].parent == 0 {
			names = append(names, rels[i].Name)
		}
	}
	return names, nil
}

// A relation is a table without columns and keys yet.
type relation struct {
	schema.Table
	parent uint32 // OID of the table this is a partition of, 0 for none
}

const relationsSQL = `
SELECT c.oid, n.nspname, c.relname, c.relkind::text, coalesce(i.inhparent, 0),
	c.relkind <> 'p' AND EXISTS (SELECT FROM pg_catalog.pg_inherits h
		WHERE h.inhparent = c.oid OR h.inhrelid = c.oid AND NOT c.relispartition),
	c.relpersistence = 'u', c.relreplident::text, c.relrowsecurity,
	CASE WHEN c.reltuples < 0 OR c.reltuples = 0 AND c.relpages = 0 THEN -1 ELSE c.reltuples END::bigint,
	coalesce(CASE WHEN c.relkind IN ('r', 'm') THEN pg_catalog.pg_relation_size(c.oid) END, 0),
	coalesce(CASE WHEN c.reltoastrelid <> 0 THEN pg_catalog.pg_relation_size(c.reltoastrelid) END, 0),
	pg_catalog.current_setting('block_size')::bigint
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.oid AND c.relispartition
WHERE c.relkind IN ('r', 'p', 'f', 'm') AND ` + isUser

// relations returns the chosen relations, ordered by name.
func relations(ctx context.Context, conn *pgx.Conn, f Filter) ([]relation, error) {
	match, err := f.Compile()
	if err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, relationsSQL)
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, scanRelation)
	if err != nil {
		return nil, err
	}

	byOID := make(map[uint32]*relation, len(all))
	for i := range all {
		byOID[all[i].OID] = &all[i]
	}
	chosen := make([]relation, 0, len(all))
	for i := range all {
		root := &all[i]
		for up := byOID[root.parent]; up != nil; up = byOID[root.parent] {
			root = up
		}
		if !match.Match(root.Name) {
			continue
		}
		if up := byOID[all[i].parent]; up != nil {
			all[i].Parent = &up.Name
		}
		chosen = append(chosen, all[i])
	}
	slices.SortFunc(chosen, func(a, b relation) int { return compareNames(a.Name, b.Name) })
	return chosen, nil
}

func scanRelation(row pgx.CollectableRow) (relation, error) {
	var r relation
	var kind, identity string
	var main, toast, block int64
	err := row.Scan(&r.OID, &r.Name.Schema, &r.Name.Name, &kind, &r.parent, &r.Inherits,
		&r.Unlogged, &identity, &r.HasRowSec, &r.Rows, &main, &toast, &block)
	if err != nil {
		return r, err
	}
	switch kind {
	case "r":
		r.Kind = schema.Ordinary
	case "p":
		r.Kind = schema.Partitioned
	case "f":
		r.Kind = schema.Foreign
	case "m":
		r.Kind = schema.MaterializedView
	default:
		return r, fmt.Errorf("%s: unexpected kind of relation %q", r.Name.Display(), kind)
	}
	r.Identity = schema.Identity(identity[0])
	r.Bytes, r.Pages = main+toast, main/block
	return r, nil
}

// addUp gives each partitioned table the bytes and rows of its partitions. Partitions that were
// never analyzed do not count, unless none was.
func addUp(rels []relation) {
	byOID := make(map[uint32]*relation, len(rels))
	for i := range rels {
		byOID[rels[i].OID] = &rels[i]
		if rels[i].Kind == schema.Partitioned {
			rels[i].Rows, rels[i].Bytes, rels[i].Pages = -1, 0, 0
		}
	}
	for i := range rels {
		if rels[i].Kind == schema.Partitioned {
			continue
		}
		for up := byOID[rels[i].parent]; up != nil; up = byOID[up.parent] {
			up.Bytes += rels[i].Bytes
			if rels[i].Rows >= 0 {
				up.Rows = max(up.Rows, 0) + rels[i].Rows
			}
		}
	}
}

func compareNames(a, b schema.Name) int {
	return cmp.Or(cmp.Compare(a.Schema, b.Schema), cmp.Compare(a.Name, b.Name))
}
