package verify

import (
	"context"
	"fmt"
	"maps"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// A layout is how a table lies on disk now, whatever snapshot reads it.
type layout struct {
	blocks int64             // of its largest partition, or of itself
	rows   int64             // estimate, over all partitions
	files  map[uint32]uint32 // file node by relation
}

// layoutSQL measures each table and its partitions. As the planner does, it takes the number of
// rows per block from the last ANALYZE and the number of blocks from the disk.
const layoutSQL = `
SELECT t.n, c.oid, coalesce(pg_relation_filenode(c.oid), 0), s.blocks,
	(CASE WHEN c.relpages > 0 AND c.reltuples >= 0 THEN c.reltuples / c.relpages ELSE 100 END * s.blocks)::int8
FROM unnest($1::text[]) WITH ORDINALITY AS t(name, n)
CROSS JOIN LATERAL (SELECT t.name::regclass::oid UNION SELECT p.relid FROM pg_partition_tree(t.name::regclass) AS p) AS l(relid)
JOIN pg_catalog.pg_class AS c ON c.oid = l.relid
CROSS JOIN LATERAL (SELECT CASE WHEN c.relkind IN ('r', 'm', 't') THEN pg_relation_size(c.oid) ELSE 0 END
	/ current_setting('block_size')::int8) AS s(blocks)`

// layouts measures tables on one side.
func (n *node) layouts(ctx context.Context, tables []*table) ([]layout, error) {
	out := make([]layout, len(tables))
	for i := range tables {
		out[i].files = map[uint32]uint32{}
	}
	n.using.Lock()
	defer n.using.Unlock()
	rows, err := n.control.Query(ctx, layoutSQL, n.names(tables))
	if err != nil {
		return nil, n.fail("measure tables", err)
	}
	var i, blocks, estimate int64
	var oid, file uint32
	_, err = pgx.ForEachRow(rows, []any{&i, &oid, &file, &blocks, &estimate}, func() error {
		l := &out[i-1]
		l.files[oid] = file
		l.blocks = max(l.blocks, blocks)
		l.rows += estimate
		return nil
	})
	if err != nil {
		return nil, n.fail("measure tables", err)
	}
	return out, nil
}

// unchanged makes sure that no table was truncated or rewritten since the layouts were read, before
// the snapshot: both would show through it, as PostgreSQL warns.
// Source: PostgreSQL manual, 13.6 "Caveats".
func (n *node) unchanged(ctx context.Context, tables []*table, before []layout) error {
	after, err := n.layouts(ctx, tables)
	if err != nil {
		return err
	}
	for i, t := range tables {
		if !maps.Equal(before[i].files, after[i].files) {
			return hint.Wrap(fmt.Errorf("table %s: %s: %w", t.name, n.side, errShape),
				"compare again when no TRUNCATE, VACUUM FULL, CLUSTER or ALTER TABLE runs there")
		}
	}
	return nil
}

// chunks cuts a table into SQL conditions of about the given number of rows each: ranges of blocks,
// of which the last has no end. No row is in two of them and none is left out, in whatever state
// the table is by the time they are read.
func (l layout) chunks(n *node, chunkRows int64) []string {
	if n.major() < 14 || l.blocks == 0 || l.rows <= chunkRows { // before 14, each range would read the whole table
		return []string{"true"}
	}
	const lowest = 16 // blocks, for rows that are nearly as large as one
	step := max(lowest, l.blocks*chunkRows/l.rows)
	var conditions []string
	from := int64(0)
	for ; from+step < l.blocks; from += step {
		conditions = append(conditions, fmt.Sprintf("ctid >= '(%d,0)' AND ctid < '(%d,0)'", from, from+step))
	}
	return append(conditions, fmt.Sprintf("ctid >= '(%d,0)'", from))
}
