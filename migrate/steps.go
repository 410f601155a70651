package migrate

import (
	"context"
	"slices"
	"time"
)

// A Step is one row of the table that the engine runs, "ficus plan" prints and docs/states.md
// shows. A promotion's rows serve the rollback too, with the sides swapped.
type Step struct {
	Phase  Phase         `json:"phase"`
	Name   string        `json:"name"`
	Needs  string        `json:"needs"` // what holds before it begins; that the steps above are done, goes without saying
	Does   string        `json:"does"`
	Undo   string        `json:"undo"`                // how it is taken back; "" when there is nothing to take back
	Known  string        `json:"known"`               // how a process that comes later recognises it as done
	Budget time.Duration `json:"budget_ns,omitempty"` // 0: as long as it takes
	// Waits says that clients wait during the step.
	Waits bool `json:"waits,omitempty"`
	// Final says that the step comes at or after the point of no return: it is repeated until it
	// works, by whatever process.
	Final bool `json:"final,omitempty"`
}

// Names of steps that other code refers to.
const (
	stepPrepare   = "prepare-reverse"
	stepCloseGate = "close-gate"
	stepSequences = "sequences"
	stepOwn       = "own"
)

// step is a Step with what it runs. a is nil outside promotions.
type step struct {
	Step

	run  func(m *Migration, ctx context.Context, a *attempt) error
	undo func(m *Migration, ctx context.Context, a *attempt) error
}

// Steps returns the table with the budgets of these settings. Without read steps, a router or
// a reverse link the rows that need them do nothing, and are still there.
func Steps(s Settings) []Step {
	rows := table(s.withDefaults())
	out := make([]Step, len(rows))
	for i, r := range rows {
		out[i] = r.Step
	}
	return out
}

// Steps returns the table of this migration.
func (m *Migration) Steps() []Step { return Steps(m.cfg.Settings) }

// Stall is the longest that a client may wait because of a promotion: the sum of the budgets of
// the steps during which clients wait.
func Stall(s Settings) time.Duration {
	var sum time.Duration
	for _, row := range Steps(s) {
		if row.Waits {
			sum += row.Budget
		}
	}
	return sum
}

// table is the whole workflow.
func table(s Settings) []step {
	return slices.Concat(copySteps(), followSteps(), promotionAhead(s.Budgets), promotionHeld(s.Budgets), promotionFinal(s.Budgets), restSteps(), endSteps())
}

const (
	repeat  = "the journal; repeating it changes nothing"
	nothing = "nothing to recognise: it is done again"
)

func copySteps() []step {
	return []step{
		{
			Step: Step{
				Phase: Preparing, Name: "preflight",
				Needs: "both databases answer",
				Does:  "looks for everything that would go wrong later; a finding of severity error ends the run", Known: repeat,
			},
			run: (*Migration).preflight,
		},
		{
			Step: Step{
				Phase: Preparing, Name: "install",
				Needs: "no finding of severity error; no other migration in either database, and no other process that drives this one",
				Does:  "creates schema ficus in both databases: ownership row (epoch 1, owner source), signal table, gate",
				Undo:  "cancel removes the schema", Known: "the ownership rows",
			},
			run: (*Migration).install,
		},
		{
			Step: Step{
				Phase: Preparing, Name: "create-tables",
				Needs: "schema ficus in both databases",
				Does:  "creates the target's tables, without indexes, constraints and triggers",
				Undo:  "cancel leaves the tables on the target", Known: repeat,
			},
			run: (*Migration).createTables,
		},
		{
			Step: Step{
				Phase: Preparing, Name: "arm-target",
				Needs: "the target's tables",
				Does:  "puts the fence triggers on the target's tables: from now on only the link writes there",
				Undo:  "cancel removes the triggers", Known: "the triggers",
			},
			run: (*Migration).armTarget,
		},
		{
			Step: Step{
				Phase: Copying, Name: "load",
				Needs: "this process drives the migration; every transaction that is open while the slot is made ends",
				Does:  "makes the forward link's slot with an exported snapshot and copies every row of that snapshot; keys, indexes and statistics of a table follow when it is copied and a worker is free",
				Undo:  "cancel drops slot and publication", Known: "the journal; a load that was cut short goes on: what is finished is in ficus.manifest",
			},
			run: (*Migration).load,
		},
		{
			Step: Step{
				Phase: Copying, Name: "build",
				Needs: "every row of the snapshot is on the target",
				Does:  "builds what is missing of keys, indexes and statistics, then constraints, triggers and foreign keys on the target", Known: repeat,
			},
			run: (*Migration).build,
		},
	}
}

