package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/gateway"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
)

// reads is how the gateway leads reads.
func (e *engine) reads() gateway.Reads {
	r := e.job.playbook.Router.Reads
	return gateway.Reads{
		By: gateway.Share(r.By), Users: r.Users, Applications: r.Applications,
		YourWrites: gateway.Causality(r.YourWrites), MaxWait: time.Duration(r.MaxWait), Passed: e.passed,
		MaxErrors: r.MaxErrors, MaxSlower: r.MaxSlower, MaxMismatches: r.MaxMismatches, MinReads: r.MinReads,
	}
}

// shadow is which of them it runs on both databases.
func (e *engine) shadow() gateway.Shadow {
	s := e.job.playbook.Router.Shadow
	return gateway.Shadow{Share: s.Share, Workers: s.Workers, Timeout: time.Duration(s.Timeout), Ignore: s.Ignore, Floats: s.Floats}
}

// passed says how far the database that follows has applied what the owner has written.
func (e *engine) passed(owner gateway.Backend) change.LSN {
	l := e.forward
	if migrate.Side(owner) == migrate.Target {
		l = e.reverse
	}
	if l == nil {
		return 0
	}
	return l.Passed()
}

// Traffic implements [migrate.Observer].
func (r routerAdapter) Traffic() migrate.Traffic {
	t := readTraffic(r.g.ReadStats())
	t.Clients = clientFigures(r.g.Stats(), r.g.Stalls())
	if err := r.g.ReadFault(); err != nil {
		t.Fault = err.Error()
	}
	if sh := r.g.ShadowStats(); r.g.Shadows() {
		f := migrate.ShadowFigures{
			Compared: sh.Compared, Mismatched: sh.Mismatched, Noise: sh.Noise, LeftOut: sh.Dropped + sh.Late + sh.Failed,
			OwnerP95: sh.OwnerP95, OtherP95: sh.OtherP95,
		}
		for _, m := range sh.Mismatches {
			f.Mismatches = append(f.Mismatches, migrate.ReadMismatch{Query: m.Shape, Kind: m.Kind, Columns: m.Columns, Count: m.Count, First: m.First, Last: m.Last})
		}
		t.Shadow = &f
	}
	return t
}

func readTraffic(st gateway.ReadStats) migrate.Traffic {
	return migrate.Traffic{Percent: st.Percent, Owner: migrate.ReadFigures(st.Owner), Other: migrate.ReadFigures(st.Other), Waited: st.Waited, OnOwner: st.OnOwner}
}

func clientFigures(s gateway.Stats, stalls gateway.Stalls) *migrate.ClientFigures {
	return &migrate.ClientFigures{
		Connected: s.Clients, Held: s.Held, Transactions: s.Transactions, Moved: s.Moved, Ended: s.Ended, Refused: s.Refused, Asks: s.Asks,
		Stall: migrate.StallStats(stalls),
	}
}

// trafficRows shows the gateway's clients and how reads fare, once there are any.
func trafficRows(t *migrate.Traffic) [][]string {
	if t == nil {
		return nil
	}
	var rows [][]string
	if c := t.Clients; c != nil && (c.Connected > 0 || c.Transactions > 0) {
		text := fmt.Sprintf("%d connected, %d held, %s transactions, %d moved, %d ended, %d refused", c.Connected, c.Held, units.Count(c.Transactions), c.Moved, c.Ended, c.Refused)
		if c.Stall.Clients > 0 {
			text += fmt.Sprintf("; %d waited p50 %s, p99 %s, longest %s", c.Stall.Clients, units.Duration(c.Stall.P50), units.Duration(c.Stall.P99), units.Duration(c.Stall.Max))
		}
		rows = append(rows, []string{"  clients", text})
	}
	if n := t.Owner.Reads + t.Other.Reads; n > 0 || t.Percent > 0 {
		rows = append(rows, []string{"  reads", fmt.Sprintf("%d %% moved; owner: %s; other: %s", t.Percent, readText(t.Owner), readText(t.Other))})
	}
	if s := t.Shadow; s != nil {
		rows = append(rows, []string{"  shadow reads", fmt.Sprintf("%s compared, %s answered otherwise (%s), %s noise, %s left out; p95 %s, there %s",
			units.Count(s.Compared), units.Count(s.Mismatched), share(s.Mismatched, s.Compared), units.Count(s.Noise), units.Count(s.LeftOut), units.Duration(s.OwnerP95), units.Duration(s.OtherP95))})
		for _, m := range s.Mismatches[:min(3, len(s.Mismatches))] {
			rows = append(rows, []string{"", fmt.Sprintf("%d x %s %s: %s", m.Count, m.Kind, strings.Join(m.Columns, " "), m.Query)})
		}
	}
	return rows
}

// share writes a part of a whole, for a status.
func share(part, whole int64) string {
	if whole == 0 {
		return "0 %"
	}
	return fmt.Sprintf("%.3g %%", 100*float64(part)/float64(whole))
}

func readText(f migrate.ReadFigures) string {
	return fmt.Sprintf("%s, %s failed, p95 %s", units.Count(f.Reads), units.Count(f.Failed), units.Duration(f.P95))
}
