package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
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
	pause      bool
	resume     bool
}

func (a *app) verifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify [NAME]",
		Short: "Compare two databases row by row",
		Long: `With a NAME, prove that the two databases of a running migration are equal at one instant, while
both are in use: the process that drives it (--api) compares over the link that runs now, the
definitions of the tables and sequences, too. A comparison that runs can be paused and resumed, that of a
phase as well: after a minute it lets its snapshots go, and compares what is left at another instant.
With --repair --apply the rows of the follower are mended while applying stands still, and compared again.

With --source and --target, compare any two databases as they stand, with the definitions of their
tables and their sequences. Nothing holds them at one instant then; the report says so when the
source was written to meanwhile, and a difference that may be mere movement is no answer.

The exit status is 0 when they are equal, 1 when they differ, 3 when that could not be told.`,
		Example: `  ficus verify upgrade
  ficus verify upgrade --pause
  ficus verify upgrade --repair mend.sql --apply
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
			case (f.pause || f.resume) && (len(args) == 0 || f.pause && f.resume || f.repair != ""):
				return usageError(cmd, hint.Wrap(errors.New("--pause or --resume of what?"), "give the name of a migration whose comparison runs, and one of the two"))
			case len(args) == 1 && (f.pause || f.resume):
				return a.holdComparison(cmd.Context(), args[0], &f)
			case len(args) == 1 && (f.checkpoint != "" || f.values || f.samples != 0):
				return usageError(cmd, hint.Wrap(errors.New("--checkpoint, --show-values and --samples are for two databases"), "give --source and --target instead of a name"))
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
	fs.BoolVar(&f.pause, "pause", false, "with a NAME: pause its comparisons that run")
	fs.BoolVar(&f.resume, "resume", false, "with a NAME: let its comparisons go on")
	tokenFlag(cmd, &f.token)
	return cmd
}

// holdComparison pauses comparisons of a migration, or lets them go on.
func (a *app) holdComparison(ctx context.Context, name string, f *verifyFlags) error {
	c, err := a.client(f.token)
	if err != nil {
		return err
	}
	verb, said := migrate.PauseVerify, "its comparison is paused; it goes on with: ficus verify "+name+" --resume"
	if f.resume {
		verb, said = migrate.ResumeVerify, "its comparison goes on"
	}
	if err := c.Do(ctx, name, migrate.Command{Verb: verb, Actor: actor()}); err != nil {
		return err
	}
	a.line("result", map[string]any{"name": name, "verb": verb}, name+": "+said)
	return nil
}

func (a *app) verifyMigration(ctx context.Context, name string, f *verifyFlags) error {
	c, err := a.client(f.token)
	if err != nil {
		return err
	}
	p, err := a.comparing(ctx, c, name, api.VerifyRequest{RowsOnly: f.rowsOnly, Repair: f.repair != "", Apply: f.apply, Actor: actor()})
	if err != nil {
		return err
	}
	a.line("result", map[string]any{
		"name": name, "verdict": p.Verdict, "lsn": p.LSN, "since": p.Since, "tables": p.Tables, "rows": p.Rows, "differences": p.Differences,
		"seconds": p.Elapsed.Seconds(), "paused_ms": milliseconds(p.Paused), "samples": p.Samples, "digest": p.Digest,
		"definitions": p.Definitions, "sequences_behind": p.SequencesBehind, "repairs": p.Repairs, "mended": p.Mended,
	}, comparisonText(name, &p))
	if f.repair != "" && p.SQL != "" {
		if err := replaceFile(f.repair, []byte(p.SQL)); err != nil {
			return fmt.Errorf("write the SQL: %w", err)
		}
		a.say(fmt.Sprintf("%s: %d statements that mend the follower", f.repair, p.Repairs))
	}
	digest := p.Digest
	if p.Mended != nil {
		digest = p.Mended.Proof.Digest
		a.say(fmt.Sprintf("mended at %s: %d rows; compared again: %d differences (applying stood still for %s)",
			p.Mended.Proof.LSN, p.Mended.Rows, p.Mended.Proof.Differences, units.Duration(p.Mended.Proof.Paused)))
	}
	if len(f.evidence) > 0 {
		if err := a.fetchEvidence(ctx, c, name, digest, f.evidence); err != nil {
			return err
		}
	}
	switch {
	case p.Mended != nil && p.Mended.Proof.Differences == 0 && len(p.Mended.Proof.Uncovered) == 0 && p.Definitions == 0, p.Verdict == string(verify.Equal):
		return nil
	case p.Verdict == string(verify.Unknown):
		return &statusError{status: exitFailed}
	}
	return &statusError{status: exitNo}
}

// comparisonText is what people read of a comparison.
func comparisonText(name string, p *api.Comparison) string {
	at := p.LSN.String()
	if p.Since != 0 {
		at = fmt.Sprintf("instants from %s to %s", p.Since, p.LSN)
	}
	text := fmt.Sprintf("%s: %d tables, %s rows compared at %s in %s (applying paused for %s): %d differences",
		name, p.Tables, units.Count(p.Rows), at, units.Duration(p.Elapsed), units.Duration(p.Paused), p.Differences)
	if p.Definitions > 0 {
		text += fmt.Sprintf(", %d differences of definitions that matter", p.Definitions)
	}
	if p.SequencesBehind > 0 {
		text += fmt.Sprintf("; %d sequences are behind, which move now and then", p.SequencesBehind)
	}
	return text
}

// comparing asks for a comparison and shows how far it is.
func (a *app) comparing(ctx context.Context, c *api.Client, name string, r api.VerifyRequest) (out api.Comparison, err error) {
	if !a.json && !isTerminal(a.stderr) {
		return c.Verify(ctx, name, r)
	}
	g, ctx := errgroup.WithContext(ctx)
	watching, done := context.WithCancel(ctx)
	g.Go(func() (err error) {
		defer done()
		out, err = c.Verify(ctx, name, r)
		return err
	})
	g.Go(func() error {
		for backoff.Sleep(watching, time.Second) == nil {
			if s, err := c.Get(watching, name); err == nil && s.Checked != nil { // else the other one says why
				a.showPace(s.Checked.Done, s.Checked.Total, float64(s.Checked.Rate), s.Checked.Left, s.ComparisonPaused)
			}
		}
		return nil
	})
	return out, g.Wait()
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
