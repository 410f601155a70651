package source

import (
	"fmt"
	"strings"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// A server that was restored from a copy of its disk has the system identifier and the timeline of the
// one that was read, and reaches every position that was read with another past. So a slot that was not
// told of the newest stored transaction is asked to begin with that one: the server sends it once more,
// and it is compared and not stored. A slot that was told of it is of a server that had it.

// resume returns from where on a slot, as it is before anybody reads it, is asked for transactions,
// and which one it then has to send before all others; nil when it cannot be asked for that.
func (r *Reader) resume(slot State) (from change.LSN, again *eventstore.Newest, err error) {
	if slot.Active { // its position may still move: with what was last said over another connection
		return 0, nil, busyError{slot.ActivePID}
	}
	head := r.cfg.Stream.Head()
	n, known, err := r.cfg.Stream.Newest()
	switch {
	case err != nil:
		return 0, nil, err
	case !known, n.Asked != r.asked(), max(slot.ConfirmedFlush, slot.Restart) > n.Commit:
		return head, nil, nil
	}
	// PostgreSQL compares the position with where commit records begin.
	// Source: src/backend/replication/logical/snapbuild.c, SnapBuildXactNeedsSkip.
	return n.Commit, &n, nil
}

// asked is what the server is asked for, as far as that decides whether it has anything to send of a
// transaction.
func (r *Reader) asked() string { return strings.Join(r.cfg.Publications, ",") }

// A busyError says that a slot is still being read: as a rule by the process of a connection that broke.
// It counts as a time-out, so that it is tried again.
type busyError struct{ pid int }

func (e busyError) Error() string { return fmt.Sprintf("slot is active for pid %d", e.pid) }
func (busyError) Timeout() bool   { return true }
func (busyError) Temporary() bool { return true }

// recognise compares a transaction that committed with the one that has to come before all others.
func (p *packer) recognise(this eventstore.Newest) error {
	switch {
	case p.again == nil || this.Commit < p.again.Commit:
		return nil
	case this == *p.again:
		p.again = nil
		return nil
	}
	return forked(p.again, fmt.Sprintf("it has transaction %d, which committed at %s and ends at %s", this.XID, this.Commit, this.End))
}

// passed reports whether the server may be there before it has sent what has to come first.
func (p *packer) passed(end change.LSN) error {
	if end < p.again.End {
		return nil
	}
	return forked(p.again, fmt.Sprintf("it has read its WAL up to %s without it", end))
}

func forked(want *eventstore.Newest, instead string) error {
	return hint.Wrap(fmt.Errorf("%w: the newest stored transaction, %d, committed at %s and ends at %s; the server does not have it: %s",
		ErrForked, want.XID, want.Commit, want.End, instead),
		"the source was restored from a copy of its disk, or replaced by one: bring the original back; otherwise the target holds "+
			"changes that the source has lost: start the migration again with a new copy")
}
