package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/playbooks"
)

// playbookFlags choose a playbook and fill it in.
type playbookFlags struct {
	name, source, target string
	file                 string
	params               []string
	noReplicaIdentity    bool
	ddl                  string
	until                string
	gatewayListen        string
	users                string
	workers              int
	applyWorkers         int
}

func (f *playbookFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.name, "name", "", "name of the migration (default: the playbook's)")
	fs.StringVar(&f.source, "source", "", "connection string of the database to move")
	fs.StringVar(&f.target, "target", "", "connection string of the database to move to")
	fs.StringVarP(&f.file, "file", "f", "", "playbook of your own")
	fs.StringArrayVarP(&f.params, "param", "p", nil, "parameter of the playbook, key=value (repeatable)")
	fs.BoolVar(&f.noReplicaIdentity, "no-replica-identity", false, "leave tables without a key as they are and move only their inserts")
	f.registerDDL(cmd)
	f.registerApplyWorkers(cmd)
	fs.StringVar(&f.until, "until", "", "phase to stop at: following, verifying, reads-switched or promoted")
	fs.StringVar(&f.gatewayListen, "gateway-listen", "", "address of the gateway's read-write door (default 127.0.0.1:7432; the read-only door is the next port)")
	fs.StringVar(&f.users, "users", "", "file with the users that the gateway lets in")
	fs.IntVar(&f.workers, "workers", 0, "tables or chunks copied at a time (default: as many as the smaller server has cores)")
	_ = cmd.RegisterFlagCompletionFunc("until", cobra.FixedCompletions(stopPhases(), cobra.ShellCompDirectiveNoFileComp)) // fails for unknown flags only
	cmd.ValidArgsFunction = cobra.FixedCompletions(playbooks.Recipes(), cobra.ShellCompDirectiveNoFileComp)
}

// registerDDL registers --ddl.
func (f *playbookFlags) registerDDL(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.ddl, "ddl", "", "what DDL on the source does: stop the link, or, where it is safe, follow it: stop or safe (default: the playbook's)")
	_ = cmd.RegisterFlagCompletionFunc("ddl", cobra.FixedCompletions([]string{"stop", "safe"}, cobra.ShellCompDirectiveNoFileComp)) // fails for unknown flags only
}

// registerApplyWorkers registers --apply-workers.
func (f *playbookFlags) registerApplyWorkers(cmd *cobra.Command) {
	cmd.Flags().IntVar(&f.applyWorkers, "apply-workers", 0, "sessions over which a backlog is written at a time (default: the playbook's, or 1)")
}

// chooseDDL lets --ddl win over the playbook's key.
func (f *playbookFlags) chooseDDL(p *playbooks.Playbook) error {
	switch f.ddl {
	case "":
	case "stop", "safe":
		p.Follow.DDL = f.ddl
	default:
		return &statusError{exitUsage, hint.Suggest(fmt.Errorf("--ddl %q: want stop or safe", f.ddl), f.ddl, []string{"stop", "safe"})}
	}
	return nil
}

// chooseApplyWorkers lets --apply-workers win over the playbook's key.
func (f *playbookFlags) chooseApplyWorkers(p *playbooks.Playbook) error {
	if f.applyWorkers < 0 || f.applyWorkers > playbooks.MostWorkers {
		return &statusError{exitUsage, fmt.Errorf("--apply-workers %d: want 1 to %d", f.applyWorkers, playbooks.MostWorkers)}
	}
	p.Follow.Workers = cmp.Or(f.applyWorkers, p.Follow.Workers)
	return nil
}

// load reads the playbook named by the arguments or by --file.
func (f *playbookFlags) load(cmd *cobra.Command, args []string) (*job, error) {
	var recipe, file string
	var data []byte
	var err error
	switch {
	case f.file != "":
		file, recipe = f.file, strings.TrimSuffix(f.file, ".yaml")
		if data, err = os.ReadFile(f.file); err != nil {
			return nil, &statusError{exitUsage, fmt.Errorf("read the playbook: %w", err)}
		}
		if len(args) == 1 {
			recipe = args[0]
		}
	case len(args) == 1:
		file, recipe = args[0], args[0]
		if data, err = playbooks.Recipe(args[0]); err != nil {
			return nil, &statusError{exitUsage, err}
		}
	default:
		return nil, usageError(cmd, hint.Wrap(errors.New("which playbook?"),
			"embedded are: %s; a playbook of your own is given with -f FILE", strings.Join(playbooks.Recipes(), ", ")))
	}

	params := map[string]string{}
	for _, p := range f.params {
		key, value, ok := strings.Cut(p, "=")
		if !ok {
			return nil, usageError(cmd, fmt.Errorf("-p %q: want key=value", p))
		}
		params[key] = value
	}
	for key, value := range map[string]string{"name": f.name, "source": f.source, "target": f.target} {
		if value != "" {
			params[key] = value
		}
	}
	p, err := playbooks.Parse(file, data, params)
	if err != nil {
		return nil, &statusError{exitUsage, err}
	}
	if f.until != "" {
		if !slices.Contains(stopPhases(), f.until) {
			return nil, &statusError{exitUsage, hint.Suggest(fmt.Errorf("--until %q is no phase to stop at", f.until), f.until, stopPhases())}
		}
		p.Until = f.until
	}
	if err := f.chooseDDL(p); err != nil {
		return nil, err
	}
	p.Follow.NoReplicaIdentity = p.Follow.NoReplicaIdentity || f.noReplicaIdentity
	p.Router.Listen = cmp.Or(f.gatewayListen, p.Router.Listen)
	p.Router.Users = cmp.Or(f.users, p.Router.Users)
	p.Copy.Workers = cmp.Or(f.workers, p.Copy.Workers)
	if err := f.chooseApplyWorkers(p); err != nil {
		return nil, err
	}
	j, err := newJob(p, recipe)
	if err == nil {
		j.params = params
	}
	return j, err
}
