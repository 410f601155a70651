package pg

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Pool returns a pool of at most size sessions like those of Connect. It opens none before the
// first use; Close it when done.
func (d DSN) Pool(ctx context.Context, purpose string, size int32) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig("")
	if err != nil {
		return nil, fmt.Errorf("pool for %s: %w", d, redact(err, d.cfg.Password))
	}
	cfg.ConnConfig = d.session(purpose)
	cfg.MaxConns = size
	cfg.MinConns = 0
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("pool for %s: %w", d, redact(err, d.cfg.Password))
	}
	return pool, nil
}

// Redact turns an error of a pool of d into one that is safe to show: no password, with advice
// where one is known. Other errors pass unchanged.
func (d DSN) Redact(err error) error {
	if err == nil || !connClosed(err) {
		return err
	}
	return d.connectError(err)
}
