package shop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A writer makes one transaction after the other. Writers never wait for one another for long: each pays and
// cancels orders of its own alone, and takes stock in the order of product numbers.
type writer struct {
	session
	ledger *Ledger
	client int
	seq    int64
	shop   size
	rng    *rand.Rand
	mine   []int64 // orders placed, and neither paid nor cancelled
}

// keepOpen is how many orders a writer has before it begins to pay.
const keepOpen = 10

// work makes one transaction and records the answer.
func (w *writer) work(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	w.seq++
	e := Entry{Client: w.client, Seq: w.seq, Kind: w.choose(), Start: time.Now()}
	conn, err := w.open(ctx)
	if err == nil {
		e.Ref, err = w.transact(ctx, conn, e.Kind)
	}
	e.Took = time.Since(e.Start)
	e.Answer = answer(err)
	if err != nil {
		if errors.Is(context.Cause(ctx), errGone) && e.Answer == Failed {
			return // not the database's fault
		}
		e.Err = fmt.Errorf("client %d, transaction %d, %s after %s: %w", e.Client, e.Seq, e.Kind, e.Took.Round(time.Millisecond), err)
	}
	w.ledger.record(e)
	if err != nil && (w.conn == nil || w.conn.IsClosed()) {
		rest(ctx)
	}
}

// choose returns what to do next.
func (w *writer) choose() Kind {
	switch n := w.rng.IntN(100); {
	case n < 8:
		return Restock
	case n < 14:
		return Move
	case n < 18:
		return Reprice
	case n < 24 && len(w.mine) > 0:
		return Cancel
	case n < 60 && len(w.mine) > keepOpen:
		return Pay
	}
	return Place
}

// A commitError is a failure from which one cannot tell whether the transaction was committed.
type commitError struct{ err error }

func (e *commitError) Error() string { return "answer to the commit lost: " + e.err.Error() }
func (e *commitError) Unwrap() error { return e.err }

// answer tells what an error means for the transaction.
func answer(err error) Answer {
	var lost *commitError
	switch {
	case err == nil:
		return Acknowledged
	case errors.As(err, &lost):
		return InDoubt
	}
	return Failed
}

// doubt marks the error of a commit, unless the database refused it in so many words.
func doubt(err error) error {
	var pgErr *pgconn.PgError
	switch {
	case err == nil, errors.Is(err, pgx.ErrTxCommitRollback):
		return err
	case errors.As(err, &pgErr) && pgErr.Severity == "ERROR":
		return err
	}
	return &commitError{err}
}

// transact makes one transaction and returns what it was about.
func (w *writer) transact(ctx context.Context, conn *pgx.Conn, kind Kind) (ref int64, err error) {
	if kind == Restock {
		return w.restock(ctx, conn)
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return 0, err
	}
	switch kind {
	case Place:
		ref, err = w.place(ctx, tx)
	case Pay:
		ref = w.take()
		err = w.pay(ctx, tx, ref)
	case Cancel:
		ref = w.take()
		err = w.cancel(ctx, tx, ref)
	case Move:
		ref = 1 + w.rng.Int64N(w.shop.customers)
		err = w.run(ctx, tx, kind, ref, []statement{{moveSQL, []any{ref, 1 + w.rng.IntN(200)}}})
	case Reprice:
		ref = 1 + w.rng.Int64N(w.shop.products)
		err = w.run(ctx, tx, kind, ref, []statement{{repriceSQL, []any{ref, 90 + w.rng.IntN(21)}}})
	case Restock:
	}
	if err != nil {
		_ = tx.Rollback(ctx) // err says more
		return ref, err
	}
	if err := doubt(tx.Commit(ctx)); err != nil {
		return ref, err
	}
	if kind == Place {
		w.mine = append(w.mine, ref)
	}
	return ref, nil
}

// take chooses the oldest order of one's own. It is not touched again, whatever the answer will be.
func (w *writer) take() int64 {
	ref := w.mine[0]
	w.mine = w.mine[1:]
	return ref
}

