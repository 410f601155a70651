package ddl

import (
	"fmt"
	"strings"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/evolve"
	"github.com/ficus-migrate/ficus/sync/apply"
)

// stop refuses a step, and writes down that its operator was told: whoever runs the migration again
// has seen to it.
func (f *Follower) stop(s *step) error {
	told := *f.cfg.Plans.Current()
	told.Told, told.Stopped = s.mark, s.known.Source.Name
	if err := f.cfg.Plans.Replace(&told); err != nil {
		return err
	}
	what := s.why
	if len(s.loses) > 0 {
		what += ": " + strings.Join(s.loses, "; ")
	} else if d := s.Find(func(d evolve.Difference) bool { return !d.Safe }); d != nil {
		what += ": " + d.Why
	}
	return f.refuse(s.known.Source.Name, what, f.adviceHand(s))
}

// refuseRule refuses a change with which a rule cannot be, and lets the operator come back with another
// rule.
func (f *Follower) refuseRule(table schema.Name, what, mark string, err error) error {
	if passing(err) {
		return err
	}
	told := *f.cfg.Plans.Current()
	told.Told, told.Stopped = mark, table
	if err := f.cfg.Plans.Replace(&told); err != nil {
		return err
	}
	return f.refuse(table, what+": "+err.Error(), f.adviceRules())
}

// refuse is the error with which the link stops.
func (f *Follower) refuse(table schema.Name, what, advice string) error {
	return hint.Wrap(fmt.Errorf("table %s: %w at the source: %s", table.Display(), apply.ErrSchemaChanged, what), "%s", advice)
}

// adviceHand says how an operator goes on after a change that Ficus does not follow.
func (f *Follower) adviceHand(s *step) string {
	name := f.cfg.Migration
	again := "resume: ficus resume " + name + " (or the same command again)"
	var b strings.Builder
	if needs := s.needs(); needs != nil {
		b.WriteString("run on the target: " + strings.Join(needs, "; ") + "; then " + again)
	} else {
		b.WriteString("the target's table fits as it is, or alter it as you like, and " + again)
	}
	if !s.Certain() || s.Ahead {
		b.WriteString("; it copies the table anew")
	} else {
		b.WriteString("; it goes straight on, and copies the table anew only where rows may differ")
	}
	if s.Safe() && !f.cfg.Safe && len(s.loses) == 0 {
		b.WriteString("; with follow.ddl: safe (--ddl safe) Ficus does this by itself")
	}
	return b.String()
}

func (f *Follower) adviceRules() string {
	name := f.cfg.Migration
	return "change the rule of the table in the playbook, make the target's table fit it, and go on with the changed playbook: ficus resume " + name +
		" -f FILE (or the same ficus run again); the table is copied anew where rows may differ; or undo the change at the source, and resume"
}

func (f *Follower) giveUp() string {
	return "give the migration up: ficus cancel " + f.cfg.Migration
}
