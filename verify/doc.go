// Package verify proves that the tables of two databases hold the same rows, or says which rows and
// columns differ.
//
// # What the answer means
//
// An exact comparison with a [Follower] shows both databases at one instant: the follower stops, a
// temporary slot on the source exports a snapshot together with its LSN, the follower moves on to
// that LSN, a snapshot of the target is taken, and the follower goes on. Everything after that
// reads the two snapshots only, so rows that change meanwhile are never reported and differences
// are never missed. Without a Follower both sides are taken as they are, and the report says
// whether the source stood still.
//
// A [Session.Delta] compares only the given keys, so that a proof made earlier plus the keys touched
// since is a proof of the whole database, in a time that does not depend on its size.
//
// "Could not tell" is an error, never an empty list of differences: a chunk that fails, a snapshot
// that is lost, a table that is truncated or rewritten while it is read, a checksum that differs
// although no row does.
//
// # How rows are compared
//
// PostgreSQL computes a 64-bit hash of every row, seeded afresh by every session, and sums the
// hashes of a chunk, which is a range of blocks. Sums do not depend on order, so each side reads
// its own blocks in physical order at full speed, and the chunks need not match: only the totals of
// a table do. A table whose totals differ is read again in buckets of the key's hash, the rows of
// differing buckets are merged by key, and the differing columns of some rows are looked up by key.
// A table without a key is compared as a multiset of rows.
//
// Two rows count as equal when every column has the same text: 1.0 and 1.00, 0 and -0, NULL and the
// empty string, values that only a collation takes for equal are different. A [Method] keeps that
// promise, and the report names the one used for each table. The chance that a difference stays
// hidden behind equal totals is 2^-64 for each table.
//
// Rules of a mapping apply: the source evaluates expressions and conditions, and the result is
// compared with what the target stores. Generated columns are not compared: nobody writes them.
package verify
