package httpdoor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// ErrStale says that a Hold or Release came too late: the door has been told of a newer epoch.
var ErrStale = errors.New("epoch is out of date")

// errReleased ends a Hold that was overtaken.
var errReleased = errors.New("released before every write had ended")

// maxStalls bounds the waits that are remembered of one hold.
const maxStalls = 100_000

// Stalls says how long writes and commands waited because of the last Hold.
type Stalls struct {
	Clients       int
	P50, P99, Max time.Duration
}

// A hold waits for the writes that were in flight when it began.
type hold struct {
	drained  chan struct{} // closed when they have ended
	released chan struct{} // closed by Release, or by the next Hold
}

// Hold stops passing on writes and sending commands, and returns when those in flight have ended. When ctx
// ends first it says how many are left; the hold stays until Release in any case. Each attempt to change
// the owner has an epoch of its own, higher than those before: an older one, or one that has been released,
// gets ErrStale. Holding again is no error.
func (d *Door) Hold(ctx context.Context, epoch int64) error {
	h, idle, err := d.beginHold(epoch)
	if err != nil {
		return err
	}
	for _, ended := range []<-chan struct{}{h.drained, idle} {
		select {
		case <-ended:
		case <-h.released:
			return fmt.Errorf("hold at epoch %d: %w", epoch, errReleased)
		case <-ctx.Done():
			s := d.Stats()
			n := 0
			if s.Commands != nil {
				n = s.Commands.Sending
			}
			return hint.Wrap(fmt.Errorf("hold at epoch %d: %d writes and %d commands are still at the data server: %w", epoch, s.InFlight, n, context.Cause(ctx)),
				"look for what the data server is busy with; promote.hold_budget is how long a promotion waits for it")
		}
	}
	return nil
}

func (d *Door) beginHold(epoch int64) (h *hold, idle <-chan struct{}, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if last := d.mu.epoch; epoch < last || epoch == last && d.mu.answered {
		return nil, nil, fmt.Errorf("hold at epoch %d, have %d: %w", epoch, last, ErrStale)
	}
	d.mu.epoch, d.mu.answered = epoch, false
	h = &hold{drained: make(chan struct{}), released: make(chan struct{})}
	if d.mu.hold != nil {
		close(d.mu.hold.released)
	} else {
		d.mu.stalls = nil
	}
	// The queue first: whoever finds the door held finds the queue closed.
	d.queue.Hold()
	d.mu.hold = h
	if d.mu.inFlight == 0 {
		close(h.drained)
	}
	idle = h.drained
	if d.commands != nil {
		d.commands.Hold()
		idle = d.commands.Idle()
	}
	return h, idle, nil
}

// Release sends held and later writes and commands to the owner. An epoch older than that of the last Hold
// or Release gets ErrStale. It returns at once.
func (d *Door) Release(ctx context.Context, owner Backend, epoch int64) error {
	if _, ok := d.servers[owner]; !ok {
		return fmt.Errorf("release: data server %q is not known", owner)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if last := d.mu.epoch; epoch < last {
		return fmt.Errorf("release at epoch %d, have %d: %w", epoch, last, ErrStale)
	}
	if d.mu.hold != nil {
		close(d.mu.hold.released)
		d.mu.hold = nil
	}
	d.mu.epoch, d.mu.answered, d.mu.owner = epoch, true, owner
	held := d.queue.Len()
	d.queue.Release()
	if d.commands != nil {
		d.commands.Release()
	}
	d.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "released writes",
		slog.String("owner", string(owner)), slog.Int64("epoch", epoch), slog.Int("held", held))
	return nil
}

// Reads sends that percentage of the reads to the data server that does not own.
func (d *Door) Reads(ctx context.Context, percent int) error {
	if percent < 0 || percent > 100 {
		return fmt.Errorf("reads: %d is not a percentage", percent)
	}
	if percent > 0 && len(d.servers) < 2 {
		return errors.New("reads: there is no second data server")
	}
	d.mu.Lock()
	d.mu.percent = percent
	d.mu.Unlock()
	d.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "routed reads", slog.Int("percent", percent))
	return nil
}

// Stalls returns the waits that the last Hold caused.
func (d *Door) Stalls() Stalls {
	d.mu.Lock()
	all := slices.Clone(d.mu.stalls)
	d.mu.Unlock()
	if len(all) == 0 {
		return Stalls{}
	}
	slices.Sort(all)
	at := func(part float64) time.Duration { return all[int(part*float64(len(all)-1))] }
	return Stalls{Clients: len(all), P50: at(0.50), P99: at(0.99), Max: all[len(all)-1]}
}

func (d *Door) stalled(t time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.mu.stalls) < maxStalls {
		d.mu.stalls = append(d.mu.stalls, t)
	}
}

// owner returns the backend that owns, and the one that does not, or "".
func (d *Door) owner() (owner, other Backend) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for b := range d.servers {
		if b != d.mu.owner {
			other = b
		}
	}
	return d.mu.owner, other
}

// enter counts a write in, once nothing is held and it is its turn, and returns where it goes. leave must
// be called when it has ended. Writes begin in the order in which they came.
func (d *Door) enter(ctx context.Context) (Backend, error) {
	began := time.Now()
	t, err := d.queue.Join()
	if err != nil {
		return "", err
	}
	for {
		if t != nil {
			if err := t.Wait(ctx); err != nil {
				return "", err
			}
			if err := t.Turn(ctx); err != nil {
				return "", err
			}
		}
		if owner, ok := d.begin(); ok {
			if t != nil {
				t.Done()
				d.stalled(time.Since(began))
			}
			return owner, nil
		}
		if t == nil { // held since we looked
			if t, err = d.queue.Join(); err != nil {
				return "", err
			}
		}
	}
}

// begin counts a write in, unless the door is held.
func (d *Door) begin() (Backend, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.hold != nil {
		return "", false
	}
	d.mu.inFlight++
	return d.mu.owner, true
}

func (d *Door) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.inFlight--
	if d.mu.inFlight == 0 && d.mu.hold != nil {
		select {
		case <-d.mu.hold.drained:
		default:
			close(d.mu.hold.drained)
		}
	}
}