const (
	ledgerSQL  = `INSERT INTO shop.ledger (client, seq, kind, ref) VALUES ($1, $2, $3, $4)`
	moveSQL    = `UPDATE shop.customers SET address = address || jsonb_build_object('street', $2::int || ' Fig Street') WHERE id = $1`
	repriceSQL = `UPDATE shop.products SET price = greatest(0.01, round(price * $2::int / 100, 2)) WHERE id = $1`

	takeSQL = `UPDATE shop.stock SET sold = sold + $2 WHERE product_id = $1`
	itemSQL = `INSERT INTO shop.order_items (order_id, line, product_id, quantity, price) VALUES ($1, $2, $3, $4, $5::numeric)`

	orderSQL = `INSERT INTO shop.orders (customer_id, client, total) VALUES ($1, $2, $3::numeric) RETURNING id`
	eventSQL = `INSERT INTO shop.events (customer_id, kind, detail) VALUES ($1, 'order', jsonb_build_object('order', $2::bigint))`

	paymentSQL = `INSERT INTO shop.payments (order_id, amount, method) SELECT id, total, 'card' FROM shop.orders WHERE id = $1`
	statusSQL  = `UPDATE shop.orders SET status = $2::text::shop.order_status WHERE id = $1 AND status = 'placed'`
	lockSQL    = `SELECT product_id FROM shop.stock WHERE product_id IN (SELECT product_id FROM shop.order_items WHERE order_id = $1) ORDER BY 1 FOR UPDATE`
	giveSQL    = `UPDATE shop.stock s SET sold = s.sold - i.quantity FROM (SELECT product_id, sum(quantity) AS quantity
		FROM shop.order_items WHERE order_id = $1 GROUP BY 1) i WHERE i.product_id = s.product_id`
	removeSQL = `DELETE FROM shop.order_items WHERE order_id = $1`

	restockSQL = `WITH delivery AS (UPDATE shop.stock SET received = received + $4::bigint WHERE product_id = $3 RETURNING product_id)
		INSERT INTO shop.ledger (client, seq, kind, ref, amount) SELECT $1::int, $2::bigint, 'restock', product_id, $4::bigint FROM delivery`
)

// A statement is SQL with its values. It must touch at least one row.
type statement struct {
	sql  string
	args []any
}

// run executes statements and the ledger's entry, in the writer's style.
func (w *writer) run(ctx context.Context, tx pgx.Tx, kind Kind, ref int64, statements []statement) error {
	statements = append(statements, statement{ledgerSQL, []any{w.client, w.seq, string(kind), ref}})
	if w.style != pipelined {
		for _, s := range statements {
			tag, err := tx.Exec(ctx, s.sql, s.args...)
			if err := touched(tag, err); err != nil {
				return err
			}
		}
		return nil
	}
	batch := &pgx.Batch{}
	for _, s := range statements {
		batch.Queue(s.sql, s.args...)
	}
	results := tx.SendBatch(ctx, batch)
	for range statements {
		if err := touched(results.Exec()); err != nil {
			return errors.Join(err, results.Close())
		}
	}
	return results.Close()
}

// touched turns a statement that found nothing into an error: what it looks for is always there.
func touched(tag pgconn.CommandTag, err error) error {
	if err == nil && tag.RowsAffected() == 0 {
		return fmt.Errorf("%s: a row that was there before is not there now", tag)
	}
	return err
}

// place orders one to three products.
func (w *writer) place(ctx context.Context, tx pgx.Tx) (order int64, err error) {
	products := make([]int64, 1+w.rng.IntN(3))
	for i := range products {
		products[i] = 1 + w.rng.Int64N(w.shop.products)
	}
	slices.Sort(products)
	products = slices.Compact(products)
	prices := make([]string, len(products))
	quantities := make([]int, len(products))
	total := "0"
	for i, p := range products {
		quantities[i] = 1 + w.rng.IntN(3)
		// As decimal text: money is the database's to compute.
		err := tx.QueryRow(ctx, `SELECT price::text, (price * $2::int + $3::text::numeric)::text FROM shop.products WHERE id = $1`, p, quantities[i], total).
			Scan(&prices[i], &total)
		if err != nil {
			return 0, err
		}
	}
	customer := 1 + w.rng.Int64N(w.shop.customers)
	if err := tx.QueryRow(ctx, orderSQL, customer, w.client, total).Scan(&order); err != nil {
		return 0, err
	}
	var statements []statement
	for i, p := range products {
		statements = append(statements,
			statement{takeSQL, []any{p, quantities[i]}},
			statement{itemSQL, []any{order, i + 1, p, quantities[i], prices[i]}})
	}
	statements = append(statements, statement{eventSQL, []any{customer, order}})
	return order, w.run(ctx, tx, Place, order, statements)
}

// pay pays an order.
func (w *writer) pay(ctx context.Context, tx pgx.Tx, order int64) error {
	return w.run(ctx, tx, Pay, order, []statement{
		{paymentSQL, []any{order}}, {statusSQL, []any{order, "paid"}},
	})
}

// cancel takes an order back.
func (w *writer) cancel(ctx context.Context, tx pgx.Tx, order int64) error {
	return w.run(ctx, tx, Cancel, order, []statement{
		{lockSQL, []any{order}}, {giveSQL, []any{order}}, {removeSQL, []any{order}}, {statusSQL, []any{order, "cancelled"}},
	})
}

// restock takes a delivery in. It is one statement, and so a transaction of its own: its answer is the commit's.
func (w *writer) restock(ctx context.Context, conn *pgx.Conn) (product int64, err error) {
	product = 1 + w.rng.Int64N(w.shop.products)
	tag, err := conn.Exec(ctx, restockSQL, w.client, w.seq, product, 1+w.rng.IntN(50))
	if err != nil {
		return product, doubt(err)
	}
	return product, touched(tag, nil)
}
