package pg

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// A Beginner starts transactions: a connection or a pool.
type Beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Alter runs one DDL statement on a table that the application is using. The statement waits for
// its lock no longer than lockTimeout (and with it whoever queues behind it); when that was too
// short it tries again, backing off, until ctx ends.
func Alter(ctx context.Context, db Beginner, lockTimeout time.Duration, ddl string) error {
	retry := backoff.Timer{Min: 50 * time.Millisecond, Max: 2 * time.Second}
	for {
		err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, max(1, lockTimeout.Milliseconds()))); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, ddl)
			return err
		})
		if Code(err) != CodeLockNotAvailable {
			return err
		}
		if waitErr := retry.Wait(ctx); waitErr != nil {
			return hint.Wrap(errors.Join(waitErr, err), "a long transaction holds the table's lock: end it, or allow more time, and try again")
		}
	}
}
