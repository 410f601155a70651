package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ficus-migrate/ficus/playbooks"
)

func (a *app) playbooksCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "playbooks",
		Short: "List, show and validate playbooks",
		Args:  cobra.ArbitraryArgs,
		RunE:  runGroup,
	}
	cmd.AddCommand(a.playbooksList(), a.playbooksShow(), a.playbooksValidate(), a.playbooksSchema())
	return cmd
}

func (a *app) playbooksList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the embedded playbooks",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			rows := [][]string{{"NAME", "DOES"}}
			for _, name := range playbooks.Recipes() {
				data, err := playbooks.Recipe(name)
				if err != nil {
					return err
				}
				p, err := playbooks.Parse(name, data, map[string]string{"source": "source", "target": "target"})
				if err != nil {
					return err
				}
				if a.json {
					a.line("playbook", map[string]any{"name": name, "description": p.Description}, "")
				}
				rows = append(rows, []string{name, p.Description})
			}
			if a.json {
				a.line("result", map[string]any{"playbooks": len(rows) - 1}, "")
			} else {
				table(a.stdout, rows)
			}
			return nil
		},
	}
}

func (a *app) playbooksShow() *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Print an embedded playbook, to read or to copy",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.FixedCompletions(playbooks.Recipes(), cobra.ShellCompDirectiveNoFileComp),
		RunE: func(_ *cobra.Command, args []string) error {
			data, err := playbooks.Recipe(args[0])
			if err != nil {
				return &statusError{exitUsage, err}
			}
			a.line("result", map[string]any{"name": args[0], "yaml": string(data)}, string(data[:len(data)-1]))
			return nil
		},
	}
}

func (a *app) playbooksValidate() *cobra.Command {
	var f playbookFlags
	cmd := &cobra.Command{
		Use:   "validate PLAYBOOK",
		Short: "Check a playbook without connecting to anything",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			j, err := f.load(cmd, args)
			if err != nil {
				return err
			}
			a.line("result", map[string]any{"name": j.playbook.Name, "ok": true}, fmt.Sprintf("%s: valid", j.playbook.Name))
			return nil
		},
	}
	f.register(cmd)
	return cmd
}

func (a *app) playbooksSchema() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of a playbook, for editors",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			data, err := playbooks.Schema()
			if err != nil {
				return err
			}
			if output == "" {
				a.line("result", map[string]any{"schema": json.RawMessage(data)}, strings.TrimSuffix(string(data), "\n"))
				return nil
			}
			if err := os.WriteFile(output, data, 0o644); err != nil { //nolint:gosec // a published document
				return err
			}
			a.line("result", map[string]any{"file": output}, "written to "+output)
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write (default: standard output)")
	return cmd
}
