package main

import (
	"context"
	"fmt"

	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/transform"
)

// A tablePlan is how one table is going to move.
type tablePlan struct {
	Source   schema.Name `json:"source"`
	Target   schema.Name `json:"target"`
	Rows     int64       `json:"rows"`
	Bytes    int64       `json:"bytes"`
	Rule     string      `json:"rule"`
	Format   string      `json:"format"`           // of the copy
	Why      string      `json:"text_because"`     // "" for binary
	Stream   string      `json:"stream"`           // format of what follows the copy
	Identity string      `json:"replica_identity"` // how changes find their row
	Because  string      `json:"identity_because"` // "" where it stays as it is
	Parts    int64       `json:"parts"`            // of the copy, about; a finished one is not copied again
}

// splitVersion is the first server of which a large table is read in parts.
const splitVersion = 14

// tablePlans says how each table moves. It reads both catalogs.
func (j *job) tablePlans(ctx context.Context) ([]tablePlan, error) {
	versions, cores, existing, err := j.targetTables(ctx)
	if err != nil {
		return nil, err
	}
	chunk := j.chunkBytes(cores)
	plans := make([]tablePlan, 0, len(j.plan.Forward.Mappings))
	for i := range j.plan.Forward.Mappings {
		m := &j.plan.Forward.Mappings[i]
		var columns []schema.Column
		if t := existing[m.Target]; t != nil {
			columns = t.Columns
		}
		p := tablePlan{Source: m.Source.Name, Target: m.Target, Rows: m.Source.Rows, Bytes: m.Source.Bytes, Rule: ruleText(m)}
		p.Format, p.Why = snapshot.Format(m, columns, versions)
		p.Stream = "text" // of every table: docs/adr/20261121-text-in-the-stream.md
		p.Identity, p.Because = j.plan.Forward.Of(&m.Source)
		p.Parts = j.parts(&m.Source, versions.Source, chunk)
		plans = append(plans, p)
	}
	return plans, nil
}

// targetTables returns both versions, the cores of the smaller server, and the tables that the target
// has already.
func (j *job) targetTables(ctx context.Context) (v snapshot.Versions, cores int, have map[schema.Name]*schema.Table, err error) {
	source, err := j.source.Connect(ctx, "plan")
	if err != nil {
		return v, 0, nil, fmt.Errorf("source: %w", err)
	}
	defer source.Close(context.WithoutCancel(ctx))
	target, err := j.target.Connect(ctx, "plan")
	if err != nil {
		return v, 0, nil, fmt.Errorf("target: %w", err)
	}
	defer target.Close(context.WithoutCancel(ctx))
	src, err := inspect.Server(ctx, source)
	if err != nil {
		return v, 0, nil, fmt.Errorf("source: %w", err)
	}
	dst, err := inspect.Server(ctx, target)
	if err != nil {
		return v, 0, nil, fmt.Errorf("target: %w", err)
	}
	if cores, err = snapshot.Cores(ctx, source, target); err != nil {
		return v, 0, nil, err
	}
	tables, err := inspect.Tables(ctx, target, inspect.Filter{})
	if err != nil {
		return v, 0, nil, fmt.Errorf("target: %w", err)
	}
	have = make(map[schema.Name]*schema.Table, len(tables))
	for i := range tables {
		have[tables[i].Name] = &tables[i]
	}
	return snapshot.Versions{Source: src.Major, Target: dst.Major}, cores, have, nil
}

// chunkBytes is how large a chunk of the copy is going to be.
func (j *job) chunkBytes(cores int) int64 {
	var sizes []int64
	for i := range j.plan.Forward.Mappings {
		sizes = append(sizes, j.plan.Forward.Mappings[i].Source.Bytes)
	}
	given := snapshot.Sizing{Workers: j.playbook.Copy.Workers, ChunkBytes: int64(j.playbook.Copy.Chunk)}
	return given.Size(cores, sizes).ChunkBytes
}

// parts estimates into how many parts the copy of a table is cut; each is finished for good once it
// is committed, so that an interrupted copy reads only the others again.
func (j *job) parts(t *schema.Table, major int, chunk int64) int64 {
	own := int64(1)
	if t.Kind == schema.Ordinary && major >= splitVersion {
		own = max(1, min((t.Bytes+chunk-1)/chunk, t.Pages))
	}
	if t.Kind != schema.Partitioned {
		return own
	}
	sum := int64(0)
	for i := range j.plan.Forward.Tables {
		if p := &j.plan.Forward.Tables[i]; p.Parent != nil && *p.Parent == t.Name {
			sum += j.parts(p, major, chunk)
		}
	}
	return max(1, sum)
}

func ruleText(m *transform.Mapping) string {
	switch {
	case m.Computed():
		return "computed: " + rule(m.Where, len(m.Columns))
	case m.Reshaped():
		return "renamed"
	}
	return "as it is"
}

// printTables shows the tables, and below them what is not as one would expect.
func (a *app) printTables(plans []tablePlan) {
	if a.json {
		for i := range plans {
			a.line("table", fields(plans[i]), "")
		}
		return
	}
	rows := [][]string{{"TABLE", "TO", "ROWS", "SIZE", "BY", "COPIED AS", "PARTS", "CHANGES FOUND BY"}}
	for i := range plans {
		p := &plans[i]
		rows = append(rows, []string{
			p.Source.Display(), p.Target.Display(), "~" + units.Count(max(0, p.Rows)), units.Bytes(p.Bytes), p.Rule, p.Format, fmt.Sprint(p.Parts), p.Identity,
		})
	}
	table(a.stdout, rows)
	for i := range plans {
		p := &plans[i]
		if p.Why != "" {
			fmt.Fprintf(a.stdout, "  %s is copied as text: %s\n", p.Source.Display(), p.Why)
		}
		if p.Because != "" {
			fmt.Fprintf(a.stdout, "  %s, changes are found by %s: %s\n", p.Source.Display(), p.Identity, p.Because)
		}
	}
	fmt.Fprintln(a.stdout, "  an interrupted copy keeps the parts that are finished; changes after it come as text, whatever the copy's form")
}
