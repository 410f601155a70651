package lab

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Clock measures one run: time, and processor time of the servers.
type Clock struct {
	lab   *Lab
	began time.Time
	usage Usage
}

// Clock starts to measure.
func (l *Lab) Clock() Clock { return Clock{l, time.Now(), l.usage()} }

// Stop returns how long it took. The program's own processor time is not in the Usage.
func (c Clock) Stop() (time.Duration, Usage) {
	elapsed := time.Since(c.began)
	now := c.lab.usage()
	return elapsed, Usage{Source: now.Source - c.usage.Source, Target: now.Target - c.usage.Target}
}

// pollEvery is how often a poll asks: a hundredth of the shortest run that is worth measuring.
const pollEvery = 5 * time.Millisecond

// Poll asks a question, whose answer is true or false, again and again over one session, until the
// answer is true. It ends with an error when ended is closed before that.
func Poll(ctx context.Context, conn *pgx.Conn, ended <-chan struct{}, question string, args ...any) error {
	every := time.NewTicker(pollEvery)
	defer every.Stop()
	for {
		var yes bool
		if err := conn.QueryRow(ctx, question, args...).Scan(&yes); err != nil {
			return err
		}
		if yes {
			return nil
		}
		select {
		case <-every.C:
		case <-ended:
			return errEnded
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
