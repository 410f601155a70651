package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ficus-migrate/ficus/api"
)

// amendFlags name a playbook that was changed while its migration stands in front of DDL.
type amendFlags struct {
	file   string
	params []string
}

func (f *amendFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.file, "file", "f", "", "playbook with changed rules for the table whose DDL the migration stands in front of")
	cmd.Flags().StringArrayVarP(&f.params, "param", "p", nil, "parameter of that playbook that is not as at the start, key=value (repeatable)")
}

// send hands the changed playbook over, if there is one.
func (f *amendFlags) send(cmd *cobra.Command, c *api.Client, name string) error {
	if f.file == "" {
		return nil
	}
	text, err := os.ReadFile(f.file)
	if err != nil {
		return &statusError{exitUsage, fmt.Errorf("read the playbook: %w", err)}
	}
	params := map[string]string{}
	for _, p := range f.params {
		key, value, ok := strings.Cut(p, "=")
		if !ok {
			return usageError(cmd, fmt.Errorf("-p %q: want key=value", p))
		}
		params[key] = value
	}
	return c.Amend(cmd.Context(), name, api.AmendRequest{YAML: string(text), Params: params, Actor: actor()})
}
