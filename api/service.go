package api

import (
	"context"
	"errors"
	"iter"

	"github.com/ficus-migrate/ficus/migrate"
)

// Errors that a Service answers with, and that have statuses of their own.
var (
	// ErrNotFound says that there is no migration of that name.
	ErrNotFound = errors.New("no such migration")
	// ErrExists says that a migration of that name is there already.
	ErrExists = errors.New("migration exists")
	// ErrFixed says that this process drives the migration that it was started with and no other.
	ErrFixed = errors.New("this process drives one migration only")
)

// A Service is what the API shows and drives. Its methods may be called concurrently.
type Service interface {
	// List returns the status of every migration, by name.
	List() []migrate.Status
	// Get returns the status of one, or ErrNotFound.
	Get(name string) (migrate.Status, error)
	// Steps returns the table of steps that a migration runs, with its budgets.
	Steps(name string) ([]migrate.Step, error)
	// Events yields the events after a sequence number, and goes on as they happen until ctx ends;
	// see [migrate.Migration.Subscribe].
	Events(ctx context.Context, name string, after int64) (iter.Seq2[migrate.Event, error], error)
	// Do carries a command to a migration; see [migrate.Migration.Do].
	Do(ctx context.Context, name string, c migrate.Command) error
	// Verify compares everything at one instant over the link that runs now, while both databases
	// are in use, and mends the follower when it is asked to. It answers migrate.ErrNotNow while no
	// link runs or ownership is moving.
	Verify(ctx context.Context, name string, r VerifyRequest) (Comparison, error)
	// Evidence returns the newest report of a comparison, sealed, in JSON, or ErrNotFound.
	Evidence(ctx context.Context, name string) ([]byte, error)
	// Amend takes the rules of a playbook that was changed, for the table in front of whose DDL the
	// migration stands. It answers migrate.ErrNotNow when it does not.
	Amend(ctx context.Context, name string, r AmendRequest) error
	// Start begins a migration, or answers ErrFixed.
	Start(ctx context.Context, r StartRequest) (migrate.Status, error)
}

// A StartRequest describes a migration to begin: an embedded playbook by name, or a playbook's text.
type StartRequest struct {
	Playbook string            `json:"playbook,omitempty"` // name of an embedded one
	YAML     string            `json:"yaml,omitempty"`     // text of one
	Params   map[string]string `json:"params,omitempty"`   // "name", "source" and "target" among them
	Yes      bool              `json:"yes,omitempty"`      // take every manual gate as approved
}

// A VerifyRequest says what a comparison does beside comparing rows.
type VerifyRequest struct {
	RowsOnly bool   `json:"rows_only,omitempty"` // compare neither definitions nor sequences
	Repair   bool   `json:"repair,omitempty"`    // answer with the SQL that mends the follower's rows: it holds their values
	Apply    bool   `json:"apply,omitempty"`     // mend them, while applying stands still, and compare them again
	Actor    string `json:"actor,omitempty"`     // who asks, for the journal. Default: the token's name, or "api"
}

// A Comparison is what came of a VerifyRequest.
type Comparison struct {
	migrate.Proof

	Verdict         string  `json:"verdict"`           // equal, different, could not tell
	Definitions     int     `json:"definitions"`       // that differ, and matter
	SequencesBehind int     `json:"sequences_behind"`  // on a follower they may be: they move now and then
	Repairs         int     `json:"repairs,omitempty"` // statements in SQL
	SQL             string  `json:"sql,omitempty"`     // when asked for
	Mended          *Mended `json:"mended,omitempty"`  // when rows were
}

// Mended says what was mended, at the instant at which applying stood still.
type Mended struct {
	Rows  int           `json:"rows"`
	Proof migrate.Proof `json:"proof"` // of these rows, afterwards
}

// An AmendRequest is a playbook that was changed while its migration stands.
type AmendRequest struct {
	YAML   string            `json:"yaml"`
	Params map[string]string `json:"params,omitempty"` // beside those that the migration was started with
	Actor  string            `json:"actor,omitempty"`  // who asks, for the journal. Default: the token's name, or "api"
}
