// Package apply writes the transactions of a stream to a destination database, exactly once.
//
// Whole source transactions are grouped into one target transaction, together with the position
// they lead to (table ficus.progress), so the destination always stands at a source commit boundary
// and a restart at any moment neither loses nor repeats a row. A source transaction too large to
// hold is written in parts, in bounded memory, still in one target transaction.
//
// Four goroutines work while [Applier.Run] does:
//
//	fetch    chunks of raw pgoutput messages from the event store
//	collect  chunks -> rows of mapped tables -> batches of whole transactions
//	run      batches -> statements -> destination
//	hear     answers of the destination -> what is committed
//
// A batch grows while others are on their way and leaves at once when none is, so nothing needs
// tuning: latency is one commit, and under load a batch reaches its limits.
//
// A table is followed from its base, the snapshot that its rows were copied under: transactions that
// the base sees are passed over for that table (see base.go).
//
// Writing has a fast path and a slow one. The fast path folds a batch per table and key to its net
// effect, writes all rows of one shape (table, operation, columns) in one statement, and keeps several
// batches on their way (see lane). It may be wrong about order, never about the result: it either
// leaves what the source has, or the database refuses it (unique violation, row count). Then the batch
// is written again by the slow path, one statement per row, in source order. What the slow path cannot
// write stops the applier with a [RowError].
//
// Reading slots and storing events live in sync/source and eventstore; deciding what runs when, in
// sync/link.
package apply
