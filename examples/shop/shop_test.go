package shop_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/examples/shop"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

func TestMain(m *testing.M) {
	pgtest.Main(m, pgtest.CheckLeaks())
}

const size = 2000

// newShop returns a filled shop.
func newShop(t *testing.T) *pgtest.Database {
	t.Helper()
	db := pgtest.DB(t)
	rows, err := shop.Fill(t.Context(), db.Conn(t), size)
	if err != nil {
		t.Fatal(err)
	}
	if rows < size*9/10 || rows > size*12/10 {
		t.Errorf("filled %d rows, want about %d", rows, size)
	}
	return db
}

// work lets clients make n transactions at least.
func work(t *testing.T, db *pgtest.Database, ledger *shop.Ledger, n int64) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() {
		done <- shop.Load{Write: db.URL, Read: db.URL, Rate: 2000, Writers: 8, Readers: 4, Ledger: ledger}.Run(ctx)
	}()
	pgtest.Eventually(t, "the transactions are made", func() bool {
		got := ledger.Totals()
		return got.Acknowledged >= n && got.Reads > 20 || got.Failed+got.InDoubt+got.ReadsFailed > 0
	})
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := ledger.Totals(); got.Failed+got.InDoubt+got.ReadsFailed+got.Torn > 0 {
		t.Errorf("%+v: %v", got, ledger.Errors())
	}
}

