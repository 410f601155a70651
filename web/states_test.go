package web_test

import (
	"time"

	"github.com/ficus-migrate/ficus/migrate"
)

// newShop returns a migration that follows.
func newShop() *shop {
	ago := func(d time.Duration) time.Time { return time.Now().UTC().Add(-d) }
	s := &shop{changed: make(chan struct{})}
	s.status = migrate.Status{
		Name: "shop", Playbook: "upgrade", Source: "app@old.example:5432/shop", Target: "app@new.example:5432/shop",
		Phase: migrate.Following, Step: "follow", Running: true, StartedAt: ago(10 * time.Minute), PhaseSince: ago(90 * time.Second),
		Owner: migrate.Source, Epoch: 1,
		Tables: []migrate.TableProgress{
			{Table: "public.customers", Rows: 100_000, Bytes: 9_437_184, TotalRows: 100_000, Done: true, Format: "binary"},
			{Table: "public.order_items", Rows: 1_400_000, Bytes: 88_080_384, TotalRows: 1_400_000, Done: true, Format: "binary"},
			{Table: "public.orders", Rows: 500_000, Bytes: 52_428_800, TotalRows: 500_000, Done: true, Format: "binary"},
			{Table: "public.tickets", Rows: 412, Bytes: 40_960, TotalRows: 412, Done: true, Format: "text"},
		},
		Copied: &migrate.Copied{Tables: 4, Rows: 2_000_412, Bytes: 149_987_328, Elapsed: 9200 * time.Millisecond},
		Build:  &migrate.Build{What: "index order_items_product_idx", Done: 14, Total: 14},
		Lag:    &migrate.Lag{Bytes: 8192, Time: 1500 * time.Millisecond, Rows: 81_200, Retained: 16_384, Applied: 0x16B374D848},
		Gates: []migrate.GateState{
			{Name: "lag", Phase: migrate.Following, Open: true, Measured: "8.0 KiB, 12ms", Wanted: "at most 1.0 MiB and 2s, 3 times in a row", Since: ago(88 * time.Second)},
			{Name: "proof", Phase: migrate.Promoting, Open: true, Measured: "0 differences, 1m old", Wanted: "0 differences, at most 24h old", Since: ago(60 * time.Second)},
			{Name: "approval", Phase: migrate.Promoting, Manual: true, Measured: "nobody", Wanted: "a person's approval", Since: ago(30 * time.Second)},
		},
		Proof: &migrate.Proof{Kind: "exact", LSN: 0x16B374D848, Time: ago(70 * time.Second), Tables: 4, Rows: 2_000_412, Elapsed: 4100 * time.Millisecond, Paused: 31 * time.Millisecond},
		Phases: []migrate.PhaseTime{
			{Phase: migrate.Pending, Start: ago(600 * time.Second), Took: time.Millisecond},
			{Phase: migrate.Preparing, Start: ago(600 * time.Second), Took: 1200 * time.Millisecond},
			{Phase: migrate.Copying, Start: ago(500 * time.Second), Took: 242 * time.Second},
			{Phase: migrate.CatchingUp, Start: ago(95 * time.Second), Took: 4200 * time.Millisecond},
			{Phase: migrate.Following, Start: ago(90 * time.Second)},
		},
		Rollback: migrate.RollbackVerdict{Because: []string{"nothing to roll back: the source owns the data"}},
	}
	for i, e := range []migrate.Event{
		{Type: "phase", Phase: migrate.Preparing, Message: "preparing"},
		{Type: "finding", Phase: migrate.Preparing, Message: "public.pgbench_history has no key: REPLICA IDENTITY FULL for the time of the migration"},
		{Type: "owner", Phase: migrate.Preparing, Message: "the source owns the data"},
		{Type: "step", Phase: migrate.Copying, Message: "load: 2,000,412 rows of 4 tables in 9.2 s"},
		{Type: "command", Phase: migrate.CatchingUp, Message: "pause", Actor: "jo"},
		{Type: "gate", Phase: migrate.CatchingUp, Message: "gate lag is open: 8.0 KiB, wanted at most 1.0 MiB and 2s, 3 times in a row"},
	} {
		e.Seq, e.Time = int64(i+1), ago(time.Duration(600-i*80)*time.Second)
		s.events = append(s.events, e)
	}
	s.status.Seq = int64(len(s.events))
	return s
}

