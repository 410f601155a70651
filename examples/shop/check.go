package shop

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// A Report is what became of the transactions of a ledger, in one database at one instant.
type Report struct {
	Acknowledged int64 `json:"acknowledged"` // to the clients
	Found        int64 `json:"found"`        // of these, exactly once and as they were asked for
	Missing      int64 `json:"missing"`      // of these, not at all: lost
	Doubled      int64 `json:"doubled"`      // transactions that are there more than once
	Altered      int64 `json:"altered"`      // there with another content than was asked for
	Unexpected   int64 `json:"unexpected"`   // there, and no client asked for them or was told that they failed
	InDoubt      int64 `json:"in_doubt"`     // answer lost
	InDoubtFound int64 `json:"in_doubt_found"`
	// Servers counts the transactions that are there by the TCP port of the server that took them.
	Servers map[int]int64 `json:"servers"`
	// Unbalanced names what in the shop's books contradicts the ledger.
	Unbalanced []string `json:"unbalanced,omitempty"`
}

// OK reports whether the database holds exactly what was acknowledged, and of what is in doubt
// everything or nothing.
func (r *Report) OK() bool {
	return r.Found == r.Acknowledged && r.Missing == 0 && r.Doubled == 0 && r.Altered == 0 && r.Unexpected == 0 && len(r.Unbalanced) == 0
}

// Check compares the ledger with a database, to which it connects itself: connString as libpq has
// it. Run it while no Load with this ledger works, or it will miss what is being written.
func (l *Ledger) Check(ctx context.Context, connString string) (*Report, error) {
	conn, err := pgx.Connect(ctx, connString)
	if err != nil {
		return nil, fmt.Errorf("check the ledger: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	r := &Report{Servers: map[int]int64{}}
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := l.compare(ctx, tx, r); err != nil {
			return err
		}
		return balance(ctx, tx, r)
	})
	if err != nil {
		return nil, fmt.Errorf("check the ledger: %w", err)
	}
	return r, nil
}

// compare matches the ledger with the table of the same name.
func (l *Ledger) compare(ctx context.Context, tx pgx.Tx, r *Report) error {
	expected := l.expected()
	seen := make(map[key]int, len(expected))
	rows, err := tx.Query(ctx, `SELECT client, seq, kind, ref, coalesce(server, 0) FROM shop.ledger`)
	if err != nil {
		return err
	}
	var k key
	var kind Kind
	var ref int64
	var server int
	_, err = pgx.ForEachRow(rows, []any{&k.client, &k.seq, &kind, &ref, &server}, func() error {
		r.Servers[server]++
		e, ok := expected[k]
		seen[k]++
		switch {
		case !ok || e.Answer == Failed:
			r.Unexpected++
		case seen[k] == 2:
			r.Doubled++
		case seen[k] == 1 && (kind != e.Kind || ref != e.Ref):
			r.Altered++
			seen[k] = altered
		}
		return nil
	})
	if err != nil {
		return err
	}
	for k, e := range expected {
		switch e.Answer {
		case Acknowledged:
			r.Acknowledged++
			switch seen[k] {
			case 0:
				r.Missing++
			case 1:
				r.Found++
			}
		case InDoubt:
			r.InDoubt++
			if seen[k] > 0 {
				r.InDoubtFound++
			}
		case Failed:
		}
	}
	return nil
}

// altered in place of a count keeps a transaction from being found or doubled.
const altered = 1 << 20

// balance looks for what contradicts the table ledger elsewhere: whatever a transaction wrote must be
// there as a whole, once. Each query counts contradictions.
func balance(ctx context.Context, tx pgx.Tx, r *Report) error {
	for _, q := range []struct{ what, sql string }{
		{"orders without their entry in the ledger, or the other way round", `
			SELECT count(*) FROM (SELECT id, client FROM shop.orders WHERE client IS NOT NULL) o
			FULL JOIN (SELECT ref, client FROM shop.ledger WHERE kind = 'place') l ON l.ref = o.id AND l.client = o.client
			WHERE o.id IS NULL OR l.ref IS NULL`},
		{"payments without their entry in the ledger, or the other way round", `
			SELECT count(*) FROM (SELECT p.order_id, count(*) AS n FROM shop.payments p JOIN shop.orders o ON o.id = p.order_id
				WHERE o.client IS NOT NULL GROUP BY 1) p
			FULL JOIN (SELECT ref, count(*) AS n FROM shop.ledger WHERE kind = 'pay' GROUP BY 1) l ON l.ref = p.order_id
			WHERE p.n IS DISTINCT FROM l.n`},
		{"orders that are cancelled without an entry in the ledger, or the other way round", `
			SELECT count(*) FROM (SELECT id FROM shop.orders WHERE status = 'cancelled') o
			FULL JOIN (SELECT ref FROM shop.ledger WHERE kind = 'cancel') l ON l.ref = o.id
			WHERE o.id IS NULL OR l.ref IS NULL`},
		{"orders whose total is not that of their items", `
			SELECT count(*) FROM shop.orders o
			LEFT JOIN (SELECT order_id, sum(quantity * price) AS total FROM shop.order_items GROUP BY 1) i ON i.order_id = o.id
			WHERE CASE o.status WHEN 'cancelled' THEN i.total IS NOT NULL ELSE i.total IS DISTINCT FROM o.total END`},
		{"products of which more or fewer were sold than the orders say", `
			SELECT count(*) FROM shop.stock s
			LEFT JOIN (SELECT product_id, sum(quantity) AS sold FROM shop.order_items GROUP BY 1) i ON i.product_id = s.product_id
			WHERE s.sold <> coalesce(i.sold, 0)`},
		{"products of which more or fewer were received than the ledger says", `
			SELECT count(*) FROM shop.stock s
			LEFT JOIN (SELECT ref, sum(amount) AS n FROM shop.ledger WHERE kind = 'restock' GROUP BY 1) l ON l.ref = s.product_id
			WHERE s.received <> s.opening + coalesce(l.n, 0)`},
		{"orders that the audit table saw change more or less often than the ledger", `
			SELECT count(*) FROM (SELECT order_id, count(*) AS n FROM shop.audit a JOIN shop.orders o ON o.id = a.order_id
				WHERE o.client IS NOT NULL GROUP BY 1) a
			FULL JOIN (SELECT ref, count(*) AS n FROM shop.ledger WHERE kind IN ('place', 'pay', 'cancel') GROUP BY 1) l ON l.ref = a.order_id
			WHERE a.n IS DISTINCT FROM l.n`},
	} {
		var n int64
		if err := tx.QueryRow(ctx, q.sql).Scan(&n); err != nil {
			return fmt.Errorf("count %s: %w", q.what, err)
		}
		if n > 0 {
			r.Unbalanced = append(r.Unbalanced, fmt.Sprintf("%d %s", n, q.what))
		}
	}
	return nil
}
