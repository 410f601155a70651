package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/ficus-migrate/ficus/bench/lab"
)

// generators is how many sessions pgbench writes with.
const generators = 8

// workTPCB is what pgbench writes: small transactions, a few rows of which are changed by all.
func workTPCB() work {
	return work{
		name: "tpcb", title: "Catch-up: TPC-B transactions", goal: 2,
		about: func(s *sizes) string {
			return fmt.Sprintf("%s transactions of pgbench's TPC-B (3 updates, 1 insert each) on scale %d, written by %d sessions while nobody followed.",
				thousands(s.tpcbTransactions), s.tpcbScale, generators)
		},
		fill: func(ctx context.Context, b *bench, db string) error {
			return b.pgbenchInit(ctx, b.Source, db, b.size.tpcbScale)
		},
		write: func(ctx context.Context, b *bench, db string) error { return b.tpcb(ctx, db, b.size.tpcbTransactions) },
	}
}

// workInsert is a load of many rows at once.
func workInsert() work {
	return work{
		name: "insert", title: "Catch-up: rows inserted in one transaction", goal: 1.3, streams: true,
		about: func(s *sizes) string {
			return fmt.Sprintf("%s rows (bigint key, int, text of 32 characters, timestamptz, numeric) inserted in one transaction while nobody followed.", thousands(s.insertRows))
		},
		fill: func(ctx context.Context, b *bench, db string) error {
			return b.Source.Exec(ctx, db, itemsTable)
		},
		write: func(ctx context.Context, b *bench, db string) error { return b.insertItems(ctx, db, b.size.insertRows) },
	}
}

// workMixed is small transactions, no two of which meet the same row.
func workMixed() work {
	return work{
		name: "mixed", title: "Catch-up: updates and deletes", goal: 1.5, streams: true,
		about: func(s *sizes) string {
			return fmt.Sprintf("%s updates and %s deletes in %s transactions of %d and %d, scattered over a table of %s rows, while nobody followed. No row is changed twice.",
				thousands(s.mixedTransactions*s.mixedUpdates), thousands(s.mixedTransactions*s.mixedDeletes), thousands(s.mixedTransactions),
				s.mixedUpdates, s.mixedDeletes, thousands(s.mixedRows()))
		},
		fill: func(ctx context.Context, b *bench, db string) error {
			if err := b.Source.Exec(ctx, db, itemsTable); err != nil {
				return err
			}
			return b.insertItems(ctx, db, b.size.mixedRows())
		},
		write: mixedWrites,
	}
}

// mixedRows leaves three of ten rows as they are.
func (s *sizes) mixedRows() int {
	return s.mixedTransactions * (s.mixedUpdates + s.mixedDeletes) * 10 / 7
}

const itemsTable = `CREATE TABLE public.items (id bigint PRIMARY KEY, n int NOT NULL, name text NOT NULL, at timestamptz NOT NULL, price numeric(12, 2))`

// insertItems inserts rows 0 to n-1 in one transaction.
func (b *bench) insertItems(ctx context.Context, db string, n int) error {
	return b.Source.Exec(ctx, db, fmt.Sprintf(`INSERT INTO public.items
		SELECT i, i %% 1000, md5(i::text), timestamptz '2026-01-01' + i * interval '1 s', i %% 100000 / 100.0 FROM generate_series(0, %d) i`, n-1))
}

// mixedWrites commits small transactions in a loop on the server. Multiplying by a prime that does not
// divide the number of rows scatters them and meets each row once.
func mixedWrites(ctx context.Context, b *bench, db string) error {
	const prime = 7_368_787
	s := b.size
	return b.Source.Exec(ctx, db, "SET synchronous_commit = off", fmt.Sprintf(`DO $$
		DECLARE
			updates constant bigint := %d; deletes constant bigint := %d; transactions constant bigint := %d;
			prime constant bigint := %d; total constant bigint := %d;
		BEGIN FOR i IN 0 .. transactions - 1 LOOP
			UPDATE public.items SET n = n + 1, name = md5(name)
				WHERE id = ANY (ARRAY(SELECT (i * updates + k) * prime %% total FROM generate_series(0, updates - 1) k));
			DELETE FROM public.items
				WHERE id = ANY (ARRAY(SELECT (transactions * updates + i * deletes + k) * prime %% total FROM generate_series(0, deletes - 1) k));
			COMMIT;
		END LOOP; END $$`, s.mixedUpdates, s.mixedDeletes, s.mixedTransactions, prime, s.mixedRows()))
}

// pgbenchInit makes pgbench's tables.
func (b *bench) pgbenchInit(ctx context.Context, c *lab.Cluster, db string, scale int) error {
	_, _, err := lab.Run(ctx, b.tools.pgbench, "-i", "-q", "-s", strconv.Itoa(scale), c.URL(db))
	return err
}

// tpcb writes TPC-B transactions. They need not wait for the disk: who follows cannot tell.
func (b *bench) tpcb(ctx context.Context, db string, transactions int) error {
	_, err := b.pgbench(ctx, b.Source.URL(db)+"&options=-csynchronous_commit%3Doff", "-t", strconv.Itoa(max(1, transactions/generators)))
	return err
}

// pgbench writes TPC-B transactions and returns what pgbench printed.
func (b *bench) pgbench(ctx context.Context, url string, args ...string) (string, error) {
	args = append([]string{"-n", "-M", "prepared", "-c", strconv.Itoa(generators), "-j", "2"}, args...)
	said, _, err := lab.Run(ctx, b.tools.pgbench, append(args, url)...)
	return said, err
}
