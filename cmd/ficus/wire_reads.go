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
	st := r.g.ReadStats()
	t := migrate.Traffic{Percent: st.Percent, Owner: migrate.ReadFigures(st.Owner), Other: migrate.ReadFigures(st.Other), Waited: st.Waited, OnOwner: st.OnOwner}
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

// trafficRows shows how reads fare, once there are any.
func trafficRows(t *migrate.Traffic) [][]string {
	if t == nil {
		return nil
	}
	var rows [][]string
	if n := t.Owner.Reads + t.Other.Reads; n > 0 || t.Percent > 0 {
		rows = append(rows, []string{"  reads", fmt.Sprintf("%d %% moved; owner: %s; other: %s", t.Percent, readText(t.Owner), readText(t.Other))})
	}
	if s := t.Shadow; s != nil {
		rows = append(rows, []string{"  shadow reads", fmt.Sprintf("%s compared, %s answered otherwise, %s noise, %s left out; p95 %s, there %s",
			units.Count(s.Compared), units.Count(s.Mismatched), units.Count(s.Noise), units.Count(s.LeftOut), units.Duration(s.OwnerP95), units.Duration(s.OtherP95))})
		for _, m := range s.Mismatches[:min(3, len(s.Mismatches))] {
			rows = append(rows, []string{"", fmt.Sprintf("%d x %s %s: %s", m.Count, m.Kind, strings.Join(m.Columns, " "), m.Query)})
		}
	}
	return rows
}

func readText(f migrate.ReadFigures) string {
	return fmt.Sprintf("%s, %s failed, p95 %s", units.Count(f.Reads), units.Count(f.Failed), units.Duration(f.P95))
}