// states are those that pictures are made of.
func states() map[string]func(*migrate.Status) {
	now := time.Now().UTC()
	proof := migrate.Proof{Kind: "delta", LSN: 0x16B3811220, Time: now.Add(-40 * time.Second), Tables: 4, Rows: 812, Keys: 812, Elapsed: 44 * time.Millisecond}
	promoted := func(s *migrate.Status) {
		s.Phase, s.Step, s.Owner, s.Epoch, s.PhaseSince = migrate.Promoted, "stand-by", migrate.Target, 2, now.Add(-40*time.Second)
		s.Rollback = migrate.RollbackVerdict{Safe: true}
		s.Gates[2].Open, s.Gates[2].By = true, "jo"
		s.FenceProof = &proof
		s.Promotions = []migrate.Promotion{{
			Epoch: 2, From: migrate.Source, To: migrate.Target, LSN: 0x16B3811220, At: now.Add(-40 * time.Second), Blackout: 142 * time.Millisecond,
			Stall: migrate.StallStats{Clients: 16, P50: 121 * time.Millisecond, P99: 188 * time.Millisecond, Max: 190 * time.Millisecond}, Proof: proof, Sequences: 3,
		}}
		s.Phases = append(s.Phases[:4:4],
			migrate.PhaseTime{Phase: migrate.Following, Start: now, Took: 21 * time.Second}, migrate.PhaseTime{Phase: migrate.Verifying, Start: now, Took: 4100 * time.Millisecond},
			migrate.PhaseTime{Phase: migrate.ReadsSwitched, Start: now, Took: 8 * time.Second}, migrate.PhaseTime{Phase: migrate.Promoting, Start: now, Took: 900 * time.Millisecond},
			migrate.PhaseTime{Phase: migrate.Promoted, Start: now.Add(-40 * time.Second)})
	}
	return map[string]func(*migrate.Status){
		"following": func(*migrate.Status) {},
		"promoted":  promoted,
		"copying": func(s *migrate.Status) {
			s.Phase, s.Step, s.Copied, s.Build, s.Lag, s.Proof, s.Gates = migrate.Copying, "load", nil, nil, nil, nil, nil
			s.Tables[0].Rows, s.Tables[0].Done, s.Tables[1].Rows, s.Tables[1].Done, s.Tables[2].TotalRows, s.Tables[2].Done, s.Tables[3].Rows, s.Tables[3].Done = 0, false, 611_000, false, -1, false, 0, false
			s.Phases = append(s.Phases[:2:2], migrate.PhaseTime{Phase: migrate.Copying, Start: now.Add(-100 * time.Second)})
			s.PhaseSince = now.Add(-100 * time.Second)
		},
		"waiting": func(s *migrate.Status) {
			s.Phase, s.Step, s.WaitingFor = migrate.ReadsSwitched, "gates", "approval"
			s.Phases = append(s.Phases[:4:4],
				migrate.PhaseTime{Phase: migrate.Following, Start: now, Took: 21 * time.Second}, migrate.PhaseTime{Phase: migrate.Verifying, Start: now, Took: 4100 * time.Millisecond},
				migrate.PhaseTime{Phase: migrate.ReadsSwitched, Start: now.Add(-30 * time.Second)})
			s.ReadsOn = 50
		},
		"failed": func(s *migrate.Status) {
			promoted(s)
			s.Phase, s.Running = migrate.Failed, true
			s.Error, s.Hint = `apply to public.orders, key (id)=(4711): update hit no row (SQLSTATE 02000)`, "the row was changed on the old database by hand: ficus resync shop public.orders copies the table anew"
			s.Rollback = migrate.RollbackVerdict{Because: []string{"the reverse link stopped: apply to public.orders, key (id)=(4711): update hit no row"}}
			s.Blockers = []migrate.Blocker{{PID: 4711, Role: "reporting", Application: "psql", State: "idle in transaction", Age: 12 * time.Minute}}
			s.Phases = append(s.Phases, migrate.PhaseTime{Phase: migrate.Failed, Start: now.Add(-20 * time.Second)})
		},
	}
}
