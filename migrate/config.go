package migrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// Config holds what a Migration drives. Fields without a stated default are required.
type Config struct {
	Name     string // of the migration; also in both databases' ownership rows
	Playbook string // default: Name

	// SourceDSN and TargetDSN are shown, never used: user@host:port/database.
	SourceDSN, TargetDSN string

	Source, Target Database
	// Forward leads from source to target.
	Forward Link
	// Reverse leads from target to source. Nil when the rules cannot be turned round: a promotion
	// is then possible, a rollback is not, and Lossy says why.
	Reverse Link
	Lossy   []string
	// Loses says what has come to make the way back impossible since the migration began, though there
	// is a Reverse: a change of tables that its operator has taken. Default: nothing.
	Loses func() []string

	Loader   Loader
	Verifier Verifier
	// Router leads clients; nil when nothing stands in front of the databases.
	Router Router
	// Preflight looks for what would go wrong later. Default: no findings.
	Preflight func(context.Context) ([]Finding, error)
	Journal   Journal
	// Gates are conditions beside the built-in ones (lag, proof, approval).
	Gates []Gate
	// Brakes make copy and link stand back while they are on.
	Brakes   []Brake
	Settings Settings
	// Before is asked when a phase is about to begin, in the order of the straight way and for a
	// rollback. An error refuses it, and the migration waits for "resume". Default: nobody is asked.
	Before func(ctx context.Context, s Status, next Phase) error

	// Retryable reports whether the same step may succeed later without anybody's help.
	// Default: never.
	Retryable func(error) bool
	// Warnings returns what an operator should know now, though nothing has failed. Default: nothing.
	Warnings func() []string
	// Events is called with every event, one at a time and in order. It must not block for long,
	// nor call back into the Migration.
	Events func(Event)
	// Log receives what an operator may want to know. Default: nothing.
	Log *slog.Logger
}

// Settings are the operator's choices. The zero value of each field means its default.
type Settings struct {
	// AutoApprove takes every manual gate as approved.
	AutoApprove bool
	// Approval says whose consent a promotion needs.
	Approval Approval
	// Rehearse makes the first promotion of this process turn back right before the point of no
	// return; the next one, which a person asks for, is real.
	Rehearse bool
	// Until is the last phase to enter without a further "promote": following, verifying,
	// reads-switched or promoted. Default promoted.
	Until Phase
	// ReadSteps are the percentages of read-only traffic that move to the target before the
	// promotion, one after the other. Nil: none. Ignored without a Router.
	ReadSteps []int
	// ReadWatch is how long each read step is watched. Default 2 s.
	ReadWatch time.Duration

	// LagBytes and LagTime are what the lag gate lets pass, LagSamples how many measurements in a
	// row must be within it. Defaults 1 MiB, 2 s, 3.
	LagBytes   int64
	LagTime    time.Duration
	LagSamples int
	// ProofAge is how old a proof may be at promotion before everything is compared again.
	// Default 24 h.
	ProofAge time.Duration
	// Headroom is how many increments a sequence moves ahead when ownership does. Default 1000.
	Headroom int64

	Budgets Budgets

	// Attempts is how often a promotion that undid itself is tried before the engine waits for a
	// person. Default 3. Differences are never tried again.
	Attempts int
	// RetryPause is the time between such attempts. Default 5 s.
	RetryPause time.Duration
	// RollbackWindow completes the migration by itself that long after a promotion. Default: only
	// "complete" does.
	RollbackWindow time.Duration
	// OldData says what becomes of the source's tables when the migration is completed. Default KeepOldData.
	OldData OldData

	// Sequences is how often the follower's sequences are moved to where the owner's stand. Default
	// 10 s; negative for never.
	Sequences time.Duration

	// ClaimWait is how long Run waits while another process drives the migration; negative: not at
	// all. A server takes up to a minute to notice that a machine is gone. Default 90 s.
	ClaimWait time.Duration

	// Sample is how often lag is measured. Default 1 s.
	Sample time.Duration
	// Watch is how often the owner's gate is looked at while nothing else goes on. Default 5 s.
	Watch time.Duration
	// Grace is how long a promotion may go on undoing or finishing itself after Run was told to
	// stop. Default 15 s.
	Grace time.Duration
}

// Approval says whose consent a promotion needs.
type Approval struct {
	// Need is how many people have to approve. Default 1.
	Need int
	// Of names who may. Empty: whoever the surface lets in.
	Of []string
	// Valid is how long an approval counts. Default: until the promotion.
	Valid time.Duration
}

// Budgets bound the steps of a promotion. Clients wait during those from Hold to Own.
type Budgets struct {
	Prepare   time.Duration // each step ahead of the hold, a repeated proof excepted. Default 5 min
	Hold      time.Duration // transactions in flight end at the router. Default 5 s
	CloseGate time.Duration // default 2 s
	Writers   time.Duration // transactions in flight end in the database. Default 5 s
	Drain     time.Duration // the link applies everything up to the nonce. Default 10 s
	Settle    time.Duration // a look at the catalog under the fence. Default 2 s
	Proof     time.Duration // the delta proof under the fence. Default 10 s
	Sequences time.Duration // default 5 s
	Own       time.Duration // one try at the ownership row, and at any step after it. Default 5 s
}

// A Severity says how much a finding matters.
type Severity string

