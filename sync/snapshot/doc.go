// Package snapshot copies the rows of one exported snapshot into the target's tables.
//
// Bytes go from COPY to COPY as they are; rules are evaluated by the source, inside the SELECT that
// is copied. Large tables are cut into chunks (ranges of ctid, which is stable inside one
// snapshot), and several workers take chunks from one queue, the largest table first. Every worker
// reads under the same snapshot, so what arrives is exactly what the source held at its LSN,
// whatever the application writes meanwhile.
//
// A chunk is recorded in the transaction that stores its rows, where a manifest is kept (see
// sync/manifest). A [Run] that was interrupted can then be followed by another, under another snapshot:
// what is finished stays, and is brought to that snapshot where a table was copied in part. Tables of
// which nothing is kept are emptied first. When Run returns nil, the rows are durable at the target.
//
// The exported snapshot has to stay alive while Run works: whoever exported it keeps its
// transaction open. Creating the target's tables, and indexes after the copy, belongs to
// schema/dump; slots and publications to sync/source.
package snapshot
