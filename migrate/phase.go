package migrate

// A Phase is where a migration stands. Every surface prints these words.
type Phase string

// The phases (docs/states.md draws how they follow one another).
const (
	Pending       Phase = "pending"
	Preparing     Phase = "preparing"
	Copying       Phase = "copying"
	CatchingUp    Phase = "catching-up"
	Following     Phase = "following"
	Verifying     Phase = "verifying"
	ReadsSwitched Phase = "reads-switched"
	Promoting     Phase = "promoting"
	Promoted      Phase = "promoted"
	RollingBack   Phase = "rolling-back"
	RolledBack    Phase = "rolled-back"
	Completed     Phase = "completed"
	Cancelled     Phase = "cancelled"
	Failed        Phase = "failed"
)

// Final reports whether a migration in this phase is over.
func (p Phase) Final() bool { return p == Completed || p == Cancelled }

// A Verb is what a person asks of a running migration.
type Verb string

// The verbs.
const (
	Approve  Verb = "approve"
	Pause    Verb = "pause"
	Resume   Verb = "resume"
	Promote  Verb = "promote"
	Rollback Verb = "rollback"
	Complete Verb = "complete"
	Cancel   Verb = "cancel"
	Resync   Verb = "resync"
	// Routed says that a person has moved the clients, where no router does.
	Routed Verb = "routed"
	// Slow makes the copy and the link stand back until Unslow.
	Slow   Verb = "throttle"
	Unslow Verb = "unthrottle"
	// PauseVerify and ResumeVerify are about comparisons that run, and leave the migration alone.
	PauseVerify  Verb = "pause-verify"
	ResumeVerify Verb = "resume-verify"
)
