// Package gates holds the conditions that a playbook can put before a phase, beside the engine's own:
// a maintenance window, no long transactions, room for WAL and on disk, and checks by SQL, HTTP and
// command. Each is a [migrate.Gate]: it says what it measured and what was wanted. What cannot be
// measured is closed. Brakes make copy and link stand back; what cannot be measured brakes nothing.
package gates

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ficus-migrate/ficus/migrate"
)

// A gate is the common part of all of them.
type gate struct {
	name    string
	before  migrate.Phase
	timeout time.Duration
	wanted  string
	measure func(ctx context.Context, s migrate.Status) (open bool, measured string, err error)
}

// Name implements [migrate.Gate].
func (g *gate) Name() string { return g.name }

// Before implements [migrate.Gate].
func (g *gate) Before() migrate.Phase { return g.before }

// Measure implements [migrate.Gate].
func (g *gate) Measure(ctx context.Context, s migrate.Status) (migrate.Reading, error) {
	r := migrate.Reading{Wanted: g.wanted}
	timed, cancel := context.WithTimeoutCause(ctx, g.timeout, fmt.Errorf("no answer within %s", g.timeout))
	defer cancel()
	var err error
	r.Open, r.Measured, err = g.measure(timed, s)
	if err != nil {
		r.Open = false
		if cause := context.Cause(timed); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
	}
	return r, err
}

// shorten keeps what a check printed fit for one line of status.
func shorten(s string) string {
	const most = 200
	runes := []rune(s)
	if len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return s
}
