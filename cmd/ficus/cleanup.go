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
	var dsns []string
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
			dsns = slices.DeleteFunc([]string{source, target}, func(s string) bool { return s == "" })
			if len(dsns) == 0 {
				return usageError(cmd, errors.New("which database? give --source, --target or both"))
			}
			var failed error
			removed := 0
			for _, s := range dsns {
				dsn, err := pg.Parse(s)
				if err != nil {
					return &statusError{exitUsage, err}
				}
				n, err := a.cleanup(cmd.Context(), dsn, force)
				removed, failed = removed+n, errors.Join(failed, err)
			}
			if failed != nil {
				return failed
			}
			a.line("result", map[string]any{"removed": removed}, fmt.Sprintf("removed %d objects", removed))
			return nil
		},
	}
	cmd.Flags().String("source", "", "connection string of a database to clean")
	cmd.Flags().String("target", "", "connection string of another one")
	cmd.Flags().BoolVar(&force, "force", false, "clean it even if it is in use or does not own its data")
	return cmd
}

// leftovers are what Ficus made in a database besides schema ficus.
type leftovers struct {
	slots, active []string
	publications  []string
	links         []string // whose replica identities are remembered
	installed     bool
}

// cleanup removes everything from one database and returns how many objects that were.
func (a *app) cleanup(ctx context.Context, dsn pg.DSN, force bool) (removed int, err error) {
	conn, err := dsn.Connect(ctx, "cleanup")
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing depends on a clean goodbye
	db, err := fence.New(ctx, fence.Config{DSN: dsn, Self: migrate.Source})
	if err != nil {
		return 0, err
	}
	defer db.Close()

	left, err := findLeftovers(ctx, conn)
	if err != nil {
		return 0, fmt.Errorf("clean %s: %w", dsn, err)
	}
	if err := refuseCleanup(ctx, dsn, db, left); err != nil && !force {
		return 0, err
	}
	gone := func(what, name string) {
		removed++
		a.line("removed", map[string]any{"database": dsn.Database(), "what": what, "name": name}, fmt.Sprintf("%s: removed %s %s", dsn, what, name))
	}
	for _, s := range left.slots {
		if err := source.DropSlot(ctx, conn, s); err != nil {
			return removed, fmt.Errorf("clean %s: drop slot %s: %w", dsn, s, err)
		}
		gone("replication slot", s)
	}
	for _, p := range left.publications {
		if _, err := conn.Exec(ctx, `DROP PUBLICATION IF EXISTS `+pgx.Identifier{p}.Sanitize()); err != nil {
			return removed, fmt.Errorf("clean %s: drop publication %s: %w", dsn, p, err)
		}
		gone("publication", p)
	}
	for _, l := range left.links {
		if err := link.RestoreIdentities(ctx, conn, l, 200*time.Millisecond); err != nil {
			return removed, fmt.Errorf("clean %s: replica identities of %s: %w", dsn, l, err)
		}
		gone("changed replica identities of", l)
	}
	if left.installed {
		if err := db.Uninstall(ctx); err != nil {
			return removed, err
		}
		gone("fence triggers and schema", "ficus")
	}
	return removed, nil
}

func findLeftovers(ctx context.Context, conn *pgx.Conn) (l leftovers, err error) {
	list := func(sql string) (out []string) {
		if err != nil {
			return nil
		}
		var rows pgx.Rows
		if rows, err = conn.Query(ctx, sql); err != nil {
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
	return l, err
}

// refuseCleanup says why a database had better be left alone; nil when it may be cleaned.
func refuseCleanup(ctx context.Context, dsn pg.DSN, db *fence.Database, left leftovers) error {
	if len(left.active) > 0 {
		return hint.Wrap(fmt.Errorf("clean %s: slot %s is in use", dsn, strings.Join(left.active, ", ")),
			"a ficus is running: ficus cancel or ficus complete ends its migration; --force cuts it off")
	}
	o, err := db.Ownership(ctx)
	if err != nil {
		return err
	}
	if o.Epoch > 0 && !o.GateOpen {
		return hint.Wrap(fmt.Errorf("clean %s: the other database owns the data (migration %s, epoch %d, owner %s)", dsn, o.Migration, o.Epoch, o.Owner),
			"without the fence, writes here would be accepted and lost; when no application uses this database any more: --force")
	}
	return nil
}
