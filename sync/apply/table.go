package apply

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

// maxUnnested is how many columns unnest may return.
// Source: PostgreSQL manual, Appendix K "PostgreSQL Limits" (columns per result set).
const maxUnnested = 1664

// A table is one mapping bound to what the stream sends and what the destination has. The images of
// its rows, in batches and statements, hold one value per param.
type table struct {
	mapping  *transform.Mapping
	target   *target
	computed bool
	params   []param
	columns  []column // of the target, in the mapping's order
	key      []keyPart
	whole    bool // without key, rows are found by their whole image
	touches  bool // key is the mapping's, so that the keys of its rows can be recorded
	rewrites bool // an update is a delete and an insert

	updates map[shape]verb // see updateShape; the writer's own
}

// A param is one source column whose value a row image holds.
type param struct {
	name  string
	index int    // in the relation's tuples
	cast  string // type at the source, for expressions
	read  bool   // an expression, a condition or a column may use it
}

// A column is one target column.
type column struct {
	*targetColumn
	param int    // where the value is, -1 when computed
	expr  string // computed: SQL over the source's columns
}

// A keyPart is one column of the key.
type keyPart struct {
	*targetColumn
	param int
}

// bind makes the table of a relation, or says in which way the relation does not fit.
func bind(rel *change.Relation, m *transform.Mapping, target *target) (*table, error) {
	if err := checkRelation(rel, &m.Source); err != nil {
		return nil, err
	}
	t := &table{mapping: m, target: target, computed: m.Computed(), updates: map[shape]verb{}}
	if t.computed { // an expression may use any column
		for i := range m.Source.Columns {
			if c := &m.Source.Columns[i]; !c.Generated {
				t.addParam(rel, c.Name)
			}
		}
	}
	for _, c := range m.Columns {
		tc := target.columns[c.Target]
		switch {
		case tc == nil:
			return nil, targetChanged(m, "it has no column %q", c.Target)
		case tc.generated:
			return nil, targetChanged(m, "its column %q is generated and cannot be written", c.Target)
		}
		col := column{targetColumn: tc, param: -1, expr: c.Expr}
		if c.Expr == "" {
			col.param = t.addParam(rel, c.Source)
		}
		t.columns = append(t.columns, col)
	}
	if len(t.columns) == 0 {
		return nil, targetChanged(m, "there is no column to write")
	}
	if err := t.bindKey(rel); err != nil {
		return nil, err
	}
	t.markRead()
	always := slices.ContainsFunc(t.columns, func(c column) bool { return c.always })
	tooWide := 2*len(t.params) > maxUnnested // the image before and the one after
	t.rewrites = t.computed || t.whole && (always || tooWide)
	return t, nil
}

// copies reports whether COPY does with the table's rows what INSERT does: each value is read by its type's
// input function, without help, and nothing is computed.
func (t *table) copies() bool {
	return !t.computed && !slices.ContainsFunc(t.columns, func(c column) bool { return c.input == octalChar })
}

func (t *table) addParam(rel *change.Relation, name string) int {
	if i := slices.IndexFunc(t.params, func(p param) bool { return p.name == name }); i >= 0 {
		return i
	}
	p := param{name: name, index: slices.IndexFunc(rel.Columns, func(c change.Column) bool { return c.Name == name })}
	if c := t.mapping.Source.Column(name); c != nil {
		p.cast = c.Type.SQL
	}
	t.params = append(t.params, p)
	return len(t.params) - 1
}

// markRead finds out which params of a computed table are used. It takes every word of the rules
// for a column, and the table's name for all of them: too many rather than too few.
func (t *table) markRead() {
	rules := []string{t.mapping.Where}
	for _, c := range t.mapping.Columns {
		rules = append(rules, c.Expr)
	}
	text := strings.Join(rules, " ")
	words := map[string]bool{}
	for _, w := range strings.FieldsFunc(text, func(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
		words[strings.ToLower(w)] = true
	}
	for i := range t.params {
		p := &t.params[i]
		p.read = words[strings.ToLower(p.name)] || words[strings.ToLower(t.mapping.Source.Name.Name)] ||
			strings.Contains(text, schema.QuoteIdent(p.name)) ||
			slices.ContainsFunc(t.columns, func(c column) bool { return c.param == i })
	}
}

// bindKey decides how updates and deletes find their row: by the mapping's key where the stream
// always says it, else by the stream's own identity, else by the whole row.
func (t *table) bindKey(rel *change.Relation) error {
	identity := map[string]bool{}
	for _, c := range rel.Columns {
		if c.Identity {
			identity[c.Name] = true
		}
	}
	full := rel.ReplicaIdentity == byte(schema.IdentityFull)

	key := t.mapping.Key
	t.touches = len(key) > 0
	for _, k := range key {
		t.touches = t.touches && identity[k.Source]
	}
	if !t.touches && !full {
		key = nil
		for _, c := range t.mapping.Columns {
			if c.Expr == "" && identity[c.Source] {
				key = append(key, transform.KeyColumn{Source: c.Source, Target: c.Target})
				delete(identity, c.Source)
			}
		}
		if len(identity) > 0 {
			return targetChanged(t.mapping, "it lacks columns of the source's replica identity")
		}
	}
	for _, k := range key {
		tc := t.target.columns[k.Target]
		if tc == nil {
			return targetChanged(t.mapping, "it has no column %q", k.Target)
		}
		t.key = append(t.key, keyPart{tc, t.addParam(rel, k.Source)})
	}
	t.whole = full && len(t.key) == 0
	return nil
}

// checkRelation compares what the stream sends with the source table that the mapping was made for.
func checkRelation(rel *change.Relation, source *schema.Table) error {
	found := &SchemaChange{Table: source.Name, Relation: rel}
	sent := map[string]bool{}
	for i := range rel.Columns {
		c := &rel.Columns[i]
		sent[c.Name] = true
		known := source.Column(c.Name)
		switch {
		case known == nil:
			found.New = append(found.New, c.Name)
		case !sameType(c, &known.Type):
			found.Retyped = append(found.Retyped, c.Name)
		}
	}
	for i := range source.Columns {
		if c := &source.Columns[i]; !c.Generated && !sent[c.Name] {
			found.Gone = append(found.Gone, c.Name)
		}
	}
	if len(found.New)+len(found.Retyped)+len(found.Gone) == 0 {
		return nil
	}
	return hint.Wrap(found, "make the destination's table %s fit, then resume", source.Name.Display())
}

// sameType compares types as far as their numbers mean the same in two databases: a mapping that
// was derived rather than read does not know the numbers of user-defined types.
func sameType(c *change.Column, t *schema.Type) bool {
	sent := schema.Type{OID: c.TypeOID}
	if t.OID == 0 || !sent.BuiltIn() && !t.BuiltIn() {
		return true
	}
	return c.TypeOID == t.OID && c.TypeMod == t.Mod
}

func sameRelation(a, b *change.Relation) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && a.ReplicaIdentity == b.ReplicaIdentity && slices.Equal(a.Columns, b.Columns)
}

func targetChanged(m *transform.Mapping, format string, args ...any) error {
	return hint.Wrap(fmt.Errorf("table %s: %w at the destination: %s", m.Target.Display(), ErrSchemaChanged, fmt.Sprintf(format, args...)),
		"make the destination's table as the mapping from %s wants it, then resume", m.Source.Name.Display())
}
