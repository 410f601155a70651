package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/sync/link"
	"github.com/ficus-migrate/ficus/sync/source"
)

// adopt lets a migration go on of which this data directory knows nothing, though both databases do:
// its directory was lost. It goes on from where the target stands, when the slot still has everything
// after that; otherwise the error says what is missing. Nothing is done, and the migration begins at
// its beginning, when it was never copied, or when ownership has moved since, which the databases tell
// by themselves.
func (e *engine) adopt(ctx context.Context, store *eventstore.Store, log *slog.Logger) error {
	if e.migration.Status().Phase != migrate.Pending {
		return nil
	}
	copied, err := e.copiedBefore(ctx)
	if err != nil || !copied {
		return err
	}
	if err := e.migration.Claim(ctx); err != nil { // another one may be at work
		return err
	}
	name := e.job.playbook.Name
	err = e.forward.Adopt(ctx, 0)
	switch {
	case errors.Is(err, link.ErrNotPrepared):
		return nil
	case err != nil:
		return fmt.Errorf("the data directory does not know %s, which both databases do: %w", name, err)
	}
	// What it moves is settled; the check would find a target that is in use.
	if err := e.job.keep(store); err != nil {
		return err
	}
	log.LogAttrs(ctx, slog.LevelWarn, "the data directory does not know this migration, both databases do: it goes on from what they hold",
		slog.String("migration", name))
	return e.migration.Adopt("the data directory was lost; nothing is missing, and proofs are made again")
}

// copiedBefore reports whether both databases belong to this migration, ownership never moved, and the
// source has its slot. A source without the slot is asked nothing else: the migration may be a new one.
func (e *engine) copiedBefore(ctx context.Context) (bool, error) {
	conn, err := e.job.source.Connect(ctx, "adopt")
	if err != nil {
		return false, fmt.Errorf("source: %w", err)
	}
	slot, err := source.SlotState(ctx, conn, e.job.linkName(migrate.Source))
	if err := errors.Join(err, conn.Close(context.WithoutCancel(ctx))); err != nil {
		return false, fmt.Errorf("source: %w", err)
	}
	if !slot.Exists {
		return false, nil
	}
	for side, db := range e.sides {
		o, err := db.Ownership(ctx)
		if err != nil {
			return false, fmt.Errorf("%s: %w", side, err)
		}
		if o.Migration != e.job.playbook.Name || o.Epoch != 1 || o.Owner != migrate.Source {
			return false, nil
		}
	}
	return true, nil
}
