package shop

import (
	"context"
	_ "embed" // for the schema
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Schema is the SQL that makes the shop's schema, named shop, in a database without one.
//
//go:embed schema.sql
var Schema string

// smallest is the least that Fill makes of each kind.
const smallest = 10

// Fill makes the shop's schema and about that many rows in it, all tables together, in one transaction, and
// returns how many. The rows depend on size and the date alone. The role must be a superuser,
// because triggers and foreign keys stay silent while it fills.
func Fill(ctx context.Context, conn *pgx.Conn, size int) (rows int64, err error) {
	part := func(percent int) int { return max(smallest, size*percent/1000) }
	customers, products, orders := part(80), part(25), part(160)
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, Schema); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SET LOCAL session_replication_role = replica`); err != nil {
			return err
		}
		for _, step := range []struct {
			table, sql string
			args       []any
		}{
			{"customers", fillCustomers, []any{customers}},
			{"products", fillProducts, []any{products}},
			{"order_items", fillItems, []any{orders, products}},
			{"orders", fillOrders, []any{customers}},
			{"stock", fillStock, nil},
			{"payments", fillPayments, nil},
			{"events", fillEvents, []any{part(230), customers}},
			{"audit", fillAudit, []any{part(20)}},
		} {
			tag, err := tx.Exec(ctx, step.sql, step.args...)
			if err != nil {
				return fmt.Errorf("%s: %w", step.table, err)
			}
			rows += tag.RowsAffected()
		}
		_, err := tx.Exec(ctx, fillSequences)
		return err
	})
	if err == nil {
		_, err = conn.Exec(ctx, `ANALYZE`)
	}
	if err != nil {
		return 0, fmt.Errorf("fill the shop: %w", err)
	}
	return rows, nil
}

const fillCustomers = `
INSERT INTO shop.customers (id, email, name, address, created_at)
SELECT i, format('customer%s@example.org', i),
       (ARRAY['Ada','Ben','Chloé','Dmitri','Eșref','Fumiko','Grace','Håkon'])[1 + i % 8] || ' ' || to_hex(i),
       jsonb_build_object('street', format('%s Fig Street', 1 + i % 200), 'zip', lpad((i % 99999)::text, 5, '0'),
                          'city', (ARRAY['Oslo','Porto','Graz','Lyon','Łódź','Genova'])[1 + i % 6]),
       now() - i % 1000 * interval '1 day'
FROM generate_series(1, $1::int) i`

const fillProducts = `
INSERT INTO shop.products (id, sku, name, price, tags, description)
SELECT i, 'SKU-' || lpad(i::text, 7, '0'), 'Product ' || i, 1 + (i * 7919 % 20000) / 100.0,
       ARRAY[(ARRAY['garden','kitchen','books','toys'])[1 + i % 4], CASE WHEN i % 5 = 0 THEN 'sale' ELSE 'regular' END],
       CASE WHEN i % 8 = 0 THEN (SELECT string_agg(md5(format('%s-%s', i, k)), ' ') FROM generate_series(1, 80) k)
            WHEN i % 8 = 1 THEN NULL ELSE 'Good for everything, and for ' || i END
FROM generate_series(1, $1::int) i`

const fillItems = `
INSERT INTO shop.order_items (order_id, line, product_id, quantity, price)
SELECT o, line, p.id, 1 + (o + line) % 4, p.price
FROM generate_series(1, $1::int) o
CROSS JOIN LATERAL generate_series(1, 1 + o % 3) line
JOIN shop.products p ON p.id = 1 + (o::bigint * 7919 + line * 104729) % $2::int`

const fillOrders = `
INSERT INTO shop.orders (id, customer_id, status, total, placed_at, updated_at)
SELECT order_id, 1 + order_id * 31 % $1::int,
       (CASE WHEN order_id % 10 < 8 THEN 'shipped' WHEN order_id % 10 = 8 THEN 'paid' ELSE 'placed' END)::shop.order_status,
       sum(quantity * price), now() - order_id % 5000 * interval '17 minutes', now() - order_id % 5000 * interval '11 minutes'
FROM shop.order_items GROUP BY order_id`

const fillStock = `
INSERT INTO shop.stock (product_id, opening, received, sold)
SELECT p.id, coalesce(i.sold, 0) + 1000000, coalesce(i.sold, 0) + 1000000, coalesce(i.sold, 0)
FROM shop.products p LEFT JOIN (SELECT product_id, sum(quantity) AS sold FROM shop.order_items GROUP BY 1) i ON i.product_id = p.id`

const fillPayments = `
INSERT INTO shop.payments (order_id, amount, method, paid_at)
SELECT id, total, (ARRAY['card','transfer','invoice'])[1 + id % 3]::shop.payment_method, updated_at
FROM shop.orders WHERE status IN ('paid', 'shipped')`

const fillEvents = `
INSERT INTO shop.events (at, customer_id, kind, detail)
SELECT now() - i % 90 * interval '1 day' - i % 86400 * interval '1 second', 1 + i::bigint * 13 % $2::int,
       (ARRAY['view','search','basket','login'])[1 + i % 4],
       CASE WHEN i % 4 < 2 THEN jsonb_build_object('term', md5(i::text), 'page', i % 30) END
FROM generate_series(1, $1::int) i`

const fillAudit = `
INSERT INTO shop.audit (at, order_id, was, became, detail)
SELECT updated_at, id, 'placed', status, jsonb_build_object('total', total, 'by', 'import')
FROM shop.orders WHERE status <> 'placed' ORDER BY id LIMIT $1::int`

const fillSequences = `
SELECT setval('shop.order_numbers', max(id)) FROM shop.orders;
SELECT setval(pg_get_serial_sequence('shop.customers', 'id'), max(id)) FROM shop.customers;
SELECT setval(pg_get_serial_sequence('shop.products', 'id'), max(id)) FROM shop.products`
