package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// One process at a time drives a migration. A session lock in each database keeps a second one out
// while the first lives; a token beside the ownership row stops a first one that was taken for dead:
// whatever it still has on its way, or does once it wakes up, the databases refuse.

// waitsForDriver is what a migration waits for while another process drives it.
const waitsForDriver = "driver"

// Claim makes this process the one that drives the migration, and waits for Settings.ClaimWait while
// another one does; then the error is ErrDriven. Run does it first; what prepares a Run in the
// databases does it before.
func (m *Migration) Claim(ctx context.Context) error {
	if m.snapshot().phase.Final() {
		return nil
	}
	defer m.trouble(nil)
	defer m.update(func(l *live) { l.waitingFor, l.resting = "", false })
	began := time.Now()
	looked := false
	// The source comes first, for every process, so that two of them cannot hold one each for long.
	retry := pause{min: 100 * time.Millisecond, max: 2 * time.Second}
	for {
		err := m.claimBoth(ctx)
		p := m.snapshot().phase
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrDriven) && time.Since(began) >= m.cfg.Settings.ClaimWait:
			return hint.Wrap(fmt.Errorf("migration %s: %w", m.cfg.Name, err), "one process at a time drives a migration: drive it over that one's API, or stop that process first")
		case errors.Is(err, ErrDriven) && !looked && (p == Pending || p == Preparing):
			// A source that is the target as well is driven by this very process: waiting would not help.
			looked = true
			if err := m.preflight(ctx, nil); err != nil {
				return err
			}
			continue
		case errors.Is(err, ErrDriven):
			m.update(func(l *live) { l.waitingFor, l.resting = waitsForDriver, true })
		case errors.Is(err, ErrDeposed), m.tellsAtOnce(err) && (!errors.Is(err, context.DeadlineExceeded) || time.Since(began) >= m.cfg.Settings.ClaimWait):
			return err // a time-out may be the last transaction of a process that is cut off
		}
		m.trouble(err)
		if err := retry.wait(ctx); err != nil {
			return err
		}
	}
}

// claimBoth makes this process the driver of both databases. It changes nothing where it is that.
func (m *Migration) claimBoth(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Settings.Budgets.Own)
	defer cancel()
	for _, side := range []Side{Source, Target} {
		if _, err := m.database(side).Claim(ctx); err != nil {
			return fmt.Errorf("claim the %s: %w", side, err)
		}
	}
	return nil
}

// stillDrives is asked before what loader and links make and drop, so that a process that was replaced
// finds out before it begins. Their sessions are refused besides, see fence.Database.Enlist: this process
// may be replaced right after the answer.
func (m *Migration) stillDrives(ctx context.Context) error {
	err := m.claimBoth(ctx)
	if errors.Is(err, ErrDriven) {
		err = fmt.Errorf("%w: %w", ErrDeposed, err)
		m.depose(err)
	}
	return err
}

// keepClaims claims again what is lost with a session, until ctx is done. A process that finds a
// successor ends.
func (m *Migration) keepClaims(ctx context.Context) {
	retry := pause{min: 100 * time.Millisecond, max: 5 * time.Second}
	for {
		var lost [2]<-chan struct{}
		var err error
		for i, side := range []Side{Source, Target} {
			once, cancel := context.WithTimeout(ctx, m.cfg.Settings.Budgets.Own)
			l, e := m.database(side).Claim(once)
			cancel()
			lost[i], err = l, errors.Join(err, e)
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrDriven):
			m.depose(fmt.Errorf("%w: %w", ErrDeposed, err))
			return
		case err != nil: // what does not answer lets nobody else in either
			if retry.wait(ctx) != nil {
				return
			}
			continue
		}
		retry.next = 0
		select {
		case <-ctx.Done():
			return
		case <-lost[0]:
		case <-lost[1]:
		}
	}
}

// depose ends Run because another process drives the migration now.
func (m *Migration) depose(cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.depose != nil {
		m.mu.depose(hint.Wrap(fmt.Errorf("migration %s: %w", m.cfg.Name, cause), "another process took over while this one was cut off or stood still: drive the migration there"))
	}
}

// A driven database ends Run as soon as it refuses a call because another process drives it.
type driven struct {
	Database

	m *Migration
}

func (d driven) look(err error) error { return d.m.heed(err) }

// heed ends Run when an error says that another process drives the migration, and returns it.
func (m *Migration) heed(err error) error {
	if errors.Is(err, ErrDeposed) {
		m.depose(err)
	}
	return err
}

func (d driven) Claim(ctx context.Context) (<-chan struct{}, error) {
	lost, err := d.Database.Claim(ctx)
	return lost, d.look(err)
}

func (d driven) Install(ctx context.Context, migration string, owner Side) error {
	return d.look(d.Database.Install(ctx, migration, owner))
}

func (d driven) CloseGate(ctx context.Context) error { return d.look(d.Database.CloseGate(ctx)) }

func (d driven) OpenGate(ctx context.Context) error { return d.look(d.Database.OpenGate(ctx)) }

func (d driven) Signal(ctx context.Context, nonce string) error {
	return d.look(d.Database.Signal(ctx, nonce))
}

func (d driven) Own(ctx context.Context, epoch int64, owner Side) error {
	return d.look(d.Database.Own(ctx, epoch, owner))
}

func (d driven) Uninstall(ctx context.Context) error { return d.look(d.Database.Uninstall(ctx)) }
