package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/verify"
)

func (a *app) verifyCommand() *cobra.Command {
	var f engineFlags
	var token string
	var values bool
	cmd := &cobra.Command{
		Use:   "verify [NAME]",
		Short: "Compare two databases row by row",
		Long: `With a NAME, prove that the two databases of a running migration are equal at one instant, while
both are in use: the process that drives it (--api) compares over the link that runs now.

With --source and --target, compare any two databases as they stand. Nothing holds them at one
instant then; the report says so when the source was written to meanwhile.

The exit status is 0 when they are equal, 1 when they differ, 3 when that could not be told.`,
		Example: `  ficus verify upgrade
  ficus verify --source postgresql://app@old/shop --target postgresql://app@new/shop`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch given := f.source != "" || f.target != "" || f.file != ""; {
			case len(args) == 1 && given:
				return usageError(cmd, errors.New("give a migration's name, or two databases, not both"))
			case len(args) == 1:
				return a.verifyMigration(cmd.Context(), args[0], token)
			case !given:
				return usageError(cmd, hint.Wrap(errors.New("verify what?"), "give a migration's name, or --source and --target"))
			}
			j, err := f.job(cmd, "verify")
			if err != nil {
				return err
			}
			return a.verifyDatabases(cmd.Context(), j, values)
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&values, "show-values", false, "print the differing values; they may be anybody's private data")
	tokenFlag(cmd, &token)
	return cmd
}

func (a *app) verifyMigration(ctx context.Context, name, token string) error {
	c, err := a.client(token)
	if err != nil {
		return err
	}
	p, err := c.Verify(ctx, name)
	if err != nil {
		return err
	}
	a.line("result", map[string]any{"name": name, "lsn": p.LSN, "tables": p.Tables, "rows": p.Rows, "differences": p.Differences, "seconds": p.Elapsed.Seconds(), "paused_ms": milliseconds(p.Paused), "samples": p.Samples},
		fmt.Sprintf("%s: %d tables, %s rows compared at %s in %s (applying paused for %s): %d differences", name, p.Tables, units.Count(p.Rows), p.LSN, units.Duration(p.Elapsed), units.Duration(p.Paused), p.Differences))
	if p.Differences > 0 {
		return &statusError{status: exitNo}
	}
	return nil
}

func (a *app) verifyDatabases(ctx context.Context, j *job, values bool) error {
	log, err := a.log()
	if err != nil {
		return err
	}
	if err := j.read(ctx); err != nil {
		return err
	}
	if len(j.plan.Forward.Mappings) == 0 {
		return hint.Wrap(errors.New("there is no table to compare"), "look at --include and --exclude")
	}
	report, err := verify.Run(ctx, verify.Config{
		Source: j.source, Target: j.target, Mappings: j.plan.Forward.Mappings, Workers: j.playbook.Copy.Workers, ShowValues: values, Log: log,
	})
	if err != nil {
		return err
	}
	if a.json {
		for i := range report.Tables {
			a.line("table", fields(report.Tables[i]), "")
		}
		a.line("result", map[string]any{
			"tables": len(report.Tables), "rows": report.Rows, "differences": report.Differences, "seconds": report.Elapsed.Seconds(),
			"lsn": report.LSN, "same_instant": report.SameInstant,
		}, "")
	} else if err := report.WriteText(a.stdout); err != nil {
		return err
	}
	if report.Differences > 0 {
		return &statusError{status: exitNo}
	}
	return nil
}
