package main

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
)

// client talks to the API of a running ficus.
func (a *app) client(token string) (*api.Client, error) {
	c, err := api.NewClient(a.apiURL, token)
	if err != nil {
		return nil, &statusError{exitUsage, err}
	}
	return c, nil
}

// tokenFlag registers --token: its environment variable keeps it out of process lists.
func tokenFlag(cmd *cobra.Command, token *string) {
	cmd.Flags().StringVar(token, "token", "", "API token (better: FICUS_TOKEN)")
}

func (a *app) verbCommands() []*cobra.Command {
	verbs := []struct {
		verb        migrate.Verb
		short, long string
	}{
		{migrate.Approve, "Open a manual gate", "Open the manual gate that a migration waits for."},
		{migrate.Pause, "Stop going on; the link stands still", "Stop going on. The link stands still too, while the owner's WAL goes on being kept."},
		{migrate.Resume, "Go on after a pause or a failure", "Go on after a pause, or try again what failed once its cause is mended."},
		{migrate.Promote, "Make the target the owner", "Go on to the promotion, from wherever the migration stopped."},
		{migrate.Rollback, "Make the source the owner again", "Go back: the same as a promotion, with the same proof, in the other direction."},
		{migrate.Routed, "Say that the clients were moved by hand", "Say that the clients were moved to the owner. Where no router leads them (router.type: none) ficus status asks for it after each change of owner."},
		{migrate.Slow, "Make copy and link stand back", "Make the copy, or the link that follows, stand still while something else needs the databases more. Changes go on being stored. A switch is never throttled."},
		{migrate.Unslow, "Let copy and link go on after throttle", "Let copy and link go on after throttle, unless the playbook's own conditions throttle them."},
		{migrate.Complete, "End a migration: stop the reverse link and clean up", "End a promoted migration. The old database stops following and stays fenced, or its tables are put away (complete.old_data); there is no way back afterwards. It is refused while the old database is behind, others wrote to it, or the rollback window is open."},
		{migrate.Cancel, "Give a migration up and clean up", "Give up before a promotion (or after a rollback): links, slots and triggers are removed, the tables on the target stay."},
	}
	cmds := make([]*cobra.Command, len(verbs))
	for i, v := range verbs {
		cmds[i] = a.verbCommand(v.verb, v.short, v.long)
	}
	return cmds
}

func (a *app) verbCommand(verb migrate.Verb, short, long string) *cobra.Command {
	var gate, token string
	var change amendFlags
	var wait, force bool
	cmd := &cobra.Command{
		Use:   string(verb) + " NAME",
		Short: short,
		Long:  long + "\n\nIt talks to the ficus run or ficus serve that drives the migration (--api).",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(token)
			if err != nil {
				return err
			}
			if err := change.send(cmd, c, args[0]); err != nil {
				return err
			}
			err = c.Do(cmd.Context(), args[0], migrate.Command{Verb: verb, Gate: gate, Actor: actor(), Force: force, Wait: wait})
			if err != nil {
				return err
			}
			s, err := c.Get(cmd.Context(), args[0])
			if err != nil {
				if verb == migrate.Cancel || verb == migrate.Complete { // run ends with its migration
					a.line("result", map[string]any{"name": args[0], "verb": verb}, fmt.Sprintf("%s: %s", args[0], verb))
					return nil
				}
				return err
			}
			said := fmt.Sprintf("%s: %s is on record, phase %s", s.Name, verb, s.Phase)
			if wait {
				said = fmt.Sprintf("%s: %s, the %s owns the data", s.Name, s.Phase, s.Owner)
			}
			a.line("result", map[string]any{"name": s.Name, "verb": verb, "phase": s.Phase, "owner": s.Owner, "epoch": s.Epoch, "waiting_for": s.WaitingFor}, said)
			return nil
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "return when it is done, not when it is on record")
	if verb == migrate.Approve {
		cmd.Flags().StringVar(&gate, "gate", migrate.GateApproval, "which gate")
	}
	if verb == migrate.Complete {
		cmd.Flags().BoolVar(&force, "force", false, "although the old database is behind, others wrote to it, or the rollback window is open")
	}
	if verb == migrate.Resume {
		change.register(cmd)
	}
	tokenFlag(cmd, &token)
	return cmd
}

