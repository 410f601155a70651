package eventstore

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ficus-migrate/ficus/change"
)

// A model is what a stream should hold.
type model struct {
	events  []string // "end:data", pieces of large transactions one by one
	ends    []change.LSN
	head    change.LSN
	durable change.LSN
	trimmed change.LSN // what Trim was asked for
}

// from returns the events after a position.
func (m *model) from(lsn change.LSN) (want []string) {
	for i, end := range m.ends {
		if end > lsn {
			want = append(want, m.events[i])
		}
	}
	return want
}

func (m *model) add(end change.LSN, data string) {
	m.events = append(m.events, fmt.Sprintf("%d:%s", end, data))
	m.ends = append(m.ends, end)
	m.head = end
}

// cut forgets what is after end: a crash.
func (m *model) cut(end change.LSN) {
	for len(m.ends) > 0 && m.ends[len(m.ends)-1] > end {
		m.ends, m.events = m.ends[:len(m.ends)-1], m.events[:len(m.events)-1]
	}
	m.head, m.durable = end, end
}

// TestRandomHistory writes, spills, syncs, trims, crashes (losing any part of what was not synced)
// and compares with the model after each step.
func TestRandomHistory(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 7))
			files := vfs.NewCrashableMem()
			s := open(t, files)
			st := stream(t, s)
			var m model
			spilled := map[uint32][]string{}
			for step := range 150 {
				switch op := rng.IntN(20); {
				case op < 12:
					randomBatch(t, rng, st, &m, spilled)
				case op < 15:
					if err := st.Sync(t.Context()); err != nil {
						t.Fatal(err)
					}
					m.durable = m.head
				case op < 17 && m.durable > 0:
					upTo := m.durable - change.LSN(rng.IntN(30))
					if upTo > m.durable { // wrapped below zero
						continue
					}
					m.trimmed = max(m.trimmed, upTo)
					if err := st.Trim(upTo); err != nil {
						t.Fatal(err)
					}
				case op == 17:
					files = files.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
					s = open(t, files)
					st = stream(t, s)
					clear(spilled)
					if st.Head() < m.durable || st.Head() > m.head || st.Durable() != st.Head() {
						t.Fatalf("step %d: head %s, durable %s after a crash; was %s, %s",
							step, st.Head(), st.Durable(), m.head, m.durable)
					}
					m.cut(st.Head())
				}
				if st.Head() != m.head || st.Durable() != m.durable {
					t.Fatalf("step %d: head %s, durable %s; want %s, %s", step, st.Head(), st.Durable(), m.head, m.durable)
				}
				from := m.trimmed
				if m.head > from {
					from += change.LSN(rng.Uint64N(uint64(m.head - from)))
				}
				equal(t, fmt.Sprintf("step %d: stream from %d", step, from), drain(t, st, from), m.from(from))
				if t.Failed() {
					return
				}
			}
		})
	}
}

func randomBatch(t *testing.T, rng *rand.Rand, st *Stream, m *model, spilled map[uint32][]string) {
	t.Helper()
	write(t, st, func(b *Batch) {
		for range 1 + rng.IntN(4) {
			end := m.head + 1 + change.LSN(rng.IntN(9))
			xid := uint32(rng.IntN(4))
			reserved := xid%2 == 1 // its first piece comes with its commit
			switch op := rng.IntN(6); {
			case op < 3:
				data := fmt.Sprintf("%0*d", rng.IntN(2000), end)
				b.Append(end, []byte(data))
				m.add(end, data)
			case op == 3:
				if reserved && spilled[xid] == nil {
					b.Reserve(xid)
					spilled[xid] = append(spilled[xid], "first")
				}
				data := fmt.Sprintf("piece %d of %d", len(spilled[xid]), xid)
				b.Spill(xid, []byte(data))
				spilled[xid] = append(spilled[xid], data)
			case op == 4 && spilled[xid] != nil:
				if reserved {
					b.CommitReserved(xid, end, []byte("first"))
				} else {
					b.CommitSpilled(xid, end)
				}
				for _, data := range spilled[xid] {
					m.add(end, data)
				}
				delete(spilled, xid)
			case op == 5 && rng.IntN(3) == 0:
				b.DropSpilled(xid)
				delete(spilled, xid)
			}
		}
	})
}
