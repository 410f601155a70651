package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
)

func (a *app) planCommand() *cobra.Command {
	var f playbookFlags
	cmd := &cobra.Command{
		Use:   "plan PLAYBOOK",
		Short: "Print the steps that run would take, with their time budgets and the expected stall",
		Long: `Print what run would do: every table with the rules it moves by, how it is copied and how its
changes are followed, what is made in each database, the steps with their time budgets, and the
longest that a client may have to wait.

It reads both databases and changes nothing. It looks at the source for two seconds to tell what clients
would have to wait for.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			j, err := f.load(cmd, args)
			if err != nil {
				return err
			}
			if err := j.read(cmd.Context()); err != nil {
				return err
			}
			findings, err := j.check(cmd.Context())
			if err != nil {
				return err
			}
			tables, err := j.tablePlans(cmd.Context())
			if err != nil {
				return err
			}
			var expected *expectedStall
			if j.playbook.Until != string(migrate.Following) {
				if expected, err = j.measureStall(cmd.Context()); err != nil {
					return err
				}
			}
			a.printPlan(j, tables)
			if expected != nil {
				a.printStall(j, expected)
			}
			errors := a.findings(findings)
			settings := j.settings(false)
			steps := migrate.Steps(settings)
			stall := migrate.Stall(settings)
			a.line("result", map[string]any{"tables": len(j.plan.Forward.Mappings), "steps": len(steps), "stall_budget_ms": stall.Milliseconds(), "errors": errors, "reversible": len(j.plan.Lossy) == 0},
				fmt.Sprintf("clients wait no longer than %s at the promotion: when the budgets are used up, everything is undone", units.Duration(stall)))
			return nil
		},
	}
	f.register(cmd)
	return cmd
}

func (a *app) printPlan(j *job, tables []tablePlan) {
	a.line("plan", map[string]any{"name": j.playbook.Name, "source": j.source.String(), "target": j.target.String(), "until": j.playbook.Until},
		fmt.Sprintf("%s: %s\n  from %s\n  to   %s\n", j.playbook.Name, j.playbook.Description, j.source, j.target))
	a.printTables(tables)
	if a.json {
		for _, s := range migrate.Steps(j.settings(false)) {
			a.line("step", fields(s), "")
		}
		for _, sql := range j.objects() {
			a.line("sql", map[string]any{"sql": sql}, "")
		}
		for _, g := range j.guarantees() {
			a.line("guarantee", fields(g), "")
		}
		return
	}
	fmt.Fprintf(a.stdout, "\nmade in the databases, and removed at the end:\n  %s\n\n", strings.Join(j.objects(), "\n  "))
	steps := [][]string{{"PHASE", "STEP", "BUDGET", "DOES"}}
	for _, s := range migrate.Steps(j.settings(false)) {
		budget := "-"
		if s.Budget > 0 {
			budget = units.Duration(s.Budget)
		}
		if s.Waits {
			budget += " *"
		}
		steps = append(steps, []string{string(s.Phase), s.Name, budget, s.Does})
	}
	table(a.stdout, steps)
	fmt.Fprintf(a.stdout, "  * clients wait\n\n")
	a.printGuarantees(j)
}

// printGuarantees says what clients may rely on.
func (a *app) printGuarantees(j *job) {
	rows := [][]string{{"ROUTER " + j.playbook.Router.Type, "", ""}}
	for _, g := range j.guarantees() {
		given := "yes"
		if !g.Given {
			given = "no"
		}
		rows = append(rows, []string{"  " + g.Name, given, g.How})
	}
	table(a.stdout, rows)
	fmt.Fprintln(a.stdout)
}

func rule(where string, columns int) string {
	if where == "" {
		return fmt.Sprintf("%d columns", columns)
	}
	return fmt.Sprintf("%d columns where %s", columns, strings.Join(strings.Fields(where), " "))
}

// objects lists the SQL by which Ficus makes what it leaves in the databases until the end.
func (j *job) objects() []string {
	forward := j.linkName(migrate.Source)
	out := []string{
		"source, target: CREATE SCHEMA ficus  -- ownership, gate, signal, progress",
		"source: CREATE PUBLICATION " + forward + " FOR TABLE ... WITH (publish_via_partition_root)",
		"source: CREATE_REPLICATION_SLOT " + forward + " LOGICAL pgoutput",
		"source, target: CREATE TRIGGER ficus_fence BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON <each table>",
	}
	for _, n := range j.plan.Forward.Full {
		out = append(out, fmt.Sprintf("source: ALTER TABLE %s REPLICA IDENTITY FULL  -- put back at the end", n))
	}
	if len(j.plan.Lossy) == 0 && j.playbook.Until != string(migrate.Following) {
		reverse := j.linkName(migrate.Target)
		out = append(out, "target: CREATE PUBLICATION "+reverse+", CREATE_REPLICATION_SLOT "+reverse+"  -- at the promotion")
	}
	return out
}
