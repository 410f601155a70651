package migrate

import "fmt"

// A Course is what an engine does first with what it finds in the databases.
type Course string

// The courses.
const (
	Begins   Course = "begins"   // nothing is installed, or not everywhere: it begins with the first phase
	GoesOn   Course = "goes-on"  // the owner takes writes, and the link goes on
	Undoes   Course = "undoes"   // a change of owner stopped before the point of no return
	Finishes Course = "finishes" // a change of owner stopped behind it
	Ends     Course = "ends"     // the migration was being completed
	Waits    Course = "waits"    // until the other database answers, too
	Refuses  Course = "refuses"  // the databases fit no migration
)

// A Recovery is what two databases alone tell of a migration: of one whose process, machine and data
// directory are gone.
type Recovery struct {
	Migration string `json:"migration,omitempty"`
	// Owner owns the data; "" while that needs the answer of a database that does not give one.
	Owner Side  `json:"owner,omitempty"`
	Epoch int64 `json:"epoch"`
	// Writes says that the owner takes writes at this moment.
	Writes bool   `json:"writes"`
	Course Course `json:"course"`
	Why    string `json:"why"` // in a sentence
}

// Recover says what [Migration.Run] makes of two databases when it has no journal: the same rules, and
// nothing is changed. A nil Ownership is a database that does not answer, one of epoch 0 has nothing installed.
func Recover(source, target *Ownership) Recovery {
	switch {
	case source == nil && target == nil:
		return Recovery{Course: Waits, Why: "neither database answers"}
	case source == nil:
		return recoverOne(Target, *target)
	case target == nil:
		return recoverOne(Source, *source)
	}
	return recoverBoth(owners{Source: *source, Target: *target})
}

// recoverOne judges by the only database that answers. A gate is open nowhere but on the owner, and a
// side becomes the owner by its own row alone.
func recoverOne(side Side, o Ownership) Recovery {
	r := Recovery{Migration: o.Migration, Epoch: o.Epoch, Course: Waits}
	other := side.Other()
	switch {
	case !o.installed():
		r.Why = fmt.Sprintf("nothing of Ficus is on the %s, and the %s does not answer", side, other)
	case o.GateOpen:
		r.Owner, r.Writes = side, true
		r.Why = fmt.Sprintf("the %s owns the data and takes writes, whatever the %s says, which does not answer", side, other)
	case o.Owner == other:
		r.Owner = other
		r.Why = fmt.Sprintf("the %s owns the data and does not answer; the %s stays fenced", other, side)
	default:
		r.Why = fmt.Sprintf("a change of owner was under way: the %s is fenced, and whether the %s owns the data only that one can tell, which does not answer", side, other)
	}
	return r
}

func recoverBoth(found owners) Recovery {
	src, dst := found[Source], found[Target]
	o := found.newest()
	r := Recovery{Migration: o.Migration, Owner: o.Owner, Epoch: o.Epoch}
	switch {
	case !src.installed() && !dst.installed():
		r.Owner, r.Course, r.Why = "", Begins, "nothing of Ficus is in either database"
	case src.installed() && dst.installed() && src.Migration != dst.Migration:
		r.Course, r.Why = Refuses, fmt.Sprintf("the source belongs to migration %q, the target to %q", src.Migration, dst.Migration)
	case !src.installed() || !dst.installed():
		r.recoverHalf(src, dst)
	default:
		r.recoverWhole(found)
	}
	return r
}

// recoverHalf deals with a migration that is in one of the databases only; see reconcileBare.
func (r *Recovery) recoverHalf(src, dst Ownership) {
	switch {
	case src.installed() && src.Owner == Target:
		r.Writes, r.Course = true, Ends
		r.Why = "the migration was completed: the target is free, the source is fenced for good"
	case dst.installed() && dst.Owner == Target:
		r.Course, r.Why = Refuses, "the target owns the data, and somebody removed schema ficus from the source: nothing fences it"
	case src.installed():
		r.Writes, r.Course = src.GateOpen, Begins
		r.Why = "it was being installed: the target knows nothing of it yet"
	default:
		r.Writes, r.Course = true, Begins
		r.Why = "it was being cancelled: the source is free, the target not yet"
	}
}

// recoverWhole deals with a migration that both databases know.
func (r *Recovery) recoverWhole(found owners) {
	owner, old := found[r.Owner], found[r.Owner.Other()]
	r.Writes = owner.GateOpen
	switch {
	case !owner.GateOpen && old.Owner != r.Owner:
		r.Course = Finishes
		r.Why = fmt.Sprintf("a change of owner stopped right behind the point of no return: epoch %d makes the %s the owner, which does not take writes yet", r.Epoch, r.Owner)
	case !owner.GateOpen:
		r.Course = Undoes
		r.Why = fmt.Sprintf("a change of owner stopped before the point of no return: the %s is still the owner, and fenced", r.Owner)
	case old.Owner != r.Owner:
		r.Course = Finishes
		r.Why = fmt.Sprintf("a change of owner stopped behind the point of no return: the %s takes writes, the %s was not told yet", r.Owner, r.Owner.Other())
	default:
		r.Course = GoesOn
		r.Why = fmt.Sprintf("the %s owns the data and takes writes", r.Owner)
	}
}
