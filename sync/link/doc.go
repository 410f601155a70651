// Package link keeps one database in step with another: it owns the slot, the publication, the
// replica identities and the stored stream of one direction, loads the first copy, and follows.
//
// A Link has a name, "ficus_<migration>_<direction>", and everything it makes carries that name:
// the replication slot and the publication on the origin, the stream in the event store, the
// progress row and the manifest on the destination. What Ficus must remember between runs is one record
// in the event store, written when the link is ready and not before, so every method can be killed and
// called again. A copy under way has a record of its own, with which it goes on.
//
// # Bases
//
// Tables may be copied under different snapshots: a copy that was interrupted goes on under a new one,
// Resync copies single tables anew, and Remap lets tables join. A transaction is applied to a table
// unless the table's snapshot, its base, sees it (docs/adr: base-by-visibility).
//
// # Order of preparation
//
// Replica identities first, then the publication, then the slot. A publication over a table
// without a usable identity would make the application's UPDATE and DELETE fail; and a change
// written before its table had REPLICA IDENTITY FULL would arrive without its old row.
//
// A Link is safe for concurrent use, but for two calls of Run, Load, Resync, Remap, Prepare or Drop at a time.
package link
