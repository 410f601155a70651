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
// and compares with the model after each step: what new readers find, and what one finds that goes
// along, which is at times far behind. Readers are served from memory, from the database, and from both.
//
// It fails when recent.pop does not move after, when recent.next looks for an end that is not less than
// pos, when records or pieces end a load one too early and go on one too late, or when take moves pos
// before the last piece.
func TestRandomHistory(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 7))
			files := vfs.NewCrashableMem()
			keeping := []int{0, 1, 3000}[seed%3]
			s := openKeeping(t, files, keeping)
			st := stream(t, s)
			var m model
			along := follow(st, 0)
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
					if along.r.pos < st.Info().Tail {
						along = follow(st, m.trimmed)
					}
				case op == 17:
					files = files.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
					s = openKeeping(t, files, keeping)
					st = stream(t, s)
					clear(spilled)
					along = follow(st, m.trimmed)
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
				along.read(t, rng.IntN(1+rng.IntN(20)), m.head)
				want := append([]string{}, m.from(along.from)...)
				equal(t, fmt.Sprintf("step %d: going along from %d", step, along.from), along.got, want[:min(len(want), len(along.got))])
				if t.Failed() {
					return
				}
			}
		})
	}
}

// A companion is a reader that goes along with the writer.
type companion struct {
	r    *Reader
	from change.LSN
	got  []string
}

func follow(st *Stream, from change.LSN) companion {
	return companion{r: st.Read(from), from: from, got: []string{}}
}

// read reads up to n chunks more.
func (c *companion) read(t *testing.T, n int, head change.LSN) {
	t.Helper()
	for ; n > 0 && c.r.pos < head; n-- {
		chunk, err := c.r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c.got = append(c.got, fmt.Sprintf("%d:%s", chunk.End, chunk.Data))
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
