package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
)

func (a *app) recoverCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Find the state of a migration from its two databases alone",
		Long: `Find out, from nothing but the two databases, where a migration stands whose process, machine or data
directory is gone: who owns the data, whether anybody may write, what drives it, how far the links are, and
what "ficus run" will do next: go on, undo a change of owner or finish it. Nothing is changed.

A database that does not answer is said so, with what the other one proves by itself.

The exit status is 0 when both databases told their state, 1 when they know of no migration, 3 otherwise.`,
		Example: "  ficus recover --source postgresql://app@old/shop --target postgresql://app@new/shop",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, t := cmd.Flag("source").Value.String(), cmd.Flag("target").Value.String()
			if s == "" || t == "" {
				return usageError(cmd, errors.New("which databases? give --source and --target"))
			}
			source, err := pg.Parse(s)
			if err != nil {
				return &statusError{exitUsage, fmt.Errorf("source: %w", err)}
			}
			target, err := pg.Parse(t)
			if err != nil {
				return &statusError{exitUsage, fmt.Errorf("target: %w", err)}
			}
			return a.recover(cmd.Context(), source, target)
		},
	}
	cmd.Flags().String("source", "", "connection string of the database that is moved")
	cmd.Flags().String("target", "", "connection string of the database that it is moved to")
	return cmd
}

func (a *app) recover(ctx context.Context, source, target pg.DSN) error {
	w := &wreck{sides: map[migrate.Side]*survivor{
		migrate.Source: lookAt(ctx, source, migrate.Source),
		migrate.Target: lookAt(ctx, target, migrate.Target),
	}}
	defer w.close(ctx)
	if err := w.mixedUp(); err != nil {
		return err
	}
	r := migrate.Recover(w.sides[migrate.Source].row(), w.sides[migrate.Target].row())
	w.judgeLink(ctx, r)
	if !a.json {
		a.showWreck(w, r)
	}
	for _, side := range []migrate.Side{migrate.Source, migrate.Target} {
		if a.json {
			a.line("side", fields(w.sides[side]), "")
		}
	}
	result := fields(r)
	result["will"], result["link"] = w.will(r), w.link
	switch {
	case r.Course == migrate.Waits, r.Course == migrate.Refuses:
		a.facts = result
		return hint.Wrap(errors.New(r.Why), "%s", w.advice(r))
	case r.Course == migrate.Begins && r.Migration == "":
		a.line("result", result, r.Why)
		return &statusError{status: exitNo}
	}
	a.line("result", result, "next: "+w.advice(r))
	return nil
}

// showWreck prints what both databases tell.
func (a *app) showWreck(w *wreck, r migrate.Recovery) {
	name := r.Migration
	if name == "" {
		name = "no migration"
	}
	rows := [][]string{{name, r.Why}}
	for _, side := range []migrate.Side{migrate.Source, migrate.Target} {
		for i, text := range w.sides[side].words() {
			label := ""
			if i == 0 {
				label = "  " + string(side)
			}
			rows = append(rows, []string{label, text})
		}
	}
	if w.link != "" {
		rows = append(rows, []string{"  link", w.link})
	}
	rows = append(rows, []string{"  ficus run", w.will(r)})
	table(a.stdout, rows)
}

// will says what the engine does, in words.
func (w *wreck) will(r migrate.Recovery) string {
	rest := "keeps the old database in step, until rollback or complete"
	if r.Owner == migrate.Source {
		rest = "follows the source; proofs and approvals are made anew"
		if w.sides[migrate.Source].Epoch > 1 {
			rest = "follows the source, and promotes when it is told to"
		}
	}
	if w.linkErr != nil && r.Owner == migrate.Target {
		rest = "stays promoted without a way back, until complete"
	}
	switch r.Course {
	case migrate.Begins:
		return "begins: looks for what would go wrong, creates the tables, copies"
	case migrate.GoesOn:
		if w.linkErr != nil && r.Owner == migrate.Source {
			return "refuses to go on with what was copied: " + oneLine(w.linkErr)
		}
		return rest
	case migrate.Undoes:
		return fmt.Sprintf("makes sure that nothing in flight can change the owner any more, opens the %s again, then %s", r.Owner, rest)
	case migrate.Finishes:
		return fmt.Sprintf("finishes: opens the %s, leads clients there, tells the %s, then %s", r.Owner, r.Owner.Other(), rest)
	case migrate.Ends:
		return "notes that the migration is completed, and ends"
	case migrate.Waits:
		return "waits for the database that does not answer, and changes nothing before"
	case migrate.Refuses:
	}
	return "refuses"
}

// advice is what a person does next.
func (w *wreck) advice(r migrate.Recovery) string {
	again := fmt.Sprintf("ficus run with the playbook that it began with, --name %s, both connection strings and an empty --data-dir", r.Migration)
	switch r.Course {
	case migrate.Waits:
		if r.Writes {
			return fmt.Sprintf("clients may go on with the %s; bring the other database up, then: %s", r.Owner, again)
		}
		return "bring it up, then look again: ficus recover --source ... --target ..."
	case migrate.Refuses:
		return "look at both databases before anything writes there; ficus cleanup --source ... --target ... removes what Ficus left"
	case migrate.Ends:
		return "nothing is left to do; ficus cleanup --source ... frees the old database for other uses"
	case migrate.Begins, migrate.GoesOn, migrate.Undoes, migrate.Finishes:
	}
	for _, side := range []migrate.Side{migrate.Source, migrate.Target} {
		if by := w.sides[side].Driver; by != "" {
			return fmt.Sprintf("a process drives it (%s): ask that one (ficus status %s --api ...), or stop it first, then: %s", by, r.Migration, again)
		}
	}
	return again
}

// words tells of one database in lines.
func (s *survivor) words() []string {
	lines := []string{s.Database}
	if s.err != nil {
		return append(lines, "does not answer: "+oneLine(s.err))
	}
	if s.Epoch == 0 {
		return append(lines, "nothing of Ficus is installed")
	}
	state := "no fence stands in the way of writers yet"
	switch {
	case s.Fenced > 0 && s.GateOpen:
		state = fmt.Sprintf("takes writes: the fence on %d tables is open", s.Fenced)
	case s.Fenced > 0:
		state = fmt.Sprintf("takes no writes: the fence on %d tables is closed", s.Fenced)
	}
	lines = append(lines, fmt.Sprintf("says: epoch %d, the %s owns the data, since %s", s.Epoch, s.Owner, s.Changed), state)
	switch {
	case s.Driver != "":
		lines = append(lines, "driven from "+s.Driver)
	case s.LastDriver != "":
		lines = append(lines, "nobody drives it; last: "+s.LastDriver)
	}
	for _, slot := range s.Slots {
		lines = append(lines, fmt.Sprintf("slot %s, %s WAL kept, up to %s acknowledged%s", slot.Name, units.Bytes(slot.Retained), slot.Confirmed, slot.condition()))
	}
	for _, p := range s.Progress {
		lines = append(lines, fmt.Sprintf("has what %s brought up to %s", p.Link, p.LSN))
	}
	if len(s.Unfinished) > 0 {
		lines = append(lines, "not copied to the end: "+strings.Join(s.Unfinished, ", "))
	}
	return lines
}

func (s slotFound) condition() string {
	switch {
	case s.Active:
		return ", in use"
	case s.Status == "lost":
		return ", LOST: the server has given it up"
	}
	return ""
}
