package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
)

func (a *app) resyncCommand() *cobra.Command {
	var token string
	var wait bool
	cmd := &cobra.Command{
		Use:   "resync NAME TABLE...",
		Short: "Copy tables anew while the rest stands",
		Long: `Copy tables of a migration anew, from the database that owns the data to the one that follows:
because a comparison found them different, or because what became of them at the owner cannot be
followed otherwise. A migration that failed goes on with it.

The application is not affected. Nothing is applied to any table until they are copied; what changes
meanwhile is kept, and applied after that. Proofs from before count no more. Killed at whatever moment,
the next run goes on with the parts that are missing.

It talks to the ficus run or ficus serve that drives the migration (--api).`,
		Example: `  ficus resync upgrade public.orders public.order_lines
  ficus resync upgrade orders --wait && ficus verify upgrade`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(token)
			if err != nil {
				return err
			}
			return a.resync(cmd.Context(), c, args[0], migrate.Command{Verb: migrate.Resync, Tables: args[1:], Actor: actor(), Wait: wait})
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "show how far it is, and return when it is done")
	tokenFlag(cmd, &token)
	return cmd
}

func (a *app) resync(ctx context.Context, c *api.Client, name string, ask migrate.Command) error {
	before, err := c.Get(ctx, name)
	if err != nil {
		return err
	}
	began := time.Now()
	if ask.Wait {
		err = a.resyncShown(ctx, c, name, before.Seq, ask)
	} else {
		err = c.Do(ctx, name, ask)
	}
	if err != nil {
		return err
	}
	s, err := c.Get(ctx, name)
	if err != nil {
		return err
	}
	tables := strings.Join(ask.Tables, ", ")
	said := fmt.Sprintf("%s: resync of %s is on record; ficus status %s shows how far it is", name, tables, name)
	switch {
	case ask.Wait:
		said = fmt.Sprintf("%s: %s copied anew in %s; compare: ficus verify %s", name, tables, units.Duration(time.Since(began)), name)
	case s.Paused:
		said = fmt.Sprintf("%s: resync of %s is on record; it begins with: ficus resume %s", name, tables, name)
	}
	a.line("result", map[string]any{"name": name, "verb": ask.Verb, "tables": ask.Tables, "phase": s.Phase, "owner": s.Owner, "epoch": s.Epoch, "waiting_for": s.WaitingFor}, said)
	return nil
}

// resyncShown carries the command, and shows what happens until it is done.
func (a *app) resyncShown(ctx context.Context, c *api.Client, name string, after int64, ask migrate.Command) error {
	screen := a.newConsole(func() migrate.Status { return migrate.Status{} })
	defer screen.close()
	g, ctx := errgroup.WithContext(ctx)
	watching, stop := context.WithCancel(ctx)
	g.Go(func() error {
		for e, err := range c.Events(watching, name, after) {
			if err != nil {
				return nil // what the command comes to is the other goroutine's to say
			}
			if t, ok := e.Data["table"]; ok {
				e.Data["table"] = decode[migrate.TableProgress](t)
			}
			if slices.Contains([]string{"progress", "ddl", "link", "error"}, e.Type) {
				screen.event(e)
			}
		}
		return nil
	})
	g.Go(func() error {
		defer stop()
		return c.Do(ctx, name, ask)
	})
	return g.Wait()
}

// recopyText says how far tables are that are copied anew.
func recopyText(r *migrate.Recopy) string {
	var parts []string
	for _, t := range r.Tables {
		switch {
		case t.Done:
			parts = append(parts, fmt.Sprintf("%s: %s rows, done", t.Table, units.Count(t.Rows)))
		case t.Rows > 0:
			parts = append(parts, fmt.Sprintf("%s: %s of about %s rows", t.Table, units.Count(t.Rows), units.Count(max(t.TotalRows, t.Rows))))
		default:
			parts = append(parts, t.Table+": not begun")
		}
	}
	return strings.Join(parts, ", ") + " (" + r.Why + ")"
}
