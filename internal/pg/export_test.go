package pg

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Ending is ending, for tests.
func Ending(ctx context.Context, conn *pgx.Conn, snapshot string) (int, error) {
	return ending(ctx, conn, snapshot)
}
