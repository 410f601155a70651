// Package buffer holds clients while ownership of the data moves: an ordered queue, bounded in
// number and in time.
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
// The queue starts no goroutines and is safe for concurrent use.
package buffer
