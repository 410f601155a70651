package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/units"
)

// What clients wait for at a promotion is mostly two things: transactions that write when the fence
// closes, and messages to and fro between Ficus and both databases. Both can be measured ahead.

const (
	stallWatch = 2 * time.Second       // how long the source is looked at
	stallEvery = 50 * time.Millisecond // how often
	// heldTrips is about how many messages go to each database and back while clients wait.
	heldTrips = 20
)

// An expectedStall is what a promotion at this moment would make clients wait.
type expectedStall struct {
	Low  time.Duration `json:"low_ns"`
	High time.Duration `json:"high_ns"`

	Writers    int           `json:"write_transactions"` // that were seen while it was measured
	Typical    time.Duration `json:"typical_write_ns"`
	Longest    time.Duration `json:"longest_write_ns"`
	SourceTrip time.Duration `json:"source_round_trip_ns"`
	TargetTrip time.Duration `json:"target_round_trip_ns"`
	WALRate    int64         `json:"wal_bytes_per_second"`
}

// writersNow lists transactions that hold what the fence waits for on a table of the database, with their age.
const writersNow = `
	SELECT DISTINCT a.pid::text || ' ' || a.xact_start, (extract(epoch FROM clock_timestamp() - a.xact_start) * 1e9)::bigint
	FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid JOIN pg_class c ON c.oid = l.relation
	WHERE l.locktype = 'relation' AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
	AND l.mode IN ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
	AND c.relkind IN ('r', 'p') AND c.relnamespace <> 'pg_catalog'::regnamespace
	AND a.backend_type = 'client backend' AND a.application_name NOT LIKE 'ficus/%' AND a.xact_start IS NOT NULL`

// measureStall looks at both databases for a moment, and changes nothing.
func (j *job) measureStall(ctx context.Context) (*expectedStall, error) {
	source, err := j.source.Connect(ctx, "plan")
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	defer source.Close(context.WithoutCancel(ctx))
	target, err := j.target.Connect(ctx, "plan")
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	defer target.Close(context.WithoutCancel(ctx))
	var s expectedStall
	if s.SourceTrip, err = roundTrip(ctx, source); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	if s.TargetTrip, err = roundTrip(ctx, target); err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	if err := s.watch(ctx, source); err != nil {
		return nil, fmt.Errorf("source: look at what writes there: %w", err)
	}
	s.Low = heldTrips * (s.SourceTrip + s.TargetTrip)
	s.High = s.Low + s.Longest
	s.Low += s.Typical / 2 // the fence meets one in its middle
	return &s, nil
}

// roundTrip is the least of a few, as the others waited for something else.
func roundTrip(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
	least := time.Hour
	for range 5 {
		began := time.Now()
		if _, err := conn.Exec(ctx, `SELECT 1`); err != nil {
			return 0, err
		}
		least = min(least, time.Since(began))
	}
	return least, nil
}

// watch follows the transactions that write for a while.
func (s *expectedStall) watch(ctx context.Context, conn *pgx.Conn) error {
	var from string
	if err := conn.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&from); err != nil {
		return err
	}
	ages := map[string]time.Duration{}
	began := time.Now()
	for time.Since(began) < stallWatch {
		rows, err := conn.Query(ctx, writersNow)
		if err != nil {
			return err
		}
		var name string
		var age int64 // nanoseconds
		if _, err := pgx.ForEachRow(rows, []any{&name, &age}, func() error {
			ages[name] = max(ages[name], time.Duration(age))
			return nil
		}); err != nil {
			return err
		}
		if err := backoff.Sleep(ctx, stallEvery); err != nil {
			return err
		}
	}
	var written int64
	if err := conn.QueryRow(ctx, `SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1::text::pg_lsn)::bigint`, from).Scan(&written); err != nil {
		return err
	}
	s.WALRate = int64(float64(written) / time.Since(began).Seconds())
	s.Writers = len(ages)
	if s.Writers > 0 {
		all := make([]time.Duration, 0, len(ages))
		for _, age := range ages {
			all = append(all, age)
		}
		slices.Sort(all)
		s.Typical, s.Longest = all[len(all)/2], all[len(all)-1]
	}
	return nil
}

// printStall says what to expect, and what it comes from.
func (a *app) printStall(j *job, s *expectedStall) {
	if a.json {
		a.line("expected_stall", fields(s), "")
		return
	}
	writers := "no write transaction was seen"
	if s.Writers > 0 {
		writers = fmt.Sprintf("%d write transactions were seen, the longest for %s", s.Writers, units.Duration(s.Longest))
	}
	fmt.Fprintf(a.stdout, "expected stall, as things are now: %s to %s, and what the link is behind at that moment (gate lag: at most %s)\n",
		units.Duration(s.Low), units.Duration(s.High), units.Duration(time.Duration(j.playbook.Gates.MaxLagTime)))
	fmt.Fprintf(a.stdout, "  in %s %s; a message and its answer take %s at the source, %s at the target; %s of WAL a second\n",
		units.Duration(stallWatch), writers, units.Duration(s.SourceTrip), units.Duration(s.TargetTrip), units.Bytes(s.WALRate))
	fmt.Fprintf(a.stdout, "  how fast changes are applied shows once it follows; to measure the whole: ficus run --rehearse\n\n")
}
