package apply

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

// A target is a table of the destination, as its catalog describes it.
type target struct {
	name    schema.Name
	root    bool // partitioned: holds no rows itself, so ONLY would miss them all
	ordered bool // has triggers that fire although we replicate: they may see the order of rows
	columns map[string]*targetColumn
}

// sql names the table in a statement; ONLY keeps inheritance children out, which have a mapping of
// their own.
func (t *target) sql() string {
	if t.root {
		return t.name.String()
	}
	return "ONLY " + t.name.String()
}

// A targetColumn is a column of the destination.
type targetColumn struct {
	name      string
	generated bool
	always    bool   // GENERATED ALWAYS AS IDENTITY: an UPDATE cannot set it
	base      string // type without modifier, domains resolved: a cast to it never truncates
	full      string // type as declared
	domain    bool   // over base
	equal     string // OPERATOR(schema.=): there is no search_path to find it by
	form      form   // of its values in typed statements
	input     string // SQL on %s that reads the text of a value, where a cast from text would do something else; else ""
}

// cast returns SQL that turns a text expression into a value that may be assigned to the column.
// The length of a varchar, say, is left to the assignment, which complains where a cast would cut.
func (c *targetColumn) cast(text string) string {
	if c.input != "" {
		return strings.ReplaceAll(c.input, "%s", text)
	}
	return text + "::" + c.base
}

// compared returns SQL for the column of row t as an operand of equal. There are domains for which
// PostgreSQL finds no operator: it does not take one over an enum for an enum.
func (c *targetColumn) compared() string {
	column := "t." + schema.QuoteIdent(c.name)
	if c.domain {
		return column + "::" + c.base
	}
	return column
}

// octalChar reads what 15 and newer write for a "char" with the high bit set, \377, of which an older
// server would take the first character. No other value of the type has more than one.
const octalChar = `(CASE WHEN length(%s) = 4 THEN ((((ascii(substr(%s, 2, 1)) - 48) * 64 + (ascii(substr(%s, 3, 1)) - 48) * 8
	+ ascii(substr(%s, 4, 1)) - 48 + 128) % 256) - 128)::pg_catalog."char" ELSE %s::pg_catalog."char" END)`

// catalogSQL lists the columns of the tables named by two arrays, schemas and names.
//
// base resolves domains.
func catalogSQL() string {
	return `
WITH RECURSIVE cols AS (
	SELECT n.nspname, c.oid AS relid, c.relname, c.relkind, a.attnum, a.attname, a.attidentity, a.attgenerated, a.atttypid, a.atttypmod
	FROM unnest($1::text[], $2::text[]) AS w(nsp, rel)
	JOIN pg_namespace n ON n.nspname = w.nsp
	JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.rel AND c.relkind IN ('r', 'p', 'f')
	JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
), base AS (
	SELECT t.oid AS typ, t.oid, t.typtype FROM pg_type t WHERE t.oid IN (SELECT atttypid FROM cols)
	UNION ALL
	SELECT b.typ, p.oid, p.typtype
	FROM base b JOIN pg_type d ON d.oid = b.oid JOIN pg_type p ON p.oid = d.typbasetype
	WHERE b.typtype = 'd'
)
SELECT k.nspname, k.relname, k.relkind = 'p',
	EXISTS (SELECT FROM pg_trigger g WHERE NOT g.tgisinternal AND g.tgenabled IN ('A', 'R') AND g.tgname <> 'ficus_fence'
		AND (g.tgrelid = k.relid OR g.tgrelid IN (SELECT relid FROM pg_partition_tree(k.relid)))),
	k.attname, k.attgenerated <> '', k.attidentity = 'a',
	format_type(b.oid, -1), format_type(k.atttypid, k.atttypmod), b.oid <> k.atttypid,
	` + inspect.Equality("b.oid") + `,
	CASE WHEN b.oid = '"char"'::regtype AND current_setting('server_version_num')::int < 150000 THEN $3 ELSE coalesce(i.call, '') END
FROM cols k
JOIN base b ON b.typ = k.atttypid AND b.typtype <> 'd'
LEFT JOIN LATERAL (
	SELECT format(CASE p.pronargs WHEN 1 THEN '%I.%I(%%s::pg_catalog.cstring)' ELSE '%I.%I(%%s::pg_catalog.cstring, %s::pg_catalog.oid, -1)' END,
		n.nspname, p.proname, CASE WHEN t.typelem <> 0 THEN t.typelem ELSE t.oid END) AS call
	FROM pg_cast c JOIN pg_type t ON t.oid = c.casttarget JOIN pg_proc p ON p.oid = t.typinput JOIN pg_namespace n ON n.oid = p.pronamespace
	WHERE c.castsource = 'text'::regtype AND c.casttarget = b.oid AND c.castmethod = 'f'
) i ON true
ORDER BY k.relid, k.attnum`
}

// loadTargets reads the target tables of all mappings. A table that is missing is an error.
func loadTargets(ctx context.Context, conn *pgx.Conn, mappings []transform.Mapping) (map[schema.Name]*target, error) {
	schemas, names := make([]string, len(mappings)), make([]string, len(mappings))
	for i := range mappings {
		schemas[i], names[i] = mappings[i].Target.Schema, mappings[i].Target.Name
	}
	rows, err := conn.Query(ctx, catalogSQL(), schemas, names, octalChar)
	if err != nil {
		return nil, fmt.Errorf("read the destination's catalog: %w", err)
	}
	targets := map[schema.Name]*target{}
	var name schema.Name
	var t target
	var c targetColumn
	_, err = pgx.ForEachRow(rows, []any{
		&name.Schema, &name.Name, &t.root, &t.ordered, &c.name, &c.generated, &c.always, &c.base, &c.full, &c.domain, &c.equal, &c.input,
	}, func() error {
		tt := targets[name]
		if tt == nil {
			tt = &target{name: name, root: t.root, ordered: t.ordered, columns: map[string]*targetColumn{}}
			targets[name] = tt
		}
		column := c
		if column.input == "" {
			column.form = formOf(column.base)
		}
		tt.columns[c.name] = &column
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the destination's catalog: %w", err)
	}
	for i := range mappings {
		if m := &mappings[i]; targets[m.Target] == nil {
			return nil, hint.Wrap(fmt.Errorf("table %s: %w: it is not at the destination", m.Target.Display(), ErrSchemaChanged),
				"create it as the mapping from %s wants it, or take it out of the selection", m.Source.Name.Display())
		}
	}
	return targets, nil
}
