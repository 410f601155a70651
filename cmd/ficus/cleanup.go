package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/fence"
	"github.com/ficus-migrate/ficus/sync/link"
	"github.com/ficus-migrate/ficus/sync/source"
)

func (a *app) cleanupCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove every object that Ficus left in a database",
		Long: `Remove what Ficus made in a database, whatever state it is in: replication slots and publications
named ficus_*, fence triggers, schema ficus; replica identities are put back. Tables and rows stay.

It refuses while a migration uses the database, and where the other database owns the data: without
the fence, writes to the old database would be accepted and lost. --force does it all the same.`,
		Example: "  ficus cleanup --source postgresql://app@old/shop --target postgresql://app@new/shop",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			source, target := cmd.Flag("source").Value.String(), cmd.Flag("target").Value.String()
			dsns := slices.DeleteFunc([]string{source, target}, func(s string) bool { return s == "" })
			if len(dsns) == 0 {
				return usageError(cmd, errors.New("which database? give --source, --target or both"))
			}
			return a.cleanAll(cmd.Context(), dsns, force)
		},
	}
	cmd.Flags().String("source", "", "connection string of a database to clean")
	cmd.Flags().String("target", "", "connection string of another one")
	cmd.Flags().BoolVar(&force, "force", false, "clean it even if it is in use or does not own its data")
	return cmd
}

// cleanAll looks into all databases before it removes anything from one of them.
func (a *app) cleanAll(ctx context.Context, dsns []string, force bool) error {
	var all []*leftovers
	defer func() {
		for _, l := range all {
			l.close(ctx)
		}
	}()
	for _, s := range dsns {
		dsn, err := pg.Parse(s)
		if err != nil {
			return &statusError{exitUsage, err}
		}
		l, err := findLeftovers(ctx, dsn)
		if err != nil {
			return err
		}
		all = append(all, l)
	}
	for _, l := range all {
		if err := l.refuse(all); err != nil && !force {
			return err
		}
	}
	for _, l := range all {
		if err := l.claim(ctx); err != nil && !force {
			return err
		}
	}
	removed := 0
	for _, l := range all {
		n, err := a.cleanup(ctx, l)
		removed += n
		if err != nil {
			return err
		}
	}
	a.line("result", map[string]any{"removed": removed}, fmt.Sprintf("removed %d objects", removed))
	return nil
}

// leftovers are what Ficus made in one database, and the sessions to remove it with.
type leftovers struct {
	dsn  pg.DSN
	conn *pgx.Conn
	db   *fence.Database

	slots, active []string
	publications  []string
	links         []string // whose replica identities are remembered
	installed     bool     // schema ficus is there

	ownership migrate.Ownership
	self      migrate.Side // which part the database plays, "" when it has no ownership row
}

func findLeftovers(ctx context.Context, dsn pg.DSN) (l *leftovers, err error) {
	l = &leftovers{dsn: dsn}
	defer func() {
		if err != nil {
			l.close(ctx)
			err = fmt.Errorf("clean %s: %w", dsn, err)
		}
	}()
	if l.conn, err = dsn.Connect(ctx, "cleanup"); err != nil {
		return l, err
	}
	if l.db, err = fence.New(ctx, fence.Config{DSN: dsn, Self: migrate.Source}); err != nil {
		return l, err
	}
	list := func(sql string) (out []string) {
		if err != nil {
			return nil
		}
		var rows pgx.Rows
		if rows, err = l.conn.Query(ctx, sql); err != nil {
			return nil
		}
		out, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return out
	}
	const slots = `SELECT slot_name::text FROM pg_replication_slots WHERE slot_name ~ '^ficus_' AND database = current_database()`
	l.slots = list(slots + ` ORDER BY 1`)
	l.active = list(slots + ` AND active ORDER BY 1`)
	l.publications = list(`SELECT pubname::text FROM pg_publication WHERE pubname ~ '^ficus_' ORDER BY 1`)
	l.installed = len(list(`SELECT nspname::text FROM pg_namespace WHERE nspname = 'ficus'`)) > 0
	if len(list(`SELECT 'x' WHERE to_regclass('ficus.replica_identity') IS NOT NULL`)) > 0 {
		l.links = list(`SELECT DISTINCT link FROM ficus.replica_identity ORDER BY 1`)
	}
	if err != nil {
		return l, err
	}
	if l.ownership, err = l.db.Ownership(ctx); err != nil || l.ownership.Epoch == 0 {
		return l, err
	}
	return l, l.conn.QueryRow(ctx, `SELECT self FROM ficus.ownership`).Scan(&l.self)
}

