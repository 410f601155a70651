package migrate

import (
	"errors"
	"fmt"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// An Observer is a Router that sees its clients, and how reads fare.
type Observer interface {
	Router
	Traffic() Traffic
}

// Traffic is how reads fare since the percentage changed last; of shadow reads, since the process began.
type Traffic struct {
	Percent int         `json:"percent"` // of the reads on the side that does not own, now
	Owner   ReadFigures `json:"owner"`
	Other   ReadFigures `json:"other"`
	Waited  int64       `json:"waited"`   // reads that waited for a write of their user
	OnOwner int64       `json:"on_owner"` // reads that the owner answered because of one
	// Fault says why the router took reads back by itself, since they were routed last.
	Fault   string         `json:"fault,omitempty"`
	Shadow  *ShadowFigures `json:"shadow,omitempty"`  // nil without shadow reads
	Clients *ClientFigures `json:"clients,omitempty"` // nil where they are not counted
}

// ClientFigures are of the clients of every gateway together. What is counted began with the process.
type ClientFigures struct {
	Connected    int        `json:"connected"`
	Held         int        `json:"held"` // wait because of a promotion, now
	Transactions int64      `json:"transactions"`
	Moved        int64      `json:"moved"`   // sessions that went to the other database
	Ended        int64      `json:"ended"`   // sessions that could not
	Refused      int64      `json:"refused"` // waited too long, or found too many waiting
	Asks         int64      `json:"asks"`    // times that the databases were asked who owns
	Stall        StallStats `json:"stall"`   // what the last hold made them wait
}

// ReadFigures are of one side.
type ReadFigures struct {
	Reads  int64         `json:"reads"`
	Failed int64         `json:"failed"`
	P50    time.Duration `json:"p50_ns"`
	P95    time.Duration `json:"p95_ns"`
}

// ShadowFigures are of reads that were run on both sides.
type ShadowFigures struct {
	Compared   int64          `json:"compared"`   // whose answer was the same twice on the owner
	Mismatched int64          `json:"mismatched"` // of them, answered otherwise by the other side
	Noise      int64          `json:"noise"`      // that the owner itself answered otherwise the second time
	LeftOut    int64          `json:"left_out"`   // the queue was full, the other side behind or away
	OwnerP95   time.Duration  `json:"owner_p95_ns"`
	OtherP95   time.Duration  `json:"other_p95_ns"`
	Mismatches []ReadMismatch `json:"mismatches,omitempty"`
}

// A ReadMismatch is a query, its values masked, that the two sides answer differently.
type ReadMismatch struct {
	Query   string    `json:"query"`
	Kind    string    `json:"kind"` // rows, order, values, columns, error
	Columns []string  `json:"columns,omitempty"`
	Count   int64     `json:"count"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
}

// traffic asks the router, nil when it does not see reads.
func (m *Migration) traffic() *Traffic {
	o, ok := m.cfg.Router.(Observer)
	if !ok {
		return nil
	}
	t := o.Traffic()
	return &t
}

// readFault is why the router took reads back by itself, nil when it did not.
func (m *Migration) readFault() error {
	t := m.traffic()
	if t == nil || t.Fault == "" {
		return nil
	}
	return hint.Wrap(fmt.Errorf("%w: reads are back on the owner", errors.New(t.Fault)),
		"mend what ails the target, then: ficus resume %s", m.cfg.Name)
}
