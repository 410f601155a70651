package source_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/sync/source"
)

// TestIdleSlotMoves: in a database where nothing happens, the slot lets the WAL of its neighbour go: not
// only is it confirmed, the server need no longer keep it (restart_lsn). That takes no writing to the
// source, on any version, and neither a destination that is at work.
// Broken on purpose: an ackable that never returns more than what is stored keeps all of it.
func TestIdleSlotMoves(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 14, 15, 16, 17, 18} {
		for _, ack := range []source.AckPolicy{source.AckStored, source.AckApplied} {
			t.Run(fmt.Sprintf("%d, %s", major, ack), func(t *testing.T) {
				t.Parallel()
				db, neighbour := pgtest.DB(t, pgtest.Version(major)), pgtest.DB(t, pgtest.Version(major))
				g := newRig(t, db, "CREATE TABLE public.t (id int PRIMARY KEY)")
				g.cfg.Ack = ack
				g.cfg.Applied = func() change.LSN { return g.cfg.Start } // the applier stands, and has nothing to do
				_, stop := g.start(t)
				neighbour.Exec(t, "CREATE TABLE n (v text); INSERT INTO n SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
				upTo := g.now(t)
				conn := neighbour.Conn(t)
				pgtest.Eventually(t, "the slot to need nothing of it", func() bool {
					neighbour.Exec(t, "INSERT INTO n VALUES ('y')")
					neighbour.Exec(t, "CHECKPOINT")
					s, err := source.SlotState(t.Context(), conn, g.cfg.Slot)
					return err == nil && s.Restart >= upTo && s.ConfirmedFlush >= upTo
				})
				if err := stop(); !errors.Is(err, errStopped) {
					t.Error(err)
				}
			})
		}
	}
}
