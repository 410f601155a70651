// Package change is the vocabulary of a replication stream: positions, relations, rows, and the
// pgoutput messages that carry them.
//
// It does no I/O. A [Decoder] walks raw pgoutput messages without copying: the values it returns
// alias the message, and live until the next call of Decode. Whoever keeps a value copies it.
//
// Transactions are identified by the LSN of the end of their commit record, never by the LSN of
// their beginning: PostgreSQL streams in commit order, and the order in which transactions began
// is another one.
//
// Rows of subtransactions that were rolled back do not come out of a Decoder: where a transaction was
// streamed before it committed, marks of our own say which they are (see [KindSubtransaction]).
//
// A chunk is the unit in which raw messages travel through the event store: messages one after
// another, each behind its length (see [AppendFrame]).
package change
