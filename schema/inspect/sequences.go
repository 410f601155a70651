package inspect

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/schema"
)

const sequencesSQL = `
SELECT n.nspname, c.relname, q.seqincrement,
	t.oid, coalesce(tn.nspname, ''), coalesce(t.relname, ''), coalesce(a.attname, ''),
	ARRAY(SELECT ad.adrelid FROM pg_catalog.pg_depend u
		JOIN pg_catalog.pg_attrdef ad ON ad.oid = u.objid
		WHERE u.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
		AND u.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND u.refobjid = c.oid)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_sequence q ON q.seqrelid = c.oid
LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
	AND d.objid = c.oid AND d.objsubid = 0
	AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
LEFT JOIN pg_catalog.pg_class t ON t.oid = d.refobjid
LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE c.relkind = 'S' AND ` + isUser + `
ORDER BY n.nspname, c.relname`

// Sequences returns the chosen sequences, ordered by name; those behind identity columns, too.
func Sequences(ctx context.Context, conn *pgx.Conn, f Filter) ([]schema.Sequence, error) {
	match, err := f.Compile()
	if err != nil {
		return nil, fmt.Errorf("read sequences: %w", err)
	}
	rels, err := relations(ctx, conn, f)
	if err != nil {
		return nil, fmt.Errorf("read sequences: %w", err)
	}
	chosen := make(map[uint32]bool, len(rels))
	for i := range rels {
		chosen[rels[i].OID] = true
	}

	rows, err := conn.Query(ctx, sequencesSQL)
	if err != nil {
		return nil, fmt.Errorf("read sequences: %w", err)
	}
	var seqs []schema.Sequence
	var s schema.Sequence
	var ownerOID *uint32
	var owner schema.Name
	var users []uint32 // tables with a default that needs the sequence
	_, err = pgx.ForEachRow(rows, []any{
		&s.Name.Schema, &s.Name.Name, &s.Increment,
		&ownerOID, &owner.Schema, &owner.Name, &s.OwnerColumn, &users,
	}, func() error {
		take := slices.ContainsFunc(users, func(oid uint32) bool { return chosen[oid] })
		s.OwnerTable = nil
		if ownerOID != nil {
			s.OwnerTable = &schema.Name{Schema: owner.Schema, Name: owner.Name}
			take = take || chosen[*ownerOID]
		} else {
			take = take || match.Match(s.Name)
		}
		if take {
			seqs = append(seqs, s)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read sequences: %w", err)
	}
	return seqs, nil
}
