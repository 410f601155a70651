package dump

import (
	"github.com/ficus-migrate/ficus/schema"
)

// A graph is what there is to do, and what before what.
//
// Section Indexes goes table by table. A family is a table, or a partitioned one with its partitions;
// families have nothing to do with each other and are built side by side. Each goes through:
//
//	the keys of a table, one after the other, then its indexes, all at once
//	indexes of partitions join those of the partitioned table, one after the other
//	extended statistics, one after the other
//	statistics gathered
//
// And each waits for what it depends on, as the key of a partition on that of the partitioned table.
//
// What belongs to no table is a family, too. So is all of section Final, since foreign keys go
// between tables: its stages wait for one another, and only checks of different tables run side by
// side.
type graph map[schema.Name]*family // by the name of the root; "" for what has none

// A family waits for its gate until its tables are filled.
type family struct {
	gate   *job
	tables map[schema.Name]bool
	jobs   []*job
}

// A job is one entry to build. One without entry only joins others.
type job struct {
	entry *entry
	table *entry // that the entry is a part of, or nil
	order int    // as pg_dump found it
	waits int    // for so many jobs
	next  []*job // wait for this one
	bytes int64  // of the table, known when the entry can be built
}

// graph arranges entries, which are in the order of their stages.
func (d *Dump) graph(todo []*entry) graph {
	g := graph{}
	jobs := map[int]*job{} // by the entry's number, those that came before
	for i, e := range todo {
		j := &job{entry: e, table: d.tableOf(e), order: i}
		for _, id := range e.deps {
			if other := jobs[id]; other != nil {
				j.after(other)
			}
		}
		if e.id != 0 { // not a step of our own
			jobs[e.id] = j
		}
		var root schema.Name
		if j.table != nil && e.stage <= stageStatistics {
			root = d.rootOf(j.table).tableName()
		}
		f := g[root]
		if f == nil {
			f = &family{gate: &job{waits: 1}, tables: map[schema.Name]bool{}}
			g[root] = f
		}
		if j.table != nil {
			f.tables[j.table.tableName()] = true
		}
		f.jobs = append(f.jobs, j)
	}
	for _, f := range g {
		f.arrange()
	}
	return g
}

// rootOf returns the partitioned table at the top of a partition, or the table itself.
func (d *Dump) rootOf(table *entry) *entry {
	for up := d.archive.byID[d.parents[table.id]]; up != nil; up = d.archive.byID[d.parents[table.id]] {
		table = up
	}
	return table
}

// arrange lets every stage wait for the one before it.
func (f *family) arrange() {
	before := f.gate
	for rest := f.jobs; len(rest) > 0; {
		n := 1
		for n < len(rest) && together(rest[0].entry.stage, rest[n].entry.stage) {
			n++
		}
		after := &job{}
		between(rest[:n], before, after)
		before, rest = after, rest[n:]
	}
}

// together reports whether entries of two stages, the first one first, wait for the same.
func together(a, b stage) bool { return a == b || a == stageKeys && b == stageIndexes }

// between puts jobs of one stage between two others.
func between(jobs []*job, before, after *job) {
	latest := before
	locked := map[*entry]*job{} // who locks each table last, so that nobody else gets in
	for _, j := range jobs {
		previous := before
		if lock := locked[j.table]; lock != nil {
			previous = lock
		}
		switch j.entry.stage {
		case stageStatistics, stageIndexes: // sessions that index one table share its scan
		case stageKeys, stageValidate:
			locked[j.table] = j
		case stageTables, stageAttach, stageExtended, stageChecks, stageForeignKeys, stageRest, stageRefresh, stageGrants, stageEvents:
			// Quick, or in need of the order that pg_dump found.
			previous, latest = latest, j
		}
		j.after(previous)
		after.after(j)
	}
}

// after lets j wait for another job.
func (j *job) after(other *job) {
	other.next = append(other.next, j)
	j.waits++
}
