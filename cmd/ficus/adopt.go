package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/sync/link"
	"github.com/ficus-migrate/ficus/sync/source"
)

// adopt lets a migration go on of which this data directory knows nothing, though both databases do:
// its directory was lost. Who owns the data, and whether a change of owner is undone or finished, the
// engine finds by itself; here the link that leaves the owner is taken up where its follower stands, when the
// slot still has everything after that. What is missing for following the source is an error; what is
// missing for the way back closes that, in sight. Nothing is done, and the migration begins at
// its beginning, when it was never copied.
func (e *engine) adopt(ctx context.Context, store *eventstore.Store, log *slog.Logger) error {
	if e.migration.Status().Phase != migrate.Pending {
		return nil
	}
	if known, err := e.knownToSource(ctx); err != nil || !known {
		return err // the migration may be a new one: nothing else is asked
	}
	found, err := e.recovery(ctx)
	if err != nil || !found.known(e.job.playbook.Name) {
		return err
	}
	if err := e.migration.Claim(ctx); err != nil { // another one may be at work
		return err
	}
	if found, err = e.recovery(ctx); err != nil || !found.known(e.job.playbook.Name) {
		return err
	}
	if found.Owner == migrate.Target {
		return e.adoptBack(ctx, store, log, found)
	}
	return e.adoptForward(ctx, store, log, found)
}

// found is a Recovery with the rows that it was drawn from.
type found struct {
	migrate.Recovery

	rows map[migrate.Side]migrate.Ownership
}

// known reports whether both databases belong to the migration.
func (f *found) known(name string) bool {
	for _, o := range f.rows {
		if o.Migration != name || o.Epoch == 0 {
			return false
		}
	}
	return true
}

// afterEpoch is what the link was prepared with that leaves the owner: the epoch that made it the
// owner, which its own row shows; 0 for the first link, which began with a copy.
func (f *found) afterEpoch() int64 {
	if epoch := f.rows[f.Owner].Epoch; epoch > 1 {
		return epoch
	}
	return 0
}

func (e *engine) recovery(ctx context.Context) (*found, error) {
	f := &found{rows: map[migrate.Side]migrate.Ownership{}}
	for side, db := range e.sides {
		o, err := db.Ownership(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", side, err)
		}
		f.rows[side] = o
	}
	src, dst := f.rows[migrate.Source], f.rows[migrate.Target]
	f.Recovery = migrate.Recover(&src, &dst)
	return f, nil
}

// knownToSource reports whether the source has the slot of the first link, or knows that the target owns
// the data: one of both is true of every migration that was copied.
func (e *engine) knownToSource(ctx context.Context) (bool, error) {
	conn, err := e.job.source.Connect(ctx, "adopt")
	if err != nil {
		return false, fmt.Errorf("source: %w", err)
	}
	slot, err := source.SlotState(ctx, conn, e.job.linkName(migrate.Source))
	if err := errors.Join(err, conn.Close(context.WithoutCancel(ctx))); err != nil {
		return false, fmt.Errorf("source: %w", err)
	}
	o, err := e.sides[migrate.Source].Ownership(ctx)
	if err != nil {
		return false, fmt.Errorf("source: %w", err)
	}
	return slot.Exists || o.Owner == migrate.Target, nil
}

// adoptForward goes on while the source owns the data.
func (e *engine) adoptForward(ctx context.Context, store *eventstore.Store, log *slog.Logger, f *found) error {
	name := e.job.playbook.Name
	err := e.forward.Adopt(ctx, f.afterEpoch())
	switch {
	case errors.Is(err, link.ErrNotPrepared):
		return nil
	case err != nil:
		return fmt.Errorf("the data directory does not know %s, which both databases do: %w", name, err)
	}
	if e.reverse != nil { // a promotion that did not come to pass may have left it, and nobody would read it
		if err := e.reverse.Drop(ctx); err != nil {
			return err
		}
	}
	if err := e.settleAdopted(ctx, store, log); err != nil {
		return err
	}
	phase := migrate.CatchingUp
	if f.afterEpoch() > 0 {
		phase = migrate.RolledBack // where somebody wanted it to be: it does not promote again by itself
	}
	return e.migration.Adopt(phase, "the data directory was lost; nothing is missing, and proofs are made again")
}

// adoptBack goes on while the target owns the data. The engine finds the phase by itself.
func (e *engine) adoptBack(ctx context.Context, store *eventstore.Store, log *slog.Logger, f *found) error {
	if err := e.settleAdopted(ctx, store, log); err != nil || e.reverse == nil {
		return err
	}
	if err := e.reverse.Adopt(ctx, f.afterEpoch()); err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "the way back is closed", slog.String("migration", e.job.playbook.Name), slog.Any("err", err), slog.String("hint", hint.Of(err)))
		e.migration.Alarm("the way back was lost with the data directory: " + err.Error())
	}
	return nil
}

// settleAdopted keeps what is moved: the check, which does so otherwise, would find a target that is in use.
func (e *engine) settleAdopted(ctx context.Context, store *eventstore.Store, log *slog.Logger) error {
	log.LogAttrs(ctx, slog.LevelWarn, "the data directory does not know this migration, both databases do: it goes on from what they hold",
		slog.String("migration", e.job.playbook.Name))
	return e.job.keep(store)
}
