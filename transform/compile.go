package transform

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
)

// A Rule says how one table changes on its way. Columns that it does not mention carry over under
// their own names. The zero Rule changes nothing.
type Rule struct {
	// To is the target table, "shop.customers", or "customers" for one in the source's schema.
	// Default: the source's name.
	To string
	// Where is an SQL condition over the source's columns; only its rows move. Default: all.
	Where string
	// Columns gives target columns as SQL expressions over the source's columns. A bare source
	// column is a rename: it no longer carries over under its old name. Functions outside
	// pg_catalog need their schema, and the result must depend on the row alone.
	Columns map[string]string
	// Drop names source columns that do not carry over.
	Drop []string
	// Create is the DDL of the target table, for when CreateTable's would not do.
	Create string
	// Inverse gives source columns as SQL expressions over the target's columns, for the way back.
	Inverse map[string]string
}

// Describe returns the type of an SQL expression over a table, as the source's PostgreSQL sees it.
type Describe func(table schema.Name, expr string) (schema.Type, error)

// Movable reports whether a table's rows can be copied and followed, and if not, why.
func Movable(t *schema.Table) (ok bool, reason string) {
	switch {
	case t.Kind == schema.Foreign:
		return false, "it is a foreign table: its rows live elsewhere"
	case t.Kind == schema.MaterializedView:
		return false, "it is a materialized view: refresh it on the target"
	case t.Unlogged:
		return false, "it is unlogged: its changes are not in the WAL"
	}
	return true, ""
}

// Compile turns rules, keyed by table ("public.users", or "users" where only one schema has it),
// into one Mapping for every table that moves, in the order of tables. A partition whose parent is
// among tables moves with it and has no Mapping of its own. describe may be nil when no rule has
// an expression or condition. Errors name table and column, with the nearest known name as hint.
func Compile(tables []schema.Table, rules map[string]Rule, describe Describe) ([]Mapping, error) {
	byTable := map[schema.Name]*Rule{}
	for _, key := range slices.Sorted(maps.Keys(rules)) {
		t, err := findTable(tables, key)
		if err != nil {
			return nil, err
		}
		if err := accepts(tables, t); err != nil {
			return nil, fmt.Errorf("rule for table %s: %w", t.Name.Display(), err)
		}
		if byTable[t.Name] != nil {
			return nil, fmt.Errorf("table %s has two rules", t.Name.Display())
		}
		rule := rules[key]
		byTable[t.Name] = &rule
	}

	var mappings []Mapping
	from := map[schema.Name]schema.Name{} // source by target
	for i := range tables {
		t := &tables[i]
		if accepts(tables, t) != nil {
			continue
		}
		m, err := compileTable(t, byTable[t.Name], describe)
		if err != nil {
			return nil, fmt.Errorf("rule for table %s: %w", t.Name.Display(), err)
		}
		if other, taken := from[m.Target]; taken {
			return nil, hint.Wrap(fmt.Errorf("tables %s and %s both become %s", other.Display(), t.Name.Display(), m.Target.Display()),
				"one table on the target has one source: choose another name, or leave one of them out")
		}
		from[m.Target] = t.Name
		mappings = append(mappings, m)
	}
	return mappings, nil
}

// accepts returns nil when t gets a Mapping of its own, else an error that says why not.
func accepts(tables []schema.Table, t *schema.Table) error {
	if ok, reason := Movable(t); !ok {
		return errors.New(reason)
	}
	if t.Parent != nil && slices.ContainsFunc(tables, func(p schema.Table) bool { return p.Name == *t.Parent }) {
		return hint.Wrap(errors.New("it is a partition and moves with its parent"), "put the rule on %s", t.Parent.Display())
	}
	return nil
}

func findTable(tables []schema.Table, key string) (*schema.Table, error) {
	want, err := parseName(key, "")
	if err != nil {
		return nil, err
	}
	var found *schema.Table
	known := make([]string, len(tables))
	for i := range tables {
		t := &tables[i]
		known[i] = t.Name.Display()
		if t.Name.Name != want.Name || want.Schema != "" && t.Name.Schema != want.Schema {
			continue
		}
		if found != nil {
			return nil, hint.Wrap(fmt.Errorf("table %q is ambiguous", key), "write %s or %s", found.Name.Display(), t.Name.Display())
		}
		found = t
	}
	if found == nil {
		err := fmt.Errorf("no table %q among the selected ones", key)
		if want.Schema == "" { // compare like with like
			for i := range tables {
				known[i] = tables[i].Name.Name
			}
		}
		return nil, hint.Suggest(err, key, known)
	}
	return found, nil
}

func compileTable(t *schema.Table, r *Rule, describe Describe) (Mapping, error) {
	m := Mapping{Source: *t, Target: t.Name, Rule: r}
	if r == nil {
		r = &Rule{}
	}
	if r.To != "" {
		target, err := parseName(r.To, t.Name.Schema)
		if err != nil {
			return Mapping{}, fmt.Errorf("to: %w", err)
		}
		m.Target = target
	}
	if err := m.compileColumns(r, describe); err != nil {
		return Mapping{}, err
	}
	m.Key = m.findKey()

	if m.Where = strings.TrimSpace(r.Where); m.Where != "" {
		typ, err := m.describe(m.Where, describe)
		if err != nil {
			return Mapping{}, fmt.Errorf("where: %w", err)
		}
		if typ.SQL != "boolean" {
			return Mapping{}, fmt.Errorf("where: the condition is of type %s, not boolean", typ.SQL)
		}
	}
	if err := m.checkInverse(r); err != nil {
		return Mapping{}, err
	}
	return m, m.checkGenerated(r)
}

