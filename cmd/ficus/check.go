package main

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
)

func (a *app) checkCommand() *cobra.Command {
	var f playbookFlags
	cmd := &cobra.Command{
		Use:   "check PLAYBOOK",
		Short: "Look for everything that would go wrong, and say what mends it",
		Long: `Look, without changing anything, for everything that would make the migration fail or surprise
later: settings, privileges, tables that need care, a target that is in use.

The exit status is 0 when the migration can start, 1 when a finding of severity error stands against it.`,
		Example: "  ficus check upgrade --source postgresql://app@old/shop --target postgresql://app@new/shop",
		Args:    cobra.MaximumNArgs(1),
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
			errors := a.findings(findings)
			a.line("result", map[string]any{"findings": len(findings), "errors": errors, "ok": errors == 0, "tables": len(j.plan.Forward.Mappings)},
				verdict(errors, len(findings), len(j.plan.Forward.Mappings)))
			if errors > 0 {
				return &statusError{status: exitNo}
			}
			return nil
		},
	}
	f.register(cmd)
	return cmd
}

// findings prints them and returns how many are errors.
func (a *app) findings(fs []migrate.Finding) int {
	errors := 0
	for _, f := range fs {
		if f.Severity == migrate.SeverityError {
			errors++
		}
		a.line("finding", fields(f), findingText(f))
	}
	return errors
}

// findingText is a finding for people, with what mends it.
func findingText(f migrate.Finding) string {
	text := fmt.Sprintf("%-7s  %s: ", f.Severity, f.Check)
	if f.Object != "" {
		text += f.Object + ": "
	}
	text += f.Message
	if f.Fix != "" {
		text += "\n         fix: " + f.Fix
	}
	return text
}

// refusal is the error that findings of severity error come to, and nil without any.
func refusal(fs []migrate.Finding) error {
	i := slices.IndexFunc(fs, func(f migrate.Finding) bool { return f.Severity == migrate.SeverityError })
	if i < 0 {
		return nil
	}
	err := fmt.Errorf("check %s: %s", fs[i].Check, fs[i].Message)
	if fs[i].Object != "" {
		err = fmt.Errorf("check %s: %s: %s", fs[i].Check, fs[i].Object, fs[i].Message)
	}
	return hint.Wrap(err, "%s", cmp.Or(fs[i].Fix, "ficus check shows everything that it found"))
}

func verdict(errors, findings, tables int) string {
	switch {
	case errors > 0:
		return fmt.Sprintf("not ready: %d of %d findings stand against it", errors, findings)
	case findings > 0:
		return fmt.Sprintf("ready: %d tables move; read the %d findings above", tables, findings)
	}
	return fmt.Sprintf("ready: %d tables move, nothing found", tables)
}
