package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/buffer"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/units"
)

func (a *app) commandsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "commands",
		Short: "Look into the log of commands",
		Long: `Look into the log of commands that clients sent to a migration's HTTP door (router.type: http), and mend it.

It talks to the ficus run or ficus serve that drives the migration (--api).`,
		Args: cobra.ArbitraryArgs,
		RunE: runGroup,
	}
	cmd.AddCommand(a.commandsListCommand(), a.commandsShowCommand(),
		a.commandsChangeCommand("requeue", "Send dead commands again, in their place", (*api.Client).RequeueCommand),
		a.commandsChangeCommand("drop", "Give commands up that are dead or wait", (*api.Client).DropCommand))
	return cmd
}

func (a *app) commandsListCommand() *cobra.Command {
	var r api.ListCommandsRequest
	var token string
	cmd := &cobra.Command{
		Use:   "list NAME",
		Short: "List the commands that are not over",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(token)
			if err != nil {
				return err
			}
			answer, err := c.ListCommands(cmd.Context(), args[0], r)
			if err == nil && !answer.Taken {
				err = noCommands(args[0])
			}
			if err != nil {
				return err
			}
			list := answer.Commands
			if a.json {
				for _, e := range list {
					a.line("command", fields(e), "")
				}
				a.line("result", map[string]any{"commands": len(list)}, "")
				return nil
			}
			rows := [][]string{{"SEQ", "KEY", "ORDER", "TYPE", "STATE", "AGE", "ATTEMPTS", "LAST ERROR"}}
			for _, e := range list {
				rows = append(rows, []string{
					strconv.FormatInt(e.Seq, 10), e.Key, e.Order, e.Type, e.State,
					units.Duration(time.Since(e.Accepted).Round(time.Second)), strconv.Itoa(e.Attempts), e.Error,
				})
			}
			table(a.stdout, rows)
			return nil
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&r.State, "state", "", "waiting, sending, dead, answered, dropped or all (default: the first three)")
	fs.StringVar(&r.Order, "order", "", "only those with this ordering key")
	fs.StringVar(&r.Type, "type", "", "only those of this type")
	fs.Uint64Var(&r.After, "after", 0, "only those with a higher number")
	fs.IntVar(&r.Limit, "limit", 100, "how many, at most 1000")
	tokenFlag(cmd, &token)
	return cmd
}

func (a *app) commandsShowCommand() *cobra.Command {
	var token string
	var payload bool
	cmd := &cobra.Command{
		Use:   "show NAME KEY",
		Short: "Show one command",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(token)
			if err != nil {
				return err
			}
			e, err := c.ShowCommand(cmd.Context(), args[0], args[1], payload)
			if err != nil {
				return err
			}
			if a.json {
				a.line("result", fields(e), "")
				return nil
			}
			rows := [][]string{
				{"key", e.Key},
				{"type", e.Type},
				{"order", e.Order},
				{"state", e.State},
				{"accepted", e.Accepted.Local().Format(time.DateTime)},
				{"attempts", strconv.Itoa(e.Attempts)},
			}
			if e.Error != "" {
				rows = append(rows, []string{"last error", e.Error})
			}
			if e.Status != 0 {
				rows = append(rows, []string{"answer", strconv.Itoa(e.Status)})
			}
			if !e.Over.IsZero() {
				rows = append(rows, []string{"over", e.Over.Local().Format(time.DateTime)})
			}
			if e.Payload != "" {
				rows = append(rows, []string{"payload", e.Payload})
			}
			table(a.stdout, rows)
			return nil
		},
	}
	cmd.Flags().BoolVar(&payload, "payload", false, "show what it carries, too; until it is over (needs role operator)")
	tokenFlag(cmd, &token)
	return cmd
}

