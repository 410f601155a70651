// Package eventstore keeps, durably and in one directory, everything that Ficus must not forget:
// streams of committed transactions, and small records such as journals and settings.
//
// A [Stream] is append-only. Its unit is the chunk: framed pgoutput messages ([change.AppendFrame])
// of one or many whole transactions, found under the end LSN of the last of them. One goroutine
// writes a stream; any number may read it, each at its own pace, and readers see a batch as soon as
// it is committed, before it is durable. [Stream.Sync] makes it durable; what a process acknowledges
// to a peer is [Stream.Durable], never [Stream.Head].
//
// A transaction too large to hold is spilled under its xid while it arrives and becomes visible, at
// its place in commit order, by [Batch.CommitSpilled]; many may be open at a time. Of one whose first
// chunk depends on how it ends that chunk is kept free ([Batch.Reserve]). Spills without a commit
// vanish when the stream is opened again. [Batch.Newest] says which transaction the head is the end of,
// for who has to know whether a source still has it.
//
// A [Bucket] holds small records, every write of which is durable when the call returns.
//
// The directory is locked: one process at a time. Disk errors while writing the log end the process
// (Config.Fatal, or a panic), because nobody can say any more what is durable; everything here is made
// to be killed and opened again.
// All types but [Batch] and [Reader] are safe for concurrent use.
package eventstore