func followSteps() []step {
	return []step{
		{
			Step: Step{
				Phase: CatchingUp, Name: "catch-up",
				Needs: "the forward link, prepared; with a slot that the source still keeps",
				Does:  "runs the forward link until the gate lag is open", Known: nothing,
			},
			run: (*Migration).catchUp,
		},
		{
			Step: Step{
				Phase: Following, Name: "follow",
				Needs: "the forward link runs",
				Does:  "waits for the gates of this phase while the link runs", Known: nothing,
			},
			run: (*Migration).follow,
		},
		{
			Step: Step{
				Phase: Verifying, Name: "prove",
				Needs: "the forward link runs; comparisons are not paused",
				Does:  "compares both databases at one instant while the link runs; differences keep the migration here",
				Known: "the proof in the journal",
			},
			run: (*Migration).prove,
		},
		{
			Step: Step{
				Phase: ReadsSwitched, Name: "route-reads",
				Needs: "a proof that holds; a router",
				Does:  "moves read-only traffic to the target, percentage by percentage, watching the lag between",
				Undo:  "reads go to the owner again", Known: "the percentage in the journal, set again in the router",
			},
			run: (*Migration).routeReads,
		},
		{
			Step: Step{
				Phase: ReadsSwitched, Name: "gates",
				Needs: "a proof that holds; after a promotion that gave up, the word of a person",
				Does:  "waits for the gates before the promotion: lag, proof, those of the playbook, approval", Known: nothing,
			},
			run: (*Migration).promotionGates,
		},
	}
}

// promotionAhead is everything that can take long and happens before anybody waits.
func promotionAhead(b Budgets) []step {
	return []step{
		{
			Step: Step{
				Phase: Promoting, Name: "check-lag",
				Needs: "both databases answer, and the newest ownership row names the owner; no hook refused the phase",
				Does:  "measures the lag once more", Known: nothing, Budget: b.Prepare,
			},
			run: (*Migration).checkLag,
		},
		{
			Step: Step{
				Phase: Promoting, Name: "check-proof",
				Needs: "the link runs",
				Does:  "compares everything again when the last proof is missing, refuted or too old", Known: "the proof in the journal",
			},
			run: (*Migration).checkProof,
		},
		{
			Step: Step{
				Phase: Promoting, Name: "arm",
				Needs: "a short lock on each of the owner's tables",
				Does:  "puts the fence triggers on the owner's tables, gate open", Undo: "they stay, with the gate open",
				Known: "the triggers", Budget: b.Prepare,
			},
			run: (*Migration).arm,
		},
		{
			Step: Step{
				Phase: Promoting, Name: stepPrepare,
				Needs: "rules that can be turned round, else nothing is made; this process drives the migration; a free replication slot",
				Does:  "makes the slot of the opposite link, whose stream counts from the new epoch on",
				Undo:  "the slot is dropped", Known: "the slot; the next attempt has another epoch and starts it afresh", Budget: b.Prepare,
			},
			run: (*Migration).prepareOpposite, undo: (*Migration).dropOpposite,
		},
		{
			Step: Step{
				Phase: Promoting, Name: "connect-ahead",
				Needs: "a router that opens sessions, else nothing is done; one that does not answer is left alone",
				Does:  "tells the router who will own: clients' sessions there are opened while they go on, and not while all of them wait",
				Undo:  "the router closes them", Known: nothing, Budget: b.Prepare,
			},
			run: (*Migration).expectNew, undo: (*Migration).expectOld,
		},
		{
			Step: Step{
				Phase: Promoting, Name: "delta",
				Needs: "the link runs, with no change of a table to follow yet",
				Does:  "looks at the owner's catalog, and compares what was touched since the last proof, live, so that little is left for under the fence", Known: nothing, Budget: b.Prepare,
			},
			run: (*Migration).deltaAhead,
		},
		{
			Step: Step{
				Phase: Promoting, Name: "sequences-ahead",
				Needs: "the sequences on both sides",
				Does:  "moves the new owner's sequences forward, with headroom", Undo: "they stay ahead",
				Known: "never moved backward", Budget: b.Prepare,
			},
			run: (*Migration).moveSequences,
		},
		{
			Step: Step{
				Phase: Promoting, Name: "reads-home",
				Needs: "a router, else nothing is led",
				Does:  "sends all read-only traffic to the owner, so that no read is left behind by the switch",
				Undo:  "phase reads-switched routes them again", Known: "the percentage in the journal", Budget: b.Prepare,
			},
			run: (*Migration).readsHome,
		},
	}
}

