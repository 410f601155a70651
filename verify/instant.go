package verify

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
)

// slotWait is how long a slot may take before the log says what it waits for.
const slotWait = 5 * time.Second

// An instant is what both sides' workers see until thaw.
type instant struct {
	lsn    change.LSN // of the source
	time   time.Time
	same   bool // both sides show the source's state at lsn
	paused time.Duration

	stopped time.Time // when applying began to stand still
}

const beginSQL = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

// freeze opens one snapshot on each side for all workers.
func (s *Session) freeze(ctx context.Context, follower Follower) (instant, error) {
	if follower != nil {
		s.atRest = false
		return s.freezeFollowing(ctx, follower)
	}
	at, err := s.freezeAtRest(ctx)
	s.atRest = !at.same
	return at, err
}

// freezeFollowing takes the source's snapshot and LSN from a temporary slot, and the target's where
// the follower stands at that LSN.
func (s *Session) freezeFollowing(ctx context.Context, follower Follower) (instant, error) {
	at, exported, err := s.meet(ctx, follower)
	if err != nil {
		return at, err
	}
	return at, s.nodes[target].adopt(ctx, exported.snapshot, 1)
}

// meet opens both snapshots while the follower stands still, and shares the source's.
func (s *Session) meet(ctx context.Context, follower Follower) (at instant, exported export, err error) {
	at, goOn, err := s.stand(ctx, follower)
	if err != nil {
		return at, export{}, err
	}
	defer goOn()
	exported, err = s.nodes[target].export(ctx)
	at.paused = time.Since(at.stopped)
	return at, exported, err
}

// stand stops the follower at an instant, until goOn, and gives the source's workers the snapshot of it.
// The follower is stopped before the slot is made, else it could be past its LSN already.
func (s *Session) stand(ctx context.Context, follower Follower) (at instant, goOn func(), err error) {
	at.same = true
	hold, err := follower.StopAt(ctx, 0)
	if err != nil {
		return at, nil, fmt.Errorf("stop the follower: %w", err)
	}
	at.stopped = time.Now()
	defer func() {
		if err != nil {
			hold()
		}
	}()
	snapshot, drop, err := s.createSlot(ctx, &at)
	if err != nil {
		return at, nil, err
	}
	err = s.nodes[source].adopt(ctx, snapshot, 0)
	drop() // the snapshot is the workers' now, and the slot would keep WAL
	if err != nil {
		return at, nil, err
	}
	if err := pg.AwaitSnapshot(ctx, s.nodes[source].workers[0]); err != nil {
		return at, nil, s.nodes[source].fail("await the snapshot", err)
	}
	release, err := follower.StopAt(ctx, at.lsn)
	if err != nil {
		return at, nil, fmt.Errorf("stop the follower at %s: %w", at.lsn, err)
	}
	return at, func() {
		release()
		hold()
	}, nil
}

// createSlot makes a temporary slot, which exports a snapshot of the source at the LSN that it puts
// into at. Both live until drop.
func (s *Session) createSlot(ctx context.Context, at *instant) (snapshot string, drop func(), err error) {
	n := s.nodes[source]
	conn, err := n.dsn.ConnectReplication(ctx, "verify")
	if err != nil {
		return "", nil, fmt.Errorf("source: %w", err)
	}
	drop = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		_ = conn.Close(ctx) // the server drops the slot with the session, however it ends
	}
	slow := time.AfterFunc(slotWait, func() {
		s.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "applying stands still: the source makes no snapshot before the transactions running there have ended")
	})
	defer slow.Stop()

	name := fmt.Sprintf("ficus_verify_%08x", rand.Uint32())
	slot, err := pglogrepl.CreateReplicationSlot(ctx, conn, name, "pgoutput", pglogrepl.CreateReplicationSlotOptions{
		Temporary: true, SnapshotAction: "EXPORT_SNAPSHOT", Mode: pglogrepl.LogicalReplication,
	})
	if err == nil {
		at.time = time.Now()
		at.lsn, err = change.ParseLSN(slot.ConsistentPoint)
	}
	if err != nil {
		drop()
		return "", nil, slotAdvice(n.fail("create temporary slot "+name, err))
	}
	return slot.SnapshotName, drop, nil
}

func slotAdvice(err error) error {
	switch pg.Code(err) {
	case "53400": // configuration_limit_exceeded
		return hint.Wrap(err, "raise max_replication_slots on the source by one, or drop a slot that nobody uses")
	case pg.CodeObjectNotReady:
		return hint.Wrap(err, "set wal_level = logical on the source and restart it")
	}
	return err
}

// freezeAtRest takes a plain snapshot of each side, one right after the other. They show the same
// instant when nothing was committed on the source from before the first until after the second.
func (s *Session) freezeAtRest(ctx context.Context) (instant, error) {
	at := instant{time: time.Now()}
	src, dst := s.nodes[source], s.nodes[target]
	first, err := src.export(ctx)
	if err != nil {
		return at, err
	}
	at.lsn = first.lsn
	var g errgroup.Group
	g.Go(func() error { return src.adopt(ctx, first.snapshot, 1) })
	g.Go(func() error {
		e, err := dst.export(ctx)
		if err != nil {
			return err
		}
		return dst.adopt(ctx, e.snapshot, 1)
	})
	if err := g.Wait(); err != nil {
		return at, err
	}
	var visible string
	if err := src.control.QueryRow(ctx, "SELECT pg_current_snapshot()::text").Scan(&visible); err != nil {
		return at, src.fail("read snapshot", err)
	}
	at.same = visible == first.visible
	return at, nil
}

// An export is a snapshot that the first worker shares.
type export struct {
	snapshot string
	visible  string // which transactions it sees
	lsn      change.LSN
}

// export begins a transaction on the first worker and exports its snapshot.
func (n *node) export(ctx context.Context) (export, error) {
	conn := n.workers[0]
	if _, err := conn.Exec(ctx, beginSQL); err != nil {
		return export{}, n.fail("open snapshot", err)
	}
	var e export
	var lsn string
	err := conn.QueryRow(ctx, `SELECT pg_export_snapshot(), pg_current_snapshot()::text,
		CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END::text`).
		Scan(&e.snapshot, &e.visible, &lsn)
	if err == nil {
		e.lsn, err = change.ParseLSN(lsn)
	}
	if err != nil {
		return export{}, n.fail("open snapshot", err)
	}
	return e, nil
}

// adopt begins a transaction in an exported snapshot on every worker from the given one on.
func (n *node) adopt(ctx context.Context, snapshot string, from int) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, conn := range n.workers[from:] {
		g.Go(func() error {
			// Simple protocol: both statements in one round trip.
			_, err := conn.Exec(ctx, beginSQL+"; SET TRANSACTION SNAPSHOT "+schema.QuoteLiteral(snapshot), pgx.QueryExecModeSimpleProtocol)
			if err != nil {
				return n.fail("adopt snapshot", err)
			}
			return nil
		})
	}
	return g.Wait()
}

// thaw ends the workers' transactions. A worker whose connection broke stays broken.
func (s *Session) thaw(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = both(func(sd side) error {
		s.nodes[sd].thaw(ctx)
		return nil
	})
}

func (n *node) thaw(ctx context.Context) {
	_ = n.parallel(ctx, len(n.workers), func(ctx context.Context, _ *pgx.Conn, i int) error {
		_, _ = n.workers[i].Exec(ctx, "ROLLBACK") // ends with the connection otherwise
		return nil
	})
}