// checkInverse refuses an inverse of a column that is not there, or from one that is not there.
func (m *Mapping) checkInverse(r *Rule) error {
	for _, name := range slices.Sorted(maps.Keys(r.Inverse)) {
		if c := m.Source.Column(name); c == nil || c.Generated {
			return unknownColumn(&m.Source, "inverse", name)
		}
		word, ok := bareIdentifier(r.Inverse[name])
		if !ok || isConstant(word) {
			continue
		}
		targets := m.TargetColumns()
		if !slices.Contains(targets, word.raw) && !slices.Contains(targets, word.text) {
			err := fmt.Errorf("inverse of %q: table %s will have no column %q", name, m.Target.Display(), word.raw)
			return hint.Suggest(err, word.raw, targets)
		}
	}
	return nil
}

// checkGenerated refuses to leave out a generated column that nobody said to drop.
func (m *Mapping) checkGenerated(r *Rule) error {
	if !m.Reshaped() || r.Create != "" {
		return nil
	}
	for _, c := range m.Source.Columns {
		if c.Generated && !slices.Contains(r.Drop, c.Name) && r.Columns[c.Name] == "" && !m.keepsGenerated(c) {
			return hint.Wrap(fmt.Errorf("generated column %q does not carry over", c.Name),
				"list it under drop, give its expression under columns, or write the target's table under create")
		}
	}
	return nil
}

// compileColumns fills Columns: carried over and renamed ones in source order, computed ones last.
func (m *Mapping) compileColumns(r *Rule, describe Describe) error {
	t := &m.Source
	dropped := map[string]bool{}
	for _, name := range r.Drop {
		if t.Column(name) == nil {
			return unknownColumn(t, "drop", name)
		}
		dropped[name] = true
	}

	renames := map[string][]string{} // target columns by source column
	var computed []Column
	for _, target := range slices.Sorted(maps.Keys(r.Columns)) {
		expr := strings.TrimSpace(r.Columns[target])
		if target == "" || expr == "" {
			return fmt.Errorf("columns: %q has no name or no expression", target)
		}
		source, err := plainColumn(t, target, expr)
		if err != nil {
			return err
		}
		if source != "" {
			renames[source] = append(renames[source], target)
			continue
		}
		typ, err := m.describe(expr, describe)
		if err != nil {
			return fmt.Errorf("column %q: %w", target, err)
		}
		computed = append(computed, Column{Target: target, Expr: expr, Type: typ})
	}

	for _, c := range t.Columns {
		targets := renames[c.Name]
		_, overridden := r.Columns[c.Name]
		if len(targets) == 0 && !dropped[c.Name] && !overridden && !c.Generated {
			targets = []string{c.Name}
		}
		if len(targets) > 0 && dropped[c.Name] {
			return fmt.Errorf("column %q is both dropped and carried over as %q", c.Name, targets[0])
		}
		for _, target := range targets {
			m.Columns = append(m.Columns, Column{Target: target, Source: c.Name, Type: c.Type})
		}
	}
	m.Columns = append(m.Columns, computed...)
	return nil
}

// plainColumn returns the source column that expr consists of, or "" when it is an expression.
func plainColumn(t *schema.Table, target, expr string) (string, error) {
	word, ok := bareIdentifier(expr)
	if !ok {
		return "", nil
	}
	c := t.Column(word.raw)
	if c == nil {
		c = t.Column(word.text)
	}
	switch {
	case c != nil && c.Generated:
		return "", hint.Wrap(fmt.Errorf("column %q: %q is a generated column, which the stream does not carry", target, c.Name),
			"write the expression that generates it")
	case c != nil:
		return c.Name, nil
	case isConstant(word):
		return "", nil
	}
	return "", unknownColumn(t, fmt.Sprintf("column %q", target), word.raw)
}

// describe asks for the type of an expression, after refusing what could not be followed.
func (m *Mapping) describe(expr string, describe Describe) (schema.Type, error) {
	used := identifiers(expr)
	for _, c := range m.Source.Columns {
		if c.Generated && used[c.Name] {
			return schema.Type{}, hint.Wrap(fmt.Errorf("%q is a generated column, which the stream does not carry", c.Name),
				"write the expression that generates it")
		}
	}
	if describe == nil {
		return schema.Type{}, errors.New("an expression needs a database to find its type")
	}
	return describe(m.Source.Name, expr)
}

// findKey returns the best key whose columns all carry over as they are: the replica identity,
// which is what the stream finds a row by, else the primary key, else another unique key.
func (m *Mapping) findKey() []KeyColumn {
	candidates := [][]string{m.Source.IdentKey}
	for _, k := range m.Source.Keys {
		if k.Immediate {
			candidates = append(candidates, k.Columns)
		}
	}
next:
	for _, columns := range candidates {
		var key []KeyColumn
		for _, name := range columns {
			target := m.plainFrom(name)
			if target == "" {
				continue next
			}
			key = append(key, KeyColumn{Source: name, Target: target})
		}
		if len(key) > 0 {
			return key
		}
	}
	return nil
}

// isConstant reports whether a single word is a value rather than a column.
func isConstant(word token) bool {
	return !word.quoted && slices.Contains([]string{"null", "true", "false"}, word.text)
}

func unknownColumn(t *schema.Table, where, name string) error {
	var known []string
	for _, c := range t.Columns {
		known = append(known, c.Name)
	}
	return hint.Suggest(fmt.Errorf("%s: table %s has no column %q", where, t.Name.Display(), name), name, known)
}
