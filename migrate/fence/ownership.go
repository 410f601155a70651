package fence

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
)

// Ownership implements [migrate.Database].
func (d *Database) Ownership(ctx context.Context) (migrate.Ownership, error) {
	var o migrate.Ownership
	err := d.pool.QueryRow(ctx, `
		SELECT migration, epoch, owner, (SELECT last_value % 2 FROM ficus.gate) = 0 FROM ficus.ownership`).
		Scan(&o.Migration, &o.Epoch, &o.Owner, &o.GateOpen)
	if code := pg.Code(err); code == pg.CodeUndefinedTable || errors.Is(err, pgx.ErrNoRows) {
		return migrate.Ownership{}, nil
	}
	return o, d.wrap("read the ownership", err)
}

// Own implements [migrate.Database]. It takes the row's lock, so of two attempts at one epoch the
// one that commits first wins and the other gets ErrStaleEpoch; repeating the winning one is fine.
func (d *Database) Own(ctx context.Context, epoch int64, owner migrate.Side) error {
	err := pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = on`); err != nil {
			return err
		}
		if err := d.stillMine(ctx, tx); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `UPDATE ficus.ownership SET epoch = $1, owner = $2, changed_at = now() WHERE epoch < $1`, epoch, owner)
		if err != nil || tag.RowsAffected() == 1 {
			return err
		}
		var o migrate.Ownership
		if err := tx.QueryRow(ctx, `SELECT epoch, owner FROM ficus.ownership`).Scan(&o.Epoch, &o.Owner); err != nil {
			return err
		}
		if o.Epoch == epoch && o.Owner == owner {
			return nil
		}
		return hint.Wrap(fmt.Errorf("%w: wanted epoch %d for the %s, found epoch %d for the %s", ErrStaleEpoch, epoch, owner, o.Epoch, o.Owner),
			"another run changed the owner meanwhile: look at ficus status before doing anything else")
	})
	return d.wrap("change the owner", err)
}

// Signal implements [migrate.Database].
func (d *Database) Signal(ctx context.Context, nonce string) error {
	err := pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error {
		if err := d.stillMine(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM ficus.signal`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO ficus.signal (nonce) VALUES ($1)`, nonce)
		return err
	})
	return d.wrap("signal", err)
}
