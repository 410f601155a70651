package shop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/jackc/pgx/v5"
)

// A reader looks around in the shop. What it sees may be a little old, but never half of a
// transaction.
type reader struct {
	session
	ledger *Ledger
	shop   size
	rng    *rand.Rand
}

// work reads once and records how it went.
func (r *reader) work(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	torn, err := r.look(ctx)
	if err != nil {
		if errors.Is(context.Cause(ctx), errGone) {
			return
		}
		err = fmt.Errorf("reader: %w", err)
	}
	r.ledger.recordRead(torn, err)
	if err != nil && (r.conn == nil || r.conn.IsClosed()) {
		rest(ctx)
	}
}

const (
	customerSQL = `SELECT count(*) FROM shop.orders o JOIN shop.customers c ON c.id = o.customer_id WHERE c.id = $1`
	openSQL     = `SELECT count(*) FROM (SELECT city FROM shop.open_orders ORDER BY placed_at DESC LIMIT $1) o`
	searchSQL   = `SELECT count(*) FROM shop.events WHERE customer_id = $1 AND detail ->> 'term' IS NOT NULL`
	// The orders placed last, of which some are on their way.
	tornSQL = `SELECT count(*) FROM (SELECT id, total, status FROM shop.orders ORDER BY id DESC LIMIT $1) o
		WHERE CASE o.status WHEN 'cancelled' THEN EXISTS (SELECT FROM shop.order_items i WHERE i.order_id = o.id)
		ELSE o.total <> (SELECT coalesce(sum(i.quantity * i.price), 0) FROM shop.order_items i WHERE i.order_id = o.id) END`
)

// look asks one question and returns how many orders it saw in part.
func (r *reader) look(ctx context.Context) (torn int64, err error) {
	conn, err := r.open(ctx)
	if err != nil {
		return 0, err
	}
	customer := 1 + r.rng.Int64N(r.shop.customers)
	switch r.rng.IntN(4) {
	case 0:
		return 0, ask(ctx, conn, customerSQL, customer, new(int64))
	case 1:
		return 0, ask(ctx, conn, openSQL, 20, new(int64))
	case 2:
		return 0, ask(ctx, conn, searchSQL, customer, new(int64))
	}
	err = ask(ctx, conn, tornSQL, 50, &torn)
	return torn, err
}

func ask(ctx context.Context, conn *pgx.Conn, sql string, arg any, answer *int64) error {
	return conn.QueryRow(ctx, sql, arg).Scan(answer)
}
