// Package source reads the changes of a database: it makes the publication and the slot there, and
// stores what the slot streams in an event store.
//
// A [Reader] keeps the raw pgoutput messages (text) and looks only at where transactions begin and
// end, and at descriptions of relations, which it pins. Small transactions are packed into chunks, one
// of more than a megabyte is spilled while it arrives; memory does not grow with either. Servers from
// version 14 on send large transactions before they commit (protocol version 2): these are spilled
// side by side, and what is stored of them are the messages of version 1, with marks that tell which
// subtransactions were rolled back. Transactions are known by the end of their commit record, and those which the
// stream already holds are dropped, so that a reconnect neither loses nor doubles any. A reconnect lets
// the server send the newest of them again where it can, and compares: a server with another past is not
// read on (ErrForked).
//
// Three loops share a connection and nothing else: one receives, one makes durable, one tells the
// server how far it may forget. None waits for those who read the stream, so the server hears from
// us however slowly changes are applied. What it hears is at most [eventstore.Stream.Durable]
// (AckStored) or what the destination holds (AckApplied); positions without changes are
// acknowledged when nothing before them is outstanding, so that a quiet database does not keep WAL.
package source
