package dump

import (
	"cmp"
	"slices"
	"strings"

	"github.com/ficus-migrate/ficus/schema"
)

// A stage is when an entry is built. Stages follow one another, and so do the sections:
// PreData has the first, Indexes those from stageKeys to stageStatistics, Final the rest. Within
// Indexes the stages follow one another for each table by itself (see jobs).
type stage int

const (
	stageTables      stage = iota // everything that must exist before rows do
	stageKeys                     // primary keys, unique and exclusion constraints
	stageIndexes                  // other indexes
	stageAttach                   // indexes of partitions join those of the partitioned table
	stageExtended                 // extended statistics
	stageStatistics               // statistics gathered
	stageChecks                   // constraints that are NOT VALID: rows that are copied may violate them
	stageForeignKeys              // added unchecked, which is quick
	stageValidate                 // foreign keys checked, which reads both tables
	stageRest                     // triggers, rules, policies, what depends on keys
	stageRefresh                  // materialized views filled
	stageGrants                   // privileges
	stageEvents                   // event triggers, which see every statement after them
)

// base returns when an entry of that kind can be built at the earliest.
func base(e *entry) stage {
	switch e.kind {
	case "CONSTRAINT":
		return stageKeys
	case "INDEX":
		if strings.Contains(e.sql, "\nALTER ") {
			// Marks the table, too (CLUSTER ON, REPLICA IDENTITY), and two sessions that upgrade
			// their lock on one table deadlock: as a key it is built alone.
			return stageKeys
		}
		return stageIndexes
	case "INDEX ATTACH":
		return stageAttach
	case "STATISTICS":
		return stageExtended
	case "CHECK CONSTRAINT":
		return stageChecks
	case "FK CONSTRAINT":
		return stageForeignKeys
	case "TRIGGER", "RULE", "POLICY", "ROW SECURITY", "SECURITY LABEL":
		return stageRest
	case "ACL", "DEFAULT ACL":
		return stageGrants
	case "EVENT TRIGGER":
		return stageEvents
	}
	return stageTables
}

// plan gives every chosen entry its stage and adds steps that pg_dump has no entry for: the
// statistics of tables, the check of each foreign key, and the refresh of each materialized view that
// holds rows on the source.
func (d *Dump) plan(unfilled map[schema.Name]bool) []*entry {
	for _, e := range d.entries {
		e.stage = base(e)
	}
	for again := true; again; {
		again = false
		for _, e := range d.entries {
			if s := d.atLeast(e); s > e.stage {
				e.stage, again = s, true
			}
		}
	}

	var steps []*entry
	for _, e := range d.entries {
		steps = append(steps, e)
		switch {
		case e.isTable() && slices.Contains(d.cfg.Analyze, e.tableName()):
			steps = append(steps, &entry{
				kind: "STATISTICS OF", schema: e.schema, name: e.name, deps: []int{e.id}, stage: stageStatistics,
				sql: "ANALYZE " + e.tableName().String() + ";",
			})
		case e.kind == "FK CONSTRAINT":
			if check := d.splitCheck(e); check != nil {
				steps = append(steps, check)
			}
		case e.kind == "MATERIALIZED VIEW" && !unfilled[e.tableName()]:
			steps = append(steps, &entry{
				kind: "REFRESH", schema: e.schema, name: e.name, owner: e.owner, stage: stageRefresh,
				sql: "REFRESH MATERIALIZED VIEW " + e.tableName().String() + ";",
			})
		}
	}
	slices.SortStableFunc(steps, func(a, b *entry) int { return cmp.Compare(a.stage, b.stage) })
	return steps
}

// atLeast returns the stage that an entry's dependencies put it in. A view may need a primary key
// (GROUP BY), a comment any object: what is no table, but depends on a later stage, waits until all
// indexes are there; what depends on that waits with it.
func (d *Dump) atLeast(e *entry) stage {
	latest := stageTables
	for _, id := range e.deps {
		if dep := d.archive.byID[id]; dep != nil {
			latest = max(latest, dep.stage)
		}
	}
	if base(e) == stageTables && latest > stageTables || latest >= stageRest {
		return max(latest, stageRest)
	}
	return e.stage
}

// splitCheck makes a foreign key be added without looking at the rows, and returns the step that
// checks them: that takes a lock which lets the rows change, and which several checks can hold at
// once. It returns nil, and leaves the key as it is, where that is not possible (partitioned tables)
// or not wanted (NOT VALID on the source).
func (d *Dump) splitCheck(e *entry) *entry {
	for _, id := range e.deps {
		if dep := d.archive.byID[id]; dep != nil && dep.kind == "TABLE" && strings.Contains(dep.sql, "\nPARTITION BY ") {
			return nil
		}
	}
	rest, only := strings.CutPrefix(e.sql, "ALTER TABLE ONLY ")
	table, rest, add := strings.Cut(rest, "\n    ADD CONSTRAINT ")
	name, _, key := strings.Cut(rest, " FOREIGN KEY (")
	unchecked, whole := strings.CutSuffix(e.sql, ";")
	if !only || !add || !key || !whole || strings.HasSuffix(unchecked, " NOT VALID") || strings.HasSuffix(unchecked, " NOT ENFORCED") {
		return nil
	}
	e.sql = unchecked + " NOT VALID;"
	e.owned = e.sql
	return &entry{
		kind: "CHECK OF FOREIGN KEY", schema: e.schema, name: e.name, deps: e.deps, stage: stageValidate,
		sql: "ALTER TABLE ONLY " + table + " VALIDATE CONSTRAINT " + name + ";",
	}
}
