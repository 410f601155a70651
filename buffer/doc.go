// Package buffer holds clients while ownership of the data moves: [Queue] is an ordered queue, bounded in
// number and in time. [Commands] is a log that keeps commands, durably, until their data server has
// answered them.
//
// # The queue
//
// A caller that finds the queue closed takes a [Ticket] in arrival order, waits for the decision
// ([Ticket.Wait]), makes itself ready for whatever was decided, and then goes when its turn comes
// ([Ticket.Turn], [Ticket.Done]):
//
//	arrive ── Join ──► held ── Wait ──► released ── (prepare) ── Turn ──► goes ── Done
//	             │               │
//	             └─ Full         └─ Expired, Closed, or the caller's own context
//
// What it promises:
//
//   - Order. Tickets go in the order in which they joined, also while the queue drains: whoever
//     arrives then joins behind. The order yields to progress in one case only: a ticket that is
//     not done [Config.Grace] after the release no longer keeps those behind it waiting.
//   - Answers. Every Wait and Turn returns: with nil, with an [Error] that may be retried, or with
//     the cause of the caller's context. A ticket whose wait failed has left the queue.
//   - Bounds. At most [Config.MaxHeld] tickets are in the queue. The newest is refused, never the
//     oldest evicted, so that a refusal cannot reorder what one client sent. No ticket waits for a
//     decision longer than [Config.MaxWait].
//
// The queue starts no goroutines.
//
// # The log of commands
//
//	Accept ──► waiting ──► sending ──► answered ── Keep ──► forgotten
//	             ▲  ▲         │
//	             │  └─ again ─┤
//	          Requeue         └──► dead ── Drop ──► dropped
//
// What it promises, through a kill at any moment:
//
//   - Durable. A command is on disk when Accept returns, an answer when Wait does. Those who write at the
//     same time share an fsync.
//   - Order. Commands with the same [Command.Order] are sent one after the other, as they were
//     accepted; the others side by side, [CommandsConfig.Parallel] at a time.
//   - At least once. A command whose answer was lost is sent again. With a data server that keeps the
//     keys of what it has done, in the transaction that does it, each is done once.
//   - One answer. While it is kept ([CommandsConfig.Keep]) a key gets the answer that it got first, and
//     another command under it is refused.
//   - Bounds. [CommandsConfig.MaxCommands] and [CommandsConfig.MaxBytes]; beyond them a command is
//     refused before anything is kept of it. Memory holds what is not over, without payloads.
//
// [Commands.Hold] stops the sending while ownership moves; nothing fails for it, and nothing is lost when
// nobody ever releases it.
//
// All types are safe for concurrent use, but for [Ticket].
package buffer
