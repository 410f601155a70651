// Package shop is an application to migrate: a web shop's database, and customers and staff who use
// it while it moves.
//
// [Schema] and [Fill] make the database. A [Load] works in it through two addresses, one to write and
// one to read only, as an application would: transactions of one and of several statements,
// prepared, simple and pipelined. It keeps a [Ledger] of what the database acknowledged, outside the
// database. [Ledger.Check] compares the two afterwards: a transaction that was acknowledged and
// is not there was lost, one that is there twice was doubled, and the books of the shop (stock, payments,
// totals, audit) must balance.
//
// Nothing here knows Ficus. A Load and a Ledger may be used by several goroutines.
package shop
