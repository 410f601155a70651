package main

import (
	"flag"
)

// sizes say how much data each scenario moves.
type sizes struct {
	tpcbScale, tpcbTransactions                   int
	insertRows                                    int
	mixedTransactions, mixedUpdates, mixedDeletes int
	copyScale, shopRows, pipeRows                 int
	lagRate, lagSeconds                           int
	networkTransactions, verifyScale              int
	growthScale, growthTransactions, growthRows   int
	promoteRows, promoteRate, promotions          int
	gatewayScale, gatewaySeconds                  int
}

// A size is one of them as a flag.
type size struct {
	to          *int
	name, about string
	full, quick int
}

func (s *sizes) all() []size {
	return []size{
		{&s.tpcbScale, "tpcb-scale", "catchup-tpcb: pgbench's scale, 100,000 accounts each", 10, 1},
		{&s.tpcbTransactions, "tpcb-transactions", "catchup-tpcb: transactions to catch up with", 200_000, 10_000},
		{&s.insertRows, "insert-rows", "catchup-insert: rows inserted in one transaction", 1_000_000, 50_000},
		{&s.mixedTransactions, "mixed-transactions", "catchup-mixed: transactions to catch up with", 100_000, 5_000},
		{&s.mixedUpdates, "mixed-updates", "catchup-mixed: rows updated in each transaction", 5, 5},
		{&s.mixedDeletes, "mixed-deletes", "catchup-mixed: rows deleted in each transaction", 2, 2},
		{&s.copyScale, "copy-scale", "copy: pgbench's scale, 100,000 rows each", 50, 2},
		{&s.shopRows, "shop-rows", "copy-shop: rows in all tables", 3_000_000, 60_000},
		{&s.pipeRows, "pipe-rows", "pipe: rows of the table", 3_000_000, 100_000},
		{&s.verifyScale, "verify-scale", "verify: pgbench's scale, 100,000 rows each", 73, 2},
		{&s.growthScale, "growth-scale", "growth: pgbench's scale at 1 ×", 5, 1},
		{&s.growthTransactions, "growth-transactions", "growth: TPC-B transactions at 1 ×", 25_000, 1_000},
		{&s.growthRows, "growth-rows", "growth: rows of one transaction at 1 ×", 500_000, 10_000},
		{&s.lagRate, "lag-rate", "lag: transactions a second", 1000, 200},
		{&s.networkTransactions, "network-transactions", "network: transactions to catch up with", 100_000, 5_000},
		{&s.promoteRows, "promote-rows", "promote: rows in all tables", 200_000, 10_000},
		{&s.promoteRate, "promote-rate", "promote: transactions a second", 500, 100},
		{&s.promotions, "promotions", "promote: promotions in each round, with a rollback after each", 20, 3},
		{&s.gatewayScale, "gateway-scale", "gateway: pgbench's scale, 100,000 rows each", 10, 1},
		{&s.gatewaySeconds, "gateway-seconds", "gateway: for how long each time", 20, 2},
		{&s.lagSeconds, "lag-seconds", "lag: for how long, in each round", 60, 8},
	}
}

// register makes a flag of each size.
func (s *sizes) register(fs *flag.FlagSet) {
	for _, z := range s.all() {
		fs.IntVar(z.to, z.name, z.full, z.about+"; --quick: "+thousands(z.quick))
	}
}

// shrink sets those whose flag was not given to what --quick takes.
func (s *sizes) shrink(given map[string]bool) {
	for _, z := range s.all() {
		if !given[z.name] {
			*z.to = z.quick
		}
	}
}
