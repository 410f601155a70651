package verify

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

// An Aspect is one of the things that make up a table's definition.
type Aspect string

// The aspects that are compared.
const (
	AspectType        Aspect = "type"
	AspectNotNull     Aspect = "not null"
	AspectDefault     Aspect = "default"
	AspectGenerated   Aspect = "generated"
	AspectIdentity    Aspect = "identity"
	AspectCollation   Aspect = "collation"
	AspectConstraint  Aspect = "constraint"
	AspectIndex       Aspect = "index"
	AspectTrigger     Aspect = "trigger"
	AspectGrant       Aspect = "grant"
	AspectOwner       Aspect = "owner"
	AspectRowSecurity Aspect = "row security"
)

// A DefinitionDifference is one difference between the definitions of a table and its target.
type DefinitionDifference struct {
	Table  schema.Name `json:"table"`
	Aspect Aspect      `json:"aspect"`
	Name   string      `json:"name,omitempty"` // of the column, or what the thing is
	Source string      `json:"source"`         // "" where the source does not have it
	Target string      `json:"target"`
	// Matters says that an application may notice: a value, a refusal, a right or a plan. Why says
	// which, or why it does not matter.
	Matters bool   `json:"matters"`
	Why     string `json:"why"`
}

// definitionsSQL lists what tables are made of: the table's number, the aspect, the name, the
// definition. Constraints and indexes go by what they are, not by what they are called.
const definitionsSQL = `
WITH t AS (SELECT u.n, u.name::regclass::oid AS oid FROM unnest($1::text[]) WITH ORDINALITY AS u(name, n)),
a AS (
	SELECT t.n, a.*, pg_get_expr(d.adbin, d.adrelid) AS expr FROM t JOIN pg_attribute a ON a.attrelid = t.oid
	LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
	WHERE a.attnum > 0 AND NOT a.attisdropped)
SELECT n, 'type', attname::text, format_type(atttypid, atttypmod) FROM a
UNION ALL SELECT n, 'not null', attname, 'NOT NULL' FROM a WHERE attnotnull
UNION ALL SELECT n, 'default', attname, expr FROM a WHERE expr IS NOT NULL AND attgenerated = ''
UNION ALL SELECT n, 'generated', attname, expr FROM a WHERE attgenerated <> ''
UNION ALL SELECT n, 'identity', attname, CASE attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END FROM a WHERE attidentity <> ''
UNION ALL SELECT n, 'collation', attname, quote_ident(cn.nspname) || '.' || quote_ident(c.collname)
	FROM a JOIN pg_type ty ON ty.oid = atttypid JOIN pg_collation c ON c.oid = attcollation JOIN pg_namespace cn ON cn.oid = c.collnamespace
	WHERE attcollation <> ty.typcollation
UNION ALL SELECT n, 'constraint', pg_get_constraintdef(c.oid), c.conname
	FROM t JOIN pg_constraint c ON c.conrelid = t.oid WHERE c.contype IN ('c', 'f', 'p', 'u', 'x')
UNION ALL SELECT n, 'index', replace(pg_get_indexdef(i.indexrelid), ' INDEX ' || quote_ident(c.relname) || ' ON ', ' INDEX ON ')
		|| CASE WHEN i.indisvalid THEN '' ELSE ' (invalid)' END, c.relname
	FROM t JOIN pg_index i ON i.indrelid = t.oid JOIN pg_class c ON c.oid = i.indexrelid
	WHERE NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = t.oid AND k.contype IN ('p', 'u', 'x'))
UNION ALL SELECT n, 'trigger', g.tgname, pg_get_triggerdef(g.oid)
		|| CASE g.tgenabled WHEN 'O' THEN '' WHEN 'D' THEN ' (disabled)' WHEN 'R' THEN ' (for replicas)' ELSE ' (always)' END
	FROM t JOIN pg_trigger g ON g.tgrelid = t.oid JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace pn ON pn.oid = p.pronamespace
	WHERE NOT g.tgisinternal AND pn.nspname <> 'ficus'
UNION ALL SELECT n, 'grant', x.privilege_type || coalesce(' (' || x.attname || ')', '') || ' TO '
		|| CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END,
		CASE WHEN bool_or(x.is_grantable) THEN 'WITH GRANT OPTION' ELSE 'granted' END
	FROM (
		SELECT t.n, c.relowner, NULL AS attname, l.* FROM t JOIN pg_class c ON c.oid = t.oid, aclexplode(c.relacl) AS l
		UNION ALL SELECT a.n, c.relowner, quote_ident(a.attname), l.* FROM a JOIN pg_class c ON c.oid = a.attrelid, aclexplode(a.attacl) AS l) AS x
	WHERE x.grantee <> x.relowner GROUP BY 1, 2, 3
UNION ALL SELECT n, 'owner', '', pg_get_userbyid(c.relowner) FROM t JOIN pg_class c ON c.oid = t.oid
UNION ALL SELECT n, 'row security', '', CASE WHEN c.relforcerowsecurity THEN 'forced' ELSE 'enabled' END FROM t JOIN pg_class c ON c.oid = t.oid WHERE c.relrowsecurity
UNION ALL SELECT n, 'row security', 'policy ' || quote_ident(p.polname), concat_ws(' ', CASE WHEN p.polpermissive THEN '' ELSE 'RESTRICTIVE' END,
		'FOR', p.polcmd, 'TO', (SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r)) END, ', ' ORDER BY r = 0, pg_get_userbyid(r)) FROM unnest(p.polroles) r),
		'USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', 'WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')
	FROM t JOIN pg_policy p ON p.polrelid = t.oid`