// promotionHeld is what clients wait for, up to the point of no return.
func promotionHeld(b Budgets) []step {
	return []step{
		{
			Step: Step{
				Phase: Promoting, Name: "hold",
				Needs: "nobody said cancel; lag, proof and delta of this attempt were good",
				Does:  "(1) the router stops starting transactions and waits for those in flight",
				Undo:  "clients are released to the old owner", Known: nothing, Budget: b.Hold, Waits: true,
			},
			run: (*Migration).hold, undo: (*Migration).releaseBack,
		},
		{
			Step: Step{
				Phase: Promoting, Name: stepCloseGate,
				Needs: "the triggers; this process drives the migration",
				Does:  "(2) the owner's gate closes: no role writes there any more", Undo: "the gate opens",
				Known: "the gate", Budget: b.CloseGate, Waits: true,
			},
			run: (*Migration).closeGate, undo: (*Migration).openBack,
		},
		{
			Step: Step{
				Phase: Promoting, Name: "wait-writers",
				Needs: "the gate is closed",
				Does:  "(2) every transaction that held a write lock when the gate closed has ended", Known: nothing, Budget: b.Writers, Waits: true,
			},
			run: (*Migration).waitWriters,
		},
		{
			Step: Step{
				Phase: Promoting, Name: "signal",
				Needs: "the gate is closed, and no writer is left",
				Does:  "(3) a nonce is written under the fence", Known: nothing, Budget: b.CloseGate, Waits: true,
			},
			run: (*Migration).signal,
		},
		{
			Step: Step{
				Phase: Promoting, Name: "drain",
				Needs: "the nonce is committed; the link runs",
				Does:  "(3) the link has applied the nonce, and so everything before it", Known: nothing, Budget: b.Drain, Waits: true,
			},
			run: (*Migration).drain,
		},
		{
			Step: Step{
				Phase: Promoting, Name: "settle",
				Needs: "the link has applied the nonce",
				Does:  "(3) the owner's catalog is looked at once more: no table has changed in a way that the link has yet to follow, and from here on it changes nothing but rows",
				Undo:  "the link follows changes of tables again", Known: nothing, Budget: b.Settle, Waits: true,
			},
			run: (*Migration).settle, undo: (*Migration).unsettle,
		},
		{
			Step: Step{
				Phase: Promoting, Name: "prove-fenced",
				Needs: "both sides stand still; an exact proof to build on",
				Does:  "(4) what was touched since the last proof is compared while nobody writes: the whole database is proved equal", Known: nothing, Budget: b.Proof, Waits: true,
			},
			run: (*Migration).proveFenced,
		},
		{
			Step: Step{
				Phase: Promoting, Name: stepSequences,
				Needs: "both sides stand still and are equal",
				Does:  "(5) sequences, final; and the catalog a last time", Undo: "they stay ahead", Known: "never moved backward", Budget: b.Sequences, Waits: true,
			},
			run: (*Migration).finalSequences,
		},
		{
			Step: Step{
				Phase: Promoting, Name: stepOwn,
				Needs: "each step above within its budget; the new owner's row is below the epoch; this process drives the migration",
				Does:  "(6) the new epoch is committed on the new owner: the point of no return",
				Undo:  "the same epoch is committed there for the old owner, which a late commit of ours cannot overwrite; if ours was first, the promotion goes forward", Known: "the ownership row of the new owner", Budget: b.Own, Waits: true, Final: true,
			},
			run: (*Migration).own, undo: (*Migration).burn,
		},
	}
}