// actor names the person for the journal.
func actor() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "cli"
}

func (a *app) statusCommand() *cobra.Command {
	var token string
	cmd := &cobra.Command{
		Use:   "status [NAME]",
		Short: "Show where migrations stand",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(token)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				s, err := c.Get(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if a.json {
					a.line("result", fields(s), "")
				} else {
					a.showStatus(s)
				}
				return nil
			}
			list, err := c.List(cmd.Context())
			if err != nil {
				return err
			}
			for _, s := range list {
				if a.json {
					a.line("status", fields(s), "")
				} else {
					a.showStatus(s)
				}
			}
			if a.json || len(list) == 0 {
				a.line("result", map[string]any{"migrations": len(list)}, "no migrations")
			}
			return nil
		},
	}
	tokenFlag(cmd, &token)
	return cmd
}

// showStatus prints all that matters at 3 a.m. on one screen.
func (a *app) showStatus(s migrate.Status) {
	rows := [][]string{
		{s.Name, summary(s)},
		{"  moves", s.Source + " -> " + s.Target},
		{"  since", fmt.Sprintf("%s (%s ago)", s.PhaseSince.Local().Format(time.DateTime), units.Duration(time.Since(s.PhaseSince)))},
	}
	if c := s.Copied; c != nil {
		rows = append(rows, []string{"  copied", fmt.Sprintf("%s rows, %s, in %s", units.Count(c.Rows), units.Bytes(c.Bytes), units.Duration(c.Elapsed))})
	}
	if t := s.Throttle; t != nil {
		rows = append(rows, []string{"  throttled", fmt.Sprintf("for %s, %s: %s", units.Duration(time.Since(t.Since)), t.Name, t.Reason)})
	}
	if e := s.ETA; e != nil {
		rows = append(rows, []string{"  " + e.Of + " ends", etaText(e)})
	}
	if r := s.Recopy; r != nil {
		rows = append(rows, []string{"  copies anew", recopyText(r)})
	}
	for _, b := range s.Blockers {
		rows = append(rows, []string{"  blocked by", b.String()})
	}
	for _, g := range s.Gates {
		state := "closed"
		if g.Open {
			state = "open"
		}
		rows = append(rows, []string{"  gate " + g.Name, fmt.Sprintf("%s: %s (wanted: %s)", state, g.Measured, g.Wanted)})
	}
	if c := s.Checked; c != nil {
		rows = append(rows, []string{"  comparing", fmt.Sprintf("%s of about %s rows, %s/s, %s left", units.Count(c.Done), units.Count(c.Total), units.Count(c.Rate), units.Duration(c.Left.Round(time.Second)))})
	}
	if p := s.ComparisonPaused; p != nil {
		rows = append(rows, []string{"  paused", fmt.Sprintf("comparisons, by %s, %s ago; they go on with: ficus verify %s --resume", p.By, units.Duration(time.Since(p.Since)), s.Name)})
	}
	if p := s.Proof; p != nil {
		rows = append(rows, []string{"  proof", fmt.Sprintf("%s rows at %s, %d differences, %s ago", units.Count(p.Rows), p.LSN, p.Differences, units.Duration(time.Since(p.Time)))})
	}
	if r := s.Rehearsal; r != nil {
		rows = append(rows, []string{"  rehearsal", fmt.Sprintf("%s ago: no writes for %s, clients waited p99 %s, longest %s", units.Duration(time.Since(r.At)), units.Duration(r.Blackout), units.Duration(r.Stall.P99), units.Duration(r.Stall.Max))})
	}
	for _, p := range s.Promotions {
		rows = append(rows, []string{"  promotion", fmt.Sprintf("epoch %d to the %s at %s: no writes for %s, clients waited p99 %s; %d touched keys compared in %s, %d differences", p.Epoch, p.To, p.At.Local().Format(time.TimeOnly),
			units.Duration(p.Blackout), units.Duration(p.Stall.P99), p.Proof.Keys, units.Duration(p.Proof.Elapsed), p.Proof.Differences)})
	}
	if s.Owner == migrate.Target {
		rows = append(rows, []string{"  rollback", verdictText(s.Rollback)})
	}
	if len(s.Unsettled) > 0 {
		rows = append(rows, []string{"  complete", "refused without --force: " + strings.Join(s.Unsettled, "; ")})
	}
	if len(s.Archived) > 0 {
		rows = append(rows, []string{"  old tables", "in " + strings.Join(s.Archived, ", ")})
	}
	rows = append(rows, trafficRows(s.Traffic)...)
	if s.Asks != "" {
		rows = append(rows, []string{"  to do", s.Asks})
	}
	for _, w := range s.Warnings {
		rows = append(rows, []string{"  warning", w})
	}
	if s.Error != "" {
		rows = append(rows, []string{"  error", s.Error})
	}
	if s.Hint != "" {
		rows = append(rows, []string{"  hint", s.Hint})
	}
	table(a.stdout, rows)
}