func (l *leftovers) close(ctx context.Context) {
	if l.db != nil {
		l.db.Close()
	}
	if l.conn != nil {
		_ = l.conn.Close(context.WithoutCancel(ctx)) // nothing depends on a clean goodbye
	}
}

// refuse says why the database had better be left alone; nil when it may be cleaned. given are all
// databases of the command line, this one among them.
func (l *leftovers) refuse(given []*leftovers) error {
	if len(l.active) > 0 {
		return hint.Wrap(fmt.Errorf("clean %s: slot %s is in use", l.dsn, strings.Join(l.active, ", ")),
			"a ficus is running: ficus cancel or ficus complete ends its migration; --force cuts it off")
	}
	o := l.ownership
	newest, both := o, false
	for _, other := range given {
		if other != l && other.ownership.Migration == o.Migration && other.ownership.Epoch > 0 {
			both = true
			if other.ownership.Epoch > newest.Epoch {
				newest = other.ownership
			}
		}
	}
	switch {
	case o.Epoch == 0 || o.GateOpen:
		return nil
	case l.self == migrate.Source && newest.Owner == migrate.Target:
		return hint.Wrap(fmt.Errorf("clean %s: the other database owns the data (migration %s, epoch %d)", l.dsn, o.Migration, newest.Epoch),
			"without the fence, writes here would be accepted and lost; when no application uses this database any more: --force")
	case l.self == o.Owner && !both:
		return hint.Wrap(fmt.Errorf("clean %s: migration %s was stopped while ownership moved (epoch %d): the other database may own the data", l.dsn, o.Migration, o.Epoch),
			"give both --source and --target; or run the same ficus command again, which finishes or undoes it")
	}
	return nil
}

// claim keeps every other ficus away from a database while it is cleaned.
func (l *leftovers) claim(ctx context.Context) error {
	_, err := l.db.Claim(ctx)
	if errors.Is(err, migrate.ErrDriven) {
		return hint.Wrap(fmt.Errorf("clean %s: %w", l.dsn, err), "ficus cancel or ficus complete ends its migration; --force cuts it off")
	}
	return err
}

// cleanup removes everything from one database and returns how many objects that were.
func (a *app) cleanup(ctx context.Context, l *leftovers) (removed int, err error) {
	gone := func(what, name string) {
		removed++
		a.line("removed", map[string]any{"database": l.dsn.Database(), "what": what, "name": name}, fmt.Sprintf("%s: removed %s %s", l.dsn, what, name))
	}
	for _, s := range l.slots {
		if err := source.DropSlot(ctx, l.conn, s); err != nil {
			return removed, fmt.Errorf("clean %s: drop slot %s: %w", l.dsn, s, err)
		}
		gone("replication slot", s)
	}
	for _, p := range l.publications {
		if _, err := l.conn.Exec(ctx, `DROP PUBLICATION IF EXISTS `+pgx.Identifier{p}.Sanitize()); err != nil {
			return removed, fmt.Errorf("clean %s: drop publication %s: %w", l.dsn, p, err)
		}
		gone("publication", p)
	}
	for _, name := range l.links {
		if err := link.RestoreIdentities(ctx, l.conn, name, 200*time.Millisecond); err != nil {
			return removed, fmt.Errorf("clean %s: replica identities of %s: %w", l.dsn, name, err)
		}
		gone("changed replica identities of", name)
	}
	if l.installed {
		if err := l.db.Uninstall(ctx); err != nil {
			return removed, err
		}
		gone("fence triggers and schema", "ficus")
	}
	return removed, nil
}
