package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
)

// does says what a phase is about to do.
func (d *demo) does(p migrate.Phase) string {
	again := len(d.engine.migration.Status().Promotions) > 0
	switch p {
	case migrate.Preparing:
		return "look for what would go wrong later; make the tables on the new cluster"
	case migrate.Copying:
		return "copy every row of one snapshot, while the clients go on; then build indexes and keys"
	case migrate.CatchingUp:
		return "catch up with what was written meanwhile"
	case migrate.Verifying:
		if again {
			return "promote again: first compare every row once more, at one instant, while both are in use"
		}
		return "compare every row on both sides at one instant, while both are in use"
	case migrate.ReadsSwitched:
		return "move the readers to the new cluster, a quarter first"
	case migrate.Promoting:
		return "change the owner: clients wait a moment at the end of a transaction, none fails"
	case migrate.Pending, migrate.Following, migrate.Promoted, migrate.RollingBack, migrate.RolledBack,
		migrate.Completed, migrate.Cancelled, migrate.Failed:
	}
	return ""
}

// cameOf says what came of a phase.
func (d *demo) cameOf(p migrate.Phase) {
	if d.app.json {
		return // the migration's own events say it
	}
	s := d.engine.migration.Status()
	switch p {
	case migrate.Copying:
		if c := s.Copied; c != nil {
			d.story.say(fmt.Sprintf("  %s rows of %d tables, %s, in %s; indexes, keys and triggers after them",
				units.Count(c.Rows), c.Tables, units.Bytes(c.Bytes), units.Duration(c.Elapsed)))
		}
	case migrate.CatchingUp:
		if l := s.Lag; l != nil {
			d.story.say(fmt.Sprintf("  %s changes applied, lag %s", units.Count(l.Rows), units.Bytes(l.Bytes)))
		}
	case migrate.Verifying:
		if proof := s.Proof; proof != nil {
			d.story.say(fmt.Sprintf("  %s rows, %d differences, in %s; the link stood still for %s",
				units.Count(proof.Rows), proof.Differences, units.Duration(proof.Elapsed), units.Duration(proof.Paused)))
		}
	case migrate.Pending, migrate.Preparing, migrate.Following, migrate.ReadsSwitched, migrate.Promoting, migrate.Promoted,
		migrate.RollingBack, migrate.RolledBack, migrate.Completed, migrate.Cancelled, migrate.Failed:
	}
}

// changed tells of the last change of owner, and remembers how the clients felt it.
func (d *demo) changed() {
	changes := d.changes()
	if len(changes) == 0 {
		return
	}
	c := changes[len(changes)-1]
	d.story.fact("change", fields(c), fmt.Sprintf("the %s owns the data: no write for %s, the slowest transaction took %s; %s rows compared under the fence, %d differences",
		d.names(c.To), units.Duration(c.blackout), units.Duration(c.felt.Max), units.Count(c.Proved), c.Differences))
}

// names returns a side as the demo's viewer knows it.
func (d *demo) names(s migrate.Side) string {
	word, server := "old cluster", d.ground.source
	if s == migrate.Target {
		word, server = "new cluster", d.ground.target
	}
	return fmt.Sprintf("%s (PostgreSQL %d)", word, server.Install().Major)
}

// live is the line that shows the present.
func (d *demo) live() string {
	t := d.ledger.Totals()
	now := time.Now()
	recent := d.ledger.Latency(now.Add(-time.Second), now)
	parts := []string{
		fmt.Sprintf("         %4d tx/s", recent.Transactions), "p99 " + units.Duration(recent.P99),
		units.Count(t.Acknowledged) + " acknowledged", fmt.Sprintf("%d failed", t.Failed+t.ReadsFailed),
	}
	s := d.engine.migration.Status()
	switch {
	case s.Phase == migrate.Copying && s.Build != nil:
		parts = append(parts, fmt.Sprintf("%d/%d %s", s.Build.Done, s.Build.Total, s.Build.What))
	case s.Phase == migrate.Copying:
		var rows, total int64
		for _, t := range s.Tables {
			rows, total = rows+t.Rows, total+max(t.Rows, t.TotalRows)
		}
		parts = append(parts, fmt.Sprintf("%s of about %s rows", units.Count(rows), units.Count(total)))
	case s.Checked != nil:
		parts = append(parts, fmt.Sprintf("compared %s of %s rows", units.Count(s.Checked.Done), units.Count(s.Checked.Total)))
	case s.Lag != nil:
		parts = append(parts, "lag "+units.Bytes(s.Lag.Bytes))
	}
	if s.ReadsOn > 0 {
		parts = append(parts, fmt.Sprintf("%d %% of reads moved", s.ReadsOn))
	}
	return strings.Join(append(parts, string(s.Phase)), " · ")
}

// joinWords lists things for people.
func joinWords(words []string) string { return strings.Join(words, "; ") }
