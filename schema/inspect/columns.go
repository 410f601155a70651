package inspect

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/schema"
)

// notNull is true for a pg_attribute a that certainly holds no null: since PostgreSQL 18 attnotnull
// is also set by a constraint that is still NOT VALID.
const notNull = `(a.attnotnull AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint nn
	WHERE nn.conrelid = a.attrelid AND nn.contype = 'n' AND nn.conkey = ARRAY[a.attnum] AND NOT nn.convalidated))`

const columnsSQL = `
SELECT a.attrelid, a.attname, a.attnum, a.atttypid, a.atttypmod,
	pg_catalog.format_type(a.atttypid, a.atttypmod), t.typtype::text,
	` + notNull + `, a.attgenerated <> '', a.attidentity::text,
	coalesce(CASE WHEN a.attgenerated = '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) END, ''),
	coalesce(pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname), ''),
	a.attstorage <> 'p'
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation AND a.attcollation <> t.typcollation
LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum`

func addColumns(ctx context.Context, conn *pgx.Conn, oids []uint32, byOID map[uint32]*schema.Table) error {
	rows, err := conn.Query(ctx, columnsSQL, oids)
	if err != nil {
		return err
	}
	var rel uint32
	var kind, identity string
	var c schema.Column
	_, err = pgx.ForEachRow(rows, []any{
		&rel, &c.Name, &c.Number, &c.Type.OID, &c.Type.Mod, &c.Type.SQL, &kind,
		&c.NotNull, &c.Generated, &identity, &c.Default, &c.Collation, &c.Toastable,
	}, func() error {
		c.Type.Kind, c.Identity = kind[0], 0
		if identity != "" {
			c.Identity = identity[0]
		}
		byOID[rel].Columns = append(byOID[rel].Columns, c)
		return nil
	})
	return err
}

// keysSQL lists the unique indexes that are complete, plain and valid, and says which of them find
// one row because no column is nullable.
// An exclusion constraint that stands behind a primary key (WITHOUT OVERLAPS) is no arbiter for
// ON CONFLICT, so it does not count as immediate.
const keysSQL = `
SELECT i.indrelid, x.relname, i.indisprimary, i.indimmediate AND NOT i.indisexclusion, i.indisreplident, k.names, k.complete
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
CROSS JOIN LATERAL (
	SELECT array_agg(a.attname::text ORDER BY u.ord) AS names, bool_and(` + notNull + `) AS complete
	FROM unnest(i.indkey) WITH ORDINALITY u (attnum, ord)
	JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum
	WHERE u.ord <= i.indnkeyatts
) k
WHERE i.indrelid = ANY($1) AND i.indisunique AND i.indisvalid AND i.indisready AND i.indislive
	AND i.indpred IS NULL AND i.indexprs IS NULL
ORDER BY i.indrelid, i.indisprimary DESC, x.relname`

// addKeys fills in Keys, Unique and IdentKey.
func addKeys(ctx context.Context, conn *pgx.Conn, oids []uint32, byOID map[uint32]*schema.Table) error {
	rows, err := conn.Query(ctx, keysSQL, oids)
	if err != nil {
		return err
	}
	var rel uint32
	var k schema.Key
	var identity, complete bool
	_, err = pgx.ForEachRow(rows, []any{&rel, &k.Name, &k.Primary, &k.Immediate, &identity, &k.Columns, &complete}, func() error {
		t := byOID[rel]
		if k.Immediate {
			t.Unique = append(t.Unique, k.Columns)
		}
		if complete {
			t.Keys = append(t.Keys, k)
		} else {
			identity = false
		}
		if t.Identity == schema.IdentityDefault && k.Primary && k.Immediate && complete || t.Identity == schema.IdentityIndex && identity {
			t.IdentKey = k.Columns
		}
		k.Columns = nil // the next row must not share the array
		return nil
	})
	return err
}