func check(t *testing.T, db *pgtest.Database, ledger *shop.Ledger) *shop.Report {
	t.Helper()
	r, err := ledger.Check(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestFillBalances(t *testing.T) {
	t.Parallel()
	db := newShop(t)
	r := check(t, db, &shop.Ledger{})
	if diff := cmp.Diff(&shop.Report{Servers: map[int]int64{}}, r); diff != "" {
		t.Errorf("a fresh shop (-want +got):\n%s", diff)
	}
	for _, table := range []string{"customers", "products", "stock", "orders", "order_items", "payments", "events", "audit"} {
		if n := db.Int(t, "SELECT count(*) FROM shop."+table); n < 10 {
			t.Errorf("%s has %d rows", table, n)
		}
	}
}

func TestLoadIsFoundAsItWasAcknowledged(t *testing.T) {
	t.Parallel()
	db := newShop(t)
	ledger := &shop.Ledger{}
	began := time.Now()
	work(t, db, ledger, 300)
	work(t, db, ledger, 600) // other clients
	r := check(t, db, ledger)
	want := ledger.Acknowledged()
	if !r.OK() || r.Found != want || r.Acknowledged != want || r.InDoubt != 0 || r.Servers[db.Port()] != want {
		t.Errorf("%d acknowledged: %+v", want, *r)
	}
	for _, kind := range []shop.Kind{shop.Place, shop.Pay, shop.Cancel, shop.Restock, shop.Move, shop.Reprice} {
		if db.Int(t, "SELECT count(*) FROM shop.ledger WHERE kind = $1", string(kind)) == 0 {
			t.Errorf("no transaction of kind %s", kind)
		}
	}
	all := ledger.Latency(began, time.Now())
	if int64(all.Transactions) != want || all.P50 <= 0 || all.P50 > all.P99 || all.P99 > all.Max {
		t.Errorf("latency of %d transactions: %+v", want, all)
	}
	if none := ledger.Latency(began.Add(-2*time.Hour), began.Add(-time.Hour)); none != (shop.Latency{}) {
		t.Errorf("latency before the load: %+v", none)
	}
}

// Every way in which a database can differ from what was acknowledged must show.
func TestCheckCatches(t *testing.T) { //nolint:tparallel // the cases share a database
	t.Parallel()
	db := newShop(t)
	ledger := &shop.Ledger{}
	work(t, db, ledger, 200)
	n := ledger.Acknowledged()
	conn := db.Conn(t)

	const order = `(SELECT max(ref) FROM shop.ledger WHERE kind = 'pay')`
	for name, c := range map[string]struct {
		sql      string
		want     shop.Report
		balanced bool
	}{
		"lost":           {`DELETE FROM shop.ledger WHERE id = (SELECT max(id) FROM shop.ledger WHERE kind = 'move')`, shop.Report{Found: n - 1, Missing: 1}, true},
		"lost entirely":  {`DELETE FROM shop.ledger WHERE id = (SELECT max(id) FROM shop.ledger WHERE kind = 'place')`, shop.Report{Found: n - 1, Missing: 1}, false},
		"doubled":        {`INSERT INTO shop.ledger (client, seq, kind, ref) SELECT client, seq, kind, ref FROM shop.ledger WHERE kind = 'move' ORDER BY id LIMIT 1`, shop.Report{Found: n - 1, Doubled: 1}, true},
		"tripled":        {`INSERT INTO shop.ledger (client, seq, kind, ref) SELECT client, seq, kind, ref FROM (SELECT * FROM shop.ledger WHERE kind = 'move' ORDER BY id LIMIT 1) l, generate_series(1, 2)`, shop.Report{Found: n - 1, Doubled: 1}, true},
		"altered":        {`UPDATE shop.ledger SET ref = ref + 1 WHERE id = (SELECT max(id) FROM shop.ledger WHERE kind = 'move')`, shop.Report{Found: n - 1, Altered: 1}, true},
		"unexpected":     {`INSERT INTO shop.ledger (client, seq, kind, ref) VALUES (1, 1000000, 'move', 1)`, shop.Report{Found: n, Unexpected: 1}, true},
		"order lost":     {`DELETE FROM shop.payments WHERE order_id = ` + order + `; DELETE FROM shop.orders WHERE id = ` + order, shop.Report{Found: n}, false},
		"payment twice":  {`INSERT INTO shop.payments (order_id, amount, method) SELECT order_id, amount, method FROM shop.payments WHERE order_id = ` + order, shop.Report{Found: n}, false},
		"update lost":    {`UPDATE shop.stock SET received = received - 1 WHERE product_id = (SELECT min(ref) FROM shop.ledger WHERE kind = 'restock')`, shop.Report{Found: n}, false},
		"update doubled": {`UPDATE shop.stock SET sold = sold + 1 WHERE product_id = 1`, shop.Report{Found: n}, false},
		"trigger fired":  {`INSERT INTO shop.audit (order_id, became) VALUES (` + order + `, 'paid')`, shop.Report{Found: n}, false},
		"item lost":      {`DELETE FROM shop.order_items WHERE (order_id, line) = (` + order + `, 1)`, shop.Report{Found: n}, false},
	} {
		// One after the other: each is undone by a copy of the tables it changes.
		t.Run(name, func(t *testing.T) {
			db.Exec(t, `CREATE SCHEMA kept; CREATE TABLE kept.ledger AS SELECT * FROM shop.ledger; CREATE TABLE kept.stock AS SELECT * FROM shop.stock;
				CREATE TABLE kept.orders AS SELECT * FROM shop.orders; CREATE TABLE kept.order_items AS SELECT * FROM shop.order_items;
				CREATE TABLE kept.payments AS SELECT * FROM shop.payments; CREATE TABLE kept.audit AS SELECT * FROM shop.audit`)
			if _, err := conn.Exec(t.Context(), `SET session_replication_role = replica; `+c.sql); err != nil {
				t.Fatal(err)
			}
			got := check(t, db, ledger)
			c.want.Acknowledged = n
			if diff := cmp.Diff(c.want, *got, cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "Unbalanced" || p.String() == "Servers" }, cmp.Ignore())); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if got.OK() || len(got.Unbalanced) == 0 != c.balanced {
				t.Errorf("OK %v, unbalanced %q", got.OK(), got.Unbalanced)
			}
			_, err := conn.Exec(t.Context(), `TRUNCATE shop.ledger, shop.stock, shop.orders, shop.order_items, shop.payments, shop.audit;
				INSERT INTO shop.ledger OVERRIDING SYSTEM VALUE SELECT * FROM kept.ledger; INSERT INTO shop.orders SELECT * FROM kept.orders;
				INSERT INTO shop.stock SELECT product_id, opening, received, sold FROM kept.stock; INSERT INTO shop.order_items SELECT * FROM kept.order_items;
				INSERT INTO shop.payments SELECT * FROM kept.payments; INSERT INTO shop.audit SELECT * FROM kept.audit; DROP SCHEMA kept CASCADE`)
			if err != nil {
				t.Fatal(err)
			}
			if r := check(t, db, ledger); !r.OK() {
				t.Fatalf("not undone: %+v", *r)
			}
		})
	}
}

func TestLoadNeedsAShop(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	err := shop.Load{Write: db.URL, Ledger: &shop.Ledger{}}.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "start the load") {
		t.Errorf("a load without a shop: %v", err)
	}
}
