package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/verify"
)

// verifyFlags are of "ficus verify" alone.
type verifyFlags struct {
	engineFlags
	token      string
	values     bool
	rowsOnly   bool
	samples    int
	evidence   []string
	check      string
	checkpoint string
	repair     string
	apply      bool
}

func (a *app) verifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify [NAME]",
		Short: "Compare two databases row by row",
		Long: `With a NAME, prove that the two databases of a running migration are equal at one instant, while
both are in use: the process that drives it (--api) compares over the link that runs now.

With --source and --target, compare any two databases as they stand, with the definitions of their
tables and their sequences. Nothing holds them at one instant then; the report says so when the
source was written to meanwhile, and a difference that may be mere movement is no answer.

The exit status is 0 when they are equal, 1 when they differ, 3 when that could not be told.`,
		Example: `  ficus verify upgrade
  ficus verify --source postgresql://app@old/shop --target postgresql://app@new/shop --evidence proof.html
  ficus verify --source postgresql://app@old/shop --target postgresql://app@new/shop --repair mend.sql
  ficus verify --check proof.html`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch given := f.source != "" || f.target != "" || f.file != ""; {
			case f.check != "":
				return a.checkEvidence(f.check)
			case len(args) == 1 && given:
				return usageError(cmd, errors.New("give a migration's name, or two databases, not both"))
			case f.apply && f.repair == "":
				return usageError(cmd, hint.Wrap(errors.New("--apply without --repair"), "--repair FILE says where to keep the SQL that is applied"))
			case len(args) == 1 && (f.repair != "" || f.checkpoint != ""):
				return usageError(cmd, hint.Wrap(errors.New("--repair and --checkpoint are for two databases"), "give --source and --target instead of a name"))
			case len(args) == 1:
				return a.verifyMigration(cmd.Context(), args[0], &f)
			case !given:
				return usageError(cmd, hint.Wrap(errors.New("verify what?"), "give a migration's name, or --source and --target"))
			}
			j, err := f.job(cmd, "verify")
			if err != nil {
				return err
			}
			return a.verifyDatabases(cmd.Context(), j, &f)
		},
	}
	f.register(cmd)
	fs := cmd.Flags()
	fs.BoolVar(&f.values, "show-values", false, "print the differing values; they may be anybody's private data")
	fs.BoolVar(&f.rowsOnly, "rows-only", false, "compare neither the definitions of tables nor sequences")
	fs.IntVar(&f.samples, "samples", 0, "differing rows of each table that are shown (default 10)")
	fs.StringArrayVar(&f.evidence, "evidence", nil, "file for the sealed report: .html, .json or .txt (repeatable)")
	fs.StringVar(&f.check, "check", "", "tell whether a report kept by --evidence (.html or .json) was altered")
	fs.StringVar(&f.checkpoint, "checkpoint", "", "file that makes the comparison one that can be interrupted: the same command goes on with it")
	fs.StringVar(&f.repair, "repair", "", "file for the SQL that makes the target's rows what the source's are; it holds values of rows")
	fs.BoolVar(&f.apply, "apply", false, "with --repair: run the SQL on the target, then compare its rows again")
	tokenFlag(cmd, &f.token)
	return cmd
}

func (a *app) verifyMigration(ctx context.Context, name string, f *verifyFlags) error {
	c, err := a.client(f.token)
	if err != nil {
		return err
	}
	p, err := c.Verify(ctx, name)
	if err != nil {
		return err
	}
	a.line("result", map[string]any{"name": name, "lsn": p.LSN, "tables": p.Tables, "rows": p.Rows, "differences": p.Differences, "seconds": p.Elapsed.Seconds(), "paused_ms": milliseconds(p.Paused), "samples": p.Samples, "digest": p.Digest},
		fmt.Sprintf("%s: %d tables, %s rows compared at %s in %s (applying paused for %s): %d differences", name, p.Tables, units.Count(p.Rows), p.LSN, units.Duration(p.Elapsed), units.Duration(p.Paused), p.Differences))
	if len(f.evidence) > 0 {
		if err := a.fetchEvidence(ctx, c, name, p.Digest, f.evidence); err != nil {
			return err
		}
	}
	if p.Differences > 0 {
		return &statusError{status: exitNo}
	}
	return nil
}

// fetchEvidence writes the report of a comparison that the migration's process made.
func (a *app) fetchEvidence(ctx context.Context, c *api.Client, name, digest string, files []string) error {
	data, err := c.Evidence(ctx, name)
	if err != nil {
		return err
	}
	report := new(verify.Report)
	if err := json.Unmarshal(data, report); err != nil {
		return fmt.Errorf("read the evidence: %w", err)
	}
	if report.Digest != digest {
		return hint.Wrap(errors.New("the evidence is of another comparison, which has ended meanwhile"), "compare again")
	}
	for _, file := range files {
		if err := writeEvidence(report, file); err != nil {
			return err
		}
	}
	return nil
}