// The severities.
const (
	SeverityInfo    Severity = "info"
	SeverityWarning Severity = "warning"
	SeverityError   Severity = "error" // the migration does not start
)

// A Finding is one thing that preflight noticed.
type Finding struct {
	Severity Severity `json:"severity"`
	Check    string   `json:"check"`            // short name: wal-level, no-key, ...
	Object   string   `json:"object,omitempty"` // what it is about: source, public.users, ...
	Message  string   `json:"message"`
	Fix      string   `json:"fix,omitempty"` // the SQL or setting that mends it
}

func (s Settings) withDefaults() Settings {
	s.Until = cmp.Or(s.Until, Promoted)
	s.Approval.Need = cmp.Or(s.Approval.Need, 1)
	s.ReadWatch = cmp.Or(s.ReadWatch, 2*time.Second)
	s.LagBytes = cmp.Or(s.LagBytes, 1<<20)
	s.LagTime = cmp.Or(s.LagTime, 2*time.Second)
	s.LagSamples = cmp.Or(s.LagSamples, 3)
	s.ProofAge = cmp.Or(s.ProofAge, 24*time.Hour)
	s.Headroom = cmp.Or(s.Headroom, 1000)
	s.Attempts = cmp.Or(s.Attempts, 3)
	s.OldData = cmp.Or(s.OldData, KeepOldData)
	s.RetryPause = cmp.Or(s.RetryPause, 5*time.Second)
	s.Sequences = cmp.Or(s.Sequences, 10*time.Second)
	s.ClaimWait = cmp.Or(s.ClaimWait, 90*time.Second)
	s.Sample = cmp.Or(s.Sample, time.Second)
	s.Watch = cmp.Or(s.Watch, 5*time.Second)
	s.Grace = cmp.Or(s.Grace, 15*time.Second)
	b := &s.Budgets
	b.Prepare = cmp.Or(b.Prepare, 5*time.Minute)
	b.Hold = cmp.Or(b.Hold, 5*time.Second)
	b.CloseGate = cmp.Or(b.CloseGate, 2*time.Second)
	b.Writers = cmp.Or(b.Writers, 5*time.Second)
	b.Drain = cmp.Or(b.Drain, 10*time.Second)
	b.Settle = cmp.Or(b.Settle, 2*time.Second)
	b.Proof = cmp.Or(b.Proof, 10*time.Second)
	b.Sequences = cmp.Or(b.Sequences, 5*time.Second)
	b.Own = cmp.Or(b.Own, 5*time.Second)
	return s
}

// Validate reports settings that make no sense.
func (s Settings) Validate() error {
	stops := []Phase{Following, Verifying, ReadsSwitched, Promoted}
	if s.Until != "" && !slices.Contains(stops, s.Until) {
		return hint.Wrap(fmt.Errorf("stop after phase %q: not a phase to stop in", s.Until),
			"choose one of following, verifying, reads-switched, promoted")
	}
	if bad := slices.IndexFunc(s.ReadSteps, func(p int) bool { return p < 0 || p > 100 }); bad >= 0 {
		return hint.Wrap(fmt.Errorf("read step of %d percent", s.ReadSteps[bad]), "read steps go from 0 to 100, for example [10, 50, 100]")
	}
	if a := s.Approval; a.Need < 0 || a.Valid < 0 || len(a.Of) > 0 && a.Need > len(a.Of) {
		return hint.Wrap(fmt.Errorf("%d approvals of %d people, valid for %s", a.Need, len(a.Of), a.Valid), "no more approvals than people, and a time that is not negative")
	}
	return nil
}

// normalize fills defaults in and reports what is missing.
func (c *Config) normalize() error {
	missing := []string{}
	need := func(field string, there bool) {
		if !there {
			missing = append(missing, field)
		}
	}
	need("Name", c.Name != "")
	need("Source", c.Source != nil)
	need("Target", c.Target != nil)
	need("Forward", c.Forward != nil)
	need("Loader", c.Loader != nil)
	need("Verifier", c.Verifier != nil)
	need("Journal", c.Journal != nil)
	if len(missing) > 0 {
		return errors.New("configure the migration: without " + strings.Join(missing, ", "))
	}
	if err := c.Settings.Validate(); err != nil {
		return fmt.Errorf("configure the migration: %w", err)
	}
	c.Settings = c.Settings.withDefaults()
	c.Playbook = cmp.Or(c.Playbook, c.Name)
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	if c.Preflight == nil {
		c.Preflight = func(context.Context) ([]Finding, error) { return nil, nil }
	}
	if c.Retryable == nil {
		c.Retryable = func(error) bool { return false }
	}
	if c.Before == nil {
		c.Before = func(context.Context, Status, Phase) error { return nil }
	}
	if c.Events == nil {
		c.Events = func(Event) {}
	}
	if c.Router == nil {
		c.Router = noRouter{}
	}
	if c.Loses == nil {
		c.Loses = func() []string { return nil }
	}
	if c.Reverse == nil && len(c.Lossy) == 0 {
		c.Lossy = []string{"there is no reverse link"}
	}
	return nil
}

// noRouter stands in where no router does: clients find the owner by themselves.
type noRouter struct{}

func (noRouter) Reads(context.Context, int) error           { return nil }
func (noRouter) Hold(context.Context, int64) error          { return nil }
func (noRouter) Release(context.Context, Side, int64) error { return nil }
func (noRouter) Stalls() StallStats                         { return StallStats{} }