// promotionFinal comes after the point of no return.
func promotionFinal(b Budgets) []step {
	return []step{
		{
			Step: Step{
				Phase: Promoting, Name: "open-gate",
				Needs: "the ownership row names this side",
				Does:  "(6) the new owner's gate opens", Known: "the gate", Budget: b.Own, Waits: true, Final: true,
			},
			run: (*Migration).openGate,
		},
		{
			Step: Step{
				Phase: Promoting, Name: "release",
				Needs: "the new owner's gate is open",
				Does:  "(7, 8) the router leads held and later clients to the new owner", Known: nothing, Budget: b.Own, Waits: true, Final: true,
			},
			run: (*Migration).release,
		},
		{
			Step: Step{
				Phase: Promoting, Name: "record-owner",
				Needs: "its row is below the epoch",
				Does:  "the old owner learns the new epoch: its fence now names the new owner", Known: "its ownership row", Budget: b.Own, Final: true,
			},
			run: (*Migration).recordOwner,
		},
		{
			Step: Step{
				Phase: Promoting, Name: "switch-link",
				Needs: "this process drives the migration",
				Does:  "(9) the old link stops and is dropped; the opposite one takes its place with the next phase", Known: repeat, Budget: b.Prepare, Final: true,
			},
			run: (*Migration).switchLink,
		},
	}
}

func restSteps() []step {
	return []step{
		{
			Step: Step{
				Phase: Promoted, Name: "stand-by",
				Needs: "the target owns the data",
				Does:  "runs the reverse link: the old database follows the new one, until rollback or complete", Known: nothing,
			},
			run: (*Migration).standBy,
		},
		{
			Step: Step{
				Phase: RolledBack, Name: "follow-again",
				Needs: "the source owns the data again",
				Does:  "runs the forward link afresh, until promote or cancel", Known: nothing,
			},
			run: (*Migration).followAgain,
		},
	}
}