func (a *app) commandsChangeCommand(verb, short string, change func(*api.Client, context.Context, string, string) error) *cobra.Command {
	var token string
	var dead bool
	cmd := &cobra.Command{
		Use:   verb + " NAME [KEY...]",
		Short: short,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, keys := args[0], args[1:]
			if (len(keys) == 0) != dead {
				return usageError(cmd, errors.New("give keys, or --dead for all that are dead"))
			}
			c, err := a.client(token)
			if err != nil {
				return err
			}
			if dead {
				list, err := c.ListCommands(cmd.Context(), name, api.ListCommandsRequest{State: string(buffer.Dead), Limit: 1000})
				if err != nil {
					return err
				}
				for _, e := range list.Commands {
					keys = append(keys, e.Key)
				}
			}
			for _, key := range keys {
				if err := change(c, cmd.Context(), name, key); err != nil {
					return err
				}
			}
			a.line("result", map[string]any{"name": name, "verb": verb, "commands": len(keys)}, fmt.Sprintf("%s: %s of %d commands is done", name, verb, len(keys)))
			return nil
		},
	}
	cmd.Flags().BoolVar(&dead, "dead", false, "all that are dead, up to 1000")
	tokenFlag(cmd, &token)
	return cmd
}

// commands returns the command log of a migration.
func (m *manager) commands(name string) (*buffer.Commands, error) {
	e, err := m.engine(name)
	if err != nil {
		return nil, err
	}
	if e.door == nil || e.door.Commands() == nil {
		return nil, noCommands(name)
	}
	return e.door.Commands(), nil
}

func noCommands(name string) error {
	return hint.Wrap(fmt.Errorf("commands of %s: %w", name, api.ErrNoCommands), "router.type: http with router.http.commands takes them")
}

// ListCommands implements [api.Commander].
func (m *manager) ListCommands(name string, r api.ListCommandsRequest) ([]api.CommandEntry, error) {
	log, err := m.commands(name)
	if err != nil {
		return nil, err
	}
	f := buffer.Filter{Order: r.Order, Type: r.Type, After: r.After, Limit: r.Limit}
	switch {
	case r.State == "all":
		f.States = buffer.States()
	case r.State == "":
	case slices.Contains(buffer.States(), buffer.State(r.State)):
		f.States = []buffer.State{buffer.State(r.State)}
	default:
		return nil, hint.Suggest(fmt.Errorf("no state %q", r.State), r.State, []string{"waiting", "sending", "dead", "answered", "dropped", "all"})
	}
	found, err := log.List(f)
	out := make([]api.CommandEntry, len(found))
	for i, e := range found {
		out[i] = commandEntry(e)
	}
	return out, err
}

func commandEntry(e buffer.Entry) api.CommandEntry {
	out := api.CommandEntry{
		Seq: int64(e.Seq), Key: e.Key, Order: e.Order, Type: e.Type, State: string(e.State), Attempts: e.Attempts, Error: e.Error, Accepted: e.Accepted, Over: e.Over,
	}
	if e.Answer != nil {
		out.Status = e.Answer.Status
	}
	return out
}

// ShowCommand implements [api.Commander].
func (m *manager) ShowCommand(ctx context.Context, name, key string, payload bool) (api.CommandEntry, error) {
	log, err := m.commands(name)
	if err != nil {
		return api.CommandEntry{}, err
	}
	e, err := log.Look(ctx, key)
	if err != nil {
		return api.CommandEntry{}, commandError(err)
	}
	out := commandEntry(e)
	if payload && !e.State.Over() {
		c, err := log.Command(ctx, key)
		if err != nil && !errors.Is(err, buffer.ErrUnknown) { // it may be over since we looked
			return out, err
		}
		out.Payload = string(c.Payload)
	}
	return out, nil
}

// RequeueCommand implements [api.Commander].
func (m *manager) RequeueCommand(ctx context.Context, name, key string) error {
	log, err := m.commands(name)
	if err != nil {
		return err
	}
	return commandError(log.Requeue(ctx, key))
}

// DropCommand implements [api.Commander].
func (m *manager) DropCommand(ctx context.Context, name, key string) error {
	log, err := m.commands(name)
	if err != nil {
		return err
	}
	return commandError(log.Drop(ctx, key))
}

// commandError gives the log's errors the API's names.
func commandError(err error) error {
	switch {
	case errors.Is(err, buffer.ErrUnknown):
		return hint.Wrap(fmt.Errorf("%w: %w", err, api.ErrNoCommand), "answers are kept for a limited time: router.http.commands.keep")
	case errors.Is(err, buffer.ErrState):
		return fmt.Errorf("%w: %w", err, api.ErrCommandState)
	}
	return err
}

var _ api.Commander = (*manager)(nil)
