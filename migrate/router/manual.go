package router

import (
	"context"
	"fmt"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
)

// Manual leads nobody: it says what a person has to do. It implements [migrate.Asker].
type Manual struct {
	// Places are the two databases.
	Places map[migrate.Side]pg.DSN

	orders orders
}

// Hold implements [migrate.Router]: nobody waits.
func (r *Manual) Hold(_ context.Context, epoch int64) error { return r.orders.hold(epoch) }

// Release implements [migrate.Router].
func (r *Manual) Release(_ context.Context, owner migrate.Side, epoch int64) error {
	_, err := r.orders.release(owner, epoch)
	return err
}

// Reads implements [migrate.Router].
func (r *Manual) Reads(_ context.Context, percent int) error {
	_, err := r.orders.reads(percent)
	return err
}

// Stalls implements [migrate.Router]: nobody sees clients wait.
func (r *Manual) Stalls() migrate.StallStats { return migrate.StallStats{} }

// Ahead implements [migrate.Asker].
func (r *Manual) Ahead(owner migrate.Side) string {
	return fmt.Sprintf("once this is approved, the %s refuses writes (SQLSTATE 25006) until the clients are on the %s, %s: let them stop or try again meanwhile",
		owner, owner.Other(), r.Places[owner.Other()])
}

// After implements [migrate.Asker].
func (r *Manual) After(owner migrate.Side) string {
	return fmt.Sprintf("point the clients to the %s, %s", owner, r.Places[owner])
}
