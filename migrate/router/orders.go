package router

import (
	"errors"
	"fmt"
	"sync"

	"github.com/ficus-migrate/ficus/migrate"
)

// ErrStale says that an order came too late: one of a newer epoch has been given.
var ErrStale = errors.New("epoch is out of date")

// orders keeps the sequence of Hold and Release, as the gateway does.
type orders struct {
	mu struct {
		sync.Mutex
		epoch    int64
		answered bool // by a Release: a Hold of that epoch comes too late
		owner    migrate.Side
		percent  int
	}
}

// hold admits a Hold.
func (o *orders) hold(epoch int64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if last := o.mu.epoch; epoch < last || epoch == last && o.mu.answered {
		return fmt.Errorf("hold at epoch %d, have %d: %w", epoch, last, ErrStale)
	}
	o.mu.epoch, o.mu.answered = epoch, false
	return nil
}

// release admits a Release and says what percentage of reads goes elsewhere.
func (o *orders) release(owner migrate.Side, epoch int64) (percent int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if last := o.mu.epoch; epoch < last {
		return 0, fmt.Errorf("release at epoch %d, have %d: %w", epoch, last, ErrStale)
	}
	o.mu.epoch, o.mu.answered, o.mu.owner = epoch, true, owner
	return o.mu.percent, nil
}

// reads admits Reads and says who owns; "" while that has not been said.
func (o *orders) reads(percent int) (owner migrate.Side, err error) {
	if percent < 0 || percent > 100 {
		return "", fmt.Errorf("reads: %d is not a percentage", percent)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.percent = percent
	return o.mu.owner, nil
}
