package main

import (
	"github.com/spf13/cobra"
)

func (a *app) followCommand() *cobra.Command {
	var f engineFlags
	var name string
	cmd := &cobra.Command{
		Use:   "follow",
		Short: "Keep one database in step with another, for ever",
		Long: `Copy a database into another, empty one, then apply every change, until interrupted. Nothing is
promoted. Interrupted, at whatever moment, the same command goes on where it was; "ficus cleanup"
removes what it left in the databases.

It prints {"type":"phase","phase":"following"} (with --json) once it has caught up.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			j, err := f.job(cmd, name)
			if err != nil {
				return err
			}
			return a.runJob(cmd.Context(), j, true, nil)
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&name, "name", "follow", "names what is made in the databases")
	f.registerDDL(cmd)
	f.registerApplyWorkers(cmd)
	cmd.Flags().BoolVar(&f.noReplicaIdentity, "no-replica-identity", false, "leave tables without a key as they are and move only their inserts")
	return cmd
}
