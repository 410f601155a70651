package dump

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
)

// A chooser leaves objects of an archive out.
type chooser struct {
	*archive
	skip     map[schema.Name]bool
	match    *schema.Matcher
	parent   map[int]int  // partition to partitioned table
	left     map[int]bool // out
	orphaned map[int]bool // sequences whose owner is out and that stay
}

// choose returns the entries to build, in the archive's order.
func (d *Dump) choose(match *schema.Matcher) ([]*entry, error) {
	c := &chooser{
		archive: d.archive, match: match, skip: map[schema.Name]bool{},
		parent: map[int]int{}, left: map[int]bool{}, orphaned: map[int]bool{},
	}
	for _, n := range d.cfg.SkipTables {
		c.skip[n] = true
	}
	c.tables()
	d.parents = c.parent
	c.sequences()
	if err := c.dependents(d.warn); err != nil {
		return nil, err
	}
	if len(d.cfg.Filter.Include) > 0 {
		c.onlyNeeded()
	}
	var keep []*entry
	for _, e := range c.entries {
		if !c.left[e.id] {
			keep = append(keep, e)
		}
	}
	return keep, nil
}

// tables leaves out the tables that the filter or SkipTables say.
func (c *chooser) tables() {
	for _, e := range c.entries {
		if e.kind != "TABLE ATTACH" {
			continue
		}
		child, parent := 0, 0
		for _, id := range e.deps {
			dep := c.byID[id]
			switch {
			case dep == nil || !dep.isTable():
			case dep.tableName() == e.tableName():
				child = id
			default:
				parent = id
			}
		}
		c.parent[child] = parent
	}
	for _, e := range c.entries {
		if !e.isTable() {
			continue
		}
		root, skip := e, c.skip[e.tableName()]
		for up := c.byID[c.parent[root.id]]; up != nil; up = c.byID[c.parent[root.id]] {
			root = up
			skip = skip || c.skip[root.tableName()]
		}
		if skip || !c.match.Match(root.tableName()) {
			c.left[e.id] = true
		}
	}
}

// sequences leaves out those that belong to a table left out, unless they are of use without it, and
// free ones that the filter does not choose. One that a remaining default needs stays in any case.
func (c *chooser) sequences() {
	wanted := map[int]bool{}
	for _, e := range c.entries {
		if (e.kind == "DEFAULT" || e.isTable()) && !c.left[e.id] && !c.anyLeft(e) {
			for _, id := range e.deps {
				wanted[id] = true
			}
		}
	}
	for _, e := range c.entries {
		if e.kind != "SEQUENCE" {
			continue
		}
		var table *entry
		for _, id := range e.deps {
			if dep := c.byID[id]; dep != nil && dep.isTable() {
				table = dep
			}
		}
		switch {
		case table == nil:
			if !wanted[e.id] && !c.match.Match(e.tableName()) {
				c.left[e.id] = true
			}
		case !c.left[table.id]:
		case isIdentity(e):
			c.left[e.id] = true
		case wanted[e.id] || c.skip[table.tableName()]:
			c.orphaned[e.id] = true
		default:
			c.left[e.id] = true
		}
	}
}

// dependents leaves out what depends on something left out, and tells when that is more than a part
// of it. A table cannot go that way: its rows would be lost.
func (c *chooser) dependents(warn func(format string, args ...any)) error {
	for again := true; again; {
		again = false
		for _, e := range c.entries {
			if c.left[e.id] || c.orphaned[e.id] || !c.anyLeft(e) && !c.disowned(e) && !isFence(e) {
				continue
			}
			why := c.why(e)
			if e.isTable() && e.kind != "MATERIALIZED VIEW" {
				return hint.Wrap(fmt.Errorf("%s cannot be copied without %s", e, why),
					"choose both tables or neither: %s depends on the other one's definition", e.tableName().Display())
			}
			if c.standsAlone(e) {
				warn("%s is left out, because %s is", e, why)
			}
			c.left[e.id] = true
			again = true
		}
	}
	return nil
}

func (c *chooser) anyLeft(e *entry) bool {
	return slices.ContainsFunc(e.deps, func(id int) bool { return c.left[id] })
}

// disowned reports whether e ties an orphaned sequence to its former table.
func (c *chooser) disowned(e *entry) bool {
	return e.kind == "SEQUENCE OWNED BY" && slices.ContainsFunc(e.deps, func(id int) bool { return c.orphaned[id] })
}

func (c *chooser) why(e *entry) *entry {
	for _, id := range e.deps {
		if c.left[id] {
			return c.byID[id]
		}
	}
	return e
}

// standsAlone reports whether somebody would miss e: it is no part of something left out.
func (c *chooser) standsAlone(e *entry) bool {
	switch e.kind {
	case "VIEW", "MATERIALIZED VIEW", "FUNCTION", "PROCEDURE", "AGGREGATE", "TYPE", "DOMAIN", "OPERATOR", "CAST", "EVENT TRIGGER":
		return true
	case "FK CONSTRAINT", "TRIGGER", "POLICY", "RULE":
		return !isFence(e) && slices.ContainsFunc(e.deps, func(id int) bool {
			dep := c.byID[id]
			return dep != nil && (dep.isTable() || dep.kind == "VIEW") && !c.left[id]
		})
	}
	return false
}

// onlyNeeded leaves out objects of schemas without a chosen table, unless something needs them.
func (c *chooser) onlyNeeded() {
	schemas := map[string]bool{}
	for _, e := range c.entries {
		if (e.isTable() || e.kind == "SEQUENCE") && !c.left[e.id] {
			schemas[e.schema] = true
		}
	}
	keep := map[int]bool{}
	var need func(id int)
	need = func(id int) {
		if e := c.byID[id]; e != nil && !keep[id] {
			keep[id] = true
			for _, dep := range e.deps {
				need(dep)
			}
		}
	}
	for _, e := range c.entries {
		at := e.schema
		if e.kind == "SCHEMA" {
			at = e.name
		}
		if !c.left[e.id] && !isNote(e) && (at == "-" || schemas[at]) {
			need(e.id)
		}
	}
	for _, e := range c.entries {
		about := isNote(e) && !slices.ContainsFunc(e.deps, func(id int) bool { return c.byID[id] != nil && !keep[id] })
		if isNote(e) && e.schema == "-" && len(e.deps) == 0 { // on something that pg_dump does not create
			about = false
		}
		if !keep[e.id] && !about {
			c.left[e.id] = true
		}
	}
}

// isIdentity reports whether a sequence is made by its column (ADD GENERATED ... AS IDENTITY).
func isIdentity(e *entry) bool { return strings.HasPrefix(e.sql, "ALTER TABLE ") }

// isFence reports whether e is a trigger of Ficus's own, whose function is not copied.
func isFence(e *entry) bool {
	return e.kind == "TRIGGER" && strings.Contains(e.sql, " EXECUTE FUNCTION ficus.")
}

// isNote reports whether e says something about another object.
func isNote(e *entry) bool {
	return e.kind == "COMMENT" || e.kind == "ACL" || e.kind == "DEFAULT ACL" || e.kind == "SECURITY LABEL"
}