// etaText is a range, or why there is none.
func etaText(e *migrate.ETA) string {
	if e.Unknown != "" {
		return "unknown: " + e.Unknown
	}
	return fmt.Sprintf("in %s to %s, at the rates of the last minute", units.Duration(e.Low.Round(time.Second)), units.Duration(e.High.Round(time.Second)))
}

// verdictText is all that is known of the way back.
func verdictText(v migrate.RollbackVerdict) string {
	text := []string{"safe"}
	if !v.Safe {
		text[0] = "not safe, because " + strings.Join(v.Because, "; ")
	}
	if v.Behind > 0 {
		text = append(text, "the old database is "+units.Duration(v.Behind)+" behind")
	}
	if !v.Until.IsZero() {
		text = append(text, "kept for another "+units.Duration(time.Until(v.Until).Round(time.Second)))
	}
	switch {
	case v.Room > 0:
		text = append(text, fmt.Sprintf("%s of WAL kept for it, room for %s more", units.Bytes(v.Retained), units.Bytes(v.Room)))
	case v.Retained > 0:
		text = append(text, units.Bytes(v.Retained)+" of WAL kept for it")
	}
	return strings.Join(text, "; ")
}

func (a *app) watchCommand() *cobra.Command {
	var token, until string
	var after int64
	cmd := &cobra.Command{
		Use:   "watch NAME",
		Short: "Print a migration's events as they happen",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(token)
			if err != nil {
				return err
			}
			return a.watch(cmd.Context(), c, args[0], after, migrate.Phase(until))
		},
	}
	cmd.Flags().StringVar(&until, "until", "", "end when this phase is reached; status 3 when it cannot be any more, 4 when a person must approve")
	cmd.Flags().Int64Var(&after, "after", 0, "begin after the event with this number")
	tokenFlag(cmd, &token)
	return cmd
}

func (a *app) watch(ctx context.Context, c *api.Client, name string, after int64, until migrate.Phase) error {
	plain := &console{app: a, bars: nil, said: map[string]time.Time{}, status: func() migrate.Status { return migrate.Status{} }}
	for e, err := range c.Events(ctx, name, after) {
		if err != nil {
			return err
		}
		plain.event(e)
		if until == "" || e.Type != "phase" && e.Type != "gate" {
			continue
		}
		switch {
		case e.Phase == until:
			return nil
		case slices.Contains([]migrate.Phase{migrate.Failed, migrate.Cancelled, migrate.Completed}, e.Phase):
			return fmt.Errorf("%s: %s, it does not come to %s", name, e.Phase, until)
		}
		if s, err := c.Get(ctx, name); err == nil && s.WaitingFor == migrate.GateApproval {
			return &statusError{exitWaiting, hint.Wrap(fmt.Errorf("%s waits for an approval", name), "ficus approve %s", name)}
		}
	}
	if ctx.Err() != nil {
		return nil // the person has seen enough
	}
	return errors.New("the event stream ended")
}