func endSteps() []step {
	return []step{
		{
			Step: Step{
				Phase: Completed, Name: "lead-to-target",
				Needs: "the target owns the data; complete was said, or the rollback window is over",
				Does:  "leads all clients to the target", Known: nothing,
			},
			run: (*Migration).leadToTarget,
		},
		{
			Step: Step{
				Phase: Completed, Name: "drain-reverse",
				Needs: "the reverse link runs, else nothing is waited for",
				Does:  "lets the old owner have every write up to now, and the sequences' values, within the drain's budget; without the reverse link it is left where it stands",
				Known: nothing,
			},
			run: (*Migration).drainReverse,
		},
		{
			Step: Step{
				Phase: Completed, Name: "drop-reverse",
				Needs: "this process drives the migration",
				Does:  "stops and drops the reverse link", Known: repeat,
			},
			run: (*Migration).dropReverse,
		},
		{
			Step: Step{
				Phase: Completed, Name: "archive-old",
				Needs: "old_data: archive, else nothing is done; the role owns the old tables",
				Does:  "moves the old owner's tables, fenced as they are, into schemas named after the day",
				Undo:  "by hand: ALTER TABLE ... SET SCHEMA", Known: "the names of the schemas",
			},
			run: (*Migration).archiveOld,
		},
		{
			Step: Step{
				Phase: Completed, Name: "uninstall-owner",
				Needs: "clients are led to the target; no link needs it any more",
				Does:  "removes triggers, gate and schema ficus from the new owner; the old one stays fenced (ficus cleanup frees it) unless its tables were put away", Known: "schema ficus is gone",
			},
			run: (*Migration).uninstallOwner,
		},
		{
			Step: Step{
				Phase: Completed, Name: "free-old",
				Needs: "old_data: archive, else nothing is done; the new owner is free",
				Does:  "removes triggers, gate and schema ficus from the old owner, whose tables are put away", Known: "schema ficus is gone",
			},
			run: (*Migration).freeOld,
		},
		{
			Step: Step{
				Phase: Cancelled, Name: "lead-to-source",
				Needs: "the source owns the data; cancel was said",
				Does:  "leads all clients to the source", Known: nothing,
			},
			run: (*Migration).leadToSource,
		},
		{
			Step: Step{
				Phase: Cancelled, Name: "drop-links",
				Needs: "this process drives the migration",
				Does:  "stops and drops both links", Known: repeat,
			},
			run: (*Migration).dropLinks,
		},
		{
			Step: Step{
				Phase: Cancelled, Name: "uninstall",
				Needs: "no link needs it any more",
				Does:  "removes triggers, gate and schema ficus from the source, then from the target; the copied tables stay there", Known: "schema ficus is gone",
			},
			run: (*Migration).uninstall,
		},
	}
}

// of returns the rows of one phase; a rollback runs the promotion's.
func (m *Migration) of(p Phase) []step {
	if p == RollingBack {
		p = Promoting
	}
	var rows []step
	for _, r := range m.steps {
		if r.Phase == p {
			rows = append(rows, r)
		}
	}
	return rows
}

// A Transition is a change of phase that the engine makes.
type Transition struct {
	From, To Phase
	Why      string
}

// Transitions returns every change of phase there is. Beside them, a migration whose databases know
// more than its journal (the journal lost its end with the machine) enters promoted, rolled-back,
// completed or cancelled from wherever the journal stops.
func Transitions() []Transition {
	ts := []Transition{
		{Pending, Preparing, "run"},
		{Preparing, Copying, ""},
		{Copying, CatchingUp, ""},
		{CatchingUp, Following, "gate lag"},
		{Following, Verifying, ""},
		{Verifying, ReadsSwitched, "gate proof"},
		{ReadsSwitched, Promoting, "gate approval"},
		{Promoting, Promoted, "new epoch on the target"},
		{Promoting, ReadsSwitched, "undone, or rehearsed"},
		{Promoting, Verifying, "undone, differences found"},
		{ReadsSwitched, Verifying, "the proof no longer holds"},
		{Promoted, RollingBack, "rollback"},
		{RollingBack, RolledBack, "new epoch on the source"},
		{RollingBack, Promoted, "undone"},
		{RolledBack, Verifying, "promote"},
		{Promoted, Completed, "complete"},
	}
	for _, p := range []Phase{Pending, Preparing, Copying, CatchingUp, Following, Verifying, ReadsSwitched, RolledBack} {
		ts = append(ts, Transition{p, Failed, "an error that no retry mends"}, Transition{Failed, p, "resume"}, Transition{p, Cancelled, "cancel"})
	}
	return append(ts,
		Transition{Failed, Cancelled, "cancel"}, Transition{Failed, Completed, "complete"},
		Transition{Promoted, Failed, "an error while completing"}, Transition{Failed, Promoted, "resume"},
		Transition{Promoting, Failed, "the databases fit no promotion"}, Transition{Failed, Promoting, "resume"},
		Transition{RollingBack, Failed, "the databases fit no promotion"}, Transition{Failed, RollingBack, "resume"})
}