// A part is one line of definitionsSQL, without the definition.
type part struct {
	aspect Aspect
	name   string
}

// Definitions compares the definitions of all tables, as far as their mappings leave them alone.
func (s *Session) Definitions(ctx context.Context) ([]DefinitionDifference, error) {
	var got [2][]map[part]string
	err := both(func(sd side) (err error) {
		got[sd], err = s.nodes[sd].definitions(ctx, s.tables)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := []DefinitionDifference{}
	for i, t := range s.tables {
		out = append(out, compareDefinitions(t.m, got[source][i], got[target][i])...)
	}
	return out, nil
}

func (n *node) definitions(ctx context.Context, tables []*table) ([]map[part]string, error) {
	out := make([]map[part]string, len(tables))
	for i := range tables {
		out[i] = map[part]string{}
	}
	rows, err := n.control.Query(ctx, definitionsSQL, n.names(tables))
	if err != nil {
		return nil, n.fail("read definitions", err)
	}
	var i int64
	var p part
	var definition string
	_, err = pgx.ForEachRow(rows, []any{&i, &p.aspect, &p.name, &definition}, func() error {
		out[i-1][p] = definition
		return nil
	})
	if err != nil {
		return nil, n.fail("read definitions", err)
	}
	return out, nil
}

// names returns the tables' names on this side, as SQL.
func (n *node) names(tables []*table) []string {
	names := make([]string, len(tables))
	for i, t := range tables {
		if names[i] = t.m.Source.Name.String(); n.side == target {
			names[i] = t.m.Target.String()
		}
	}
	return names
}

// compareDefinitions compares one table. Where a rule reshapes it, columns are compared that carry
// over, and grants; a constraint or index over other columns has no counterpart to find.
func compareDefinitions(m *transform.Mapping, src, dst map[part]string) []DefinitionDifference {
	reshaped := m.Reshaped()
	if reshaped {
		src = throughRules(m, src)
	}
	var out []DefinitionDifference
	add := func(p part, s, d string) {
		if reshaped && !p.aspect.survives() {
			return
		}
		if reshaped && p.aspect.ofColumn() && s == "" {
			return // the rule made it
		}
		matters, why := weigh(p, s, d, dst)
		out = append(out, DefinitionDifference{Table: m.Source.Name, Aspect: p.aspect, Name: p.name, Source: s, Target: d, Matters: matters, Why: why})
	}
	for p, s := range src {
		if d, ok := dst[p]; !ok || d != s {
			add(p, s, d)
		}
	}
	for p, d := range dst {
		if _, ok := src[p]; !ok {
			add(p, "", d)
		}
	}
	slices.SortFunc(out, func(a, b DefinitionDifference) int {
		return cmp.Or(cmp.Compare(a.Aspect, b.Aspect), strings.Compare(a.Name, b.Name))
	})
	return out
}

// throughRules returns the parts of the source under the names of the target's columns, without
// those of columns that do not carry over as they are.
func throughRules(m *transform.Mapping, src map[part]string) map[part]string {
	out := map[part]string{}
	for p, s := range src {
		if !p.aspect.ofColumn() {
			out[p] = s
			continue
		}
		for _, c := range m.Columns {
			if c.Expr == "" && c.Source == p.name {
				out[part{p.aspect, c.Target}] = s
			}
		}
	}
	return out
}

// ofColumn reports whether the part's name is a column's.
func (a Aspect) ofColumn() bool {
	switch a {
	case AspectType, AspectNotNull, AspectDefault, AspectGenerated, AspectIdentity, AspectCollation:
		return true
	case AspectConstraint, AspectIndex, AspectTrigger, AspectGrant, AspectOwner, AspectRowSecurity:
	}
	return false
}

// survives reports whether the aspect can be compared through a rule that reshapes the table.
func (a Aspect) survives() bool {
	switch a {
	case AspectType, AspectCollation, AspectGrant, AspectOwner, AspectRowSecurity:
		return true
	case AspectNotNull, AspectDefault, AspectGenerated, AspectIdentity, AspectConstraint, AspectIndex, AspectTrigger:
	}
	return false
}

// weigh tells whether a difference matters, and why. dst is all of the target's definition.
func weigh(p part, src, dst string, target map[part]string) (matters bool, why string) {
	missing, extra := dst == "", src == ""
	switch p.aspect {
	case AspectType:
		switch {
		case missing:
			return true, "the column is not there"
		case !extra:
			return true, "the column takes other values"
		case target[part{AspectNotNull, p.name}] != "" && target[part{AspectDefault, p.name}] == "" &&
			target[part{AspectIdentity, p.name}] == "" && target[part{AspectGenerated, p.name}] == "":
			return true, "inserts that do not know the column fail"
		}
		return false, "only the target has the column"
	case AspectNotNull:
		return true, either(missing, "NULL is let in", "NULL is refused")
	case AspectDefault, AspectIdentity, AspectGenerated:
		return true, "rows to come get other values"
	case AspectCollation:
		return true, "it sorts and compares in another way"
	case AspectConstraint:
		if !missing && !extra {
			return false, "only the name differs"
		}
		return true, either(missing, "wrong rows are let in", "rows are refused that the source takes")
	case AspectIndex:
		switch unique := strings.HasPrefix(p.name, "CREATE UNIQUE "); {
		case !missing && !extra:
			return false, "only the name differs"
		case unique:
			return true, either(missing, "wrong rows are let in", "rows are refused that the source takes")
		case missing:
			return true, "queries that use it get slow"
		}
		return false, "only the target has it"
	case AspectTrigger:
		return true, either(missing, "what it does is not done", "what happens on a write is not the same")
	case AspectGrant:
		return true, either(missing, "the role is refused", "the role may do what it may not on the source")
	case AspectOwner:
		return false, "owners may do the same"
	case AspectRowSecurity:
		return true, "roles see other rows"
	}
	return true, "not known"
}

func either(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}

// String returns what people read: "not null email: NOT NULL on the source, nothing on the target".
func (d *DefinitionDifference) String() string {
	show := func(s string) string { return cmp.Or(s, "nothing") }
	name := ""
	if d.Name != "" {
		name = " " + d.Name
	}
	return fmt.Sprintf("%s: %s%s: %s on the source, %s on the target: %s", d.Table.Display(), d.Aspect, name, show(d.Source), show(d.Target), d.Why)
}
