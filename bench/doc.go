// Command bench compares Ficus with other ways to do the same, on this machine, in one run.
//
// Each [scenario] prepares data in two PostgreSQL clusters of its own, lets Ficus and every peer that
// is installed do the same work in turn (the order changes from round to round), and makes sure after
// each run that both sides hold the same rows; a run that fails that ends the benchmark. What is
// printed are medians over the rounds, the spread, and the ratio of peer to Ficus round by round:
// absolute times say more about the machine than about the programs.
//
//	go run ./bench                      everything, full size
//	go run ./bench --quick              everything, small
//	go run ./bench --only copy,lag      some of it
//	go run ./bench --help               sizes, versions, output files
//
// Ficus runs as its users run it: the built binary, its own data directory, default settings. What the
// peers are told is printed with the results. See docs/benchmarks.md.
package main
