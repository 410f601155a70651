package buffer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/eventstore"
)

// Run sends commands until ctx ends, or the store fails. What is at the data server then may go on for
// StopTimeout. It returns ctx's cause once every attempt has ended. It may then be called again.
func (l *Commands) Run(ctx context.Context) error {
	l.mu.Lock()
	if l.mu.stopped {
		l.mu.stopped, l.mu.ended = false, make(chan struct{})
	}
	l.mu.Unlock()
	life, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abort(nil)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.dispatch(ctx, life) })
	group.Go(func() error { return l.expire(ctx) })
	stop := context.AfterFunc(ctx, func() { // ends with Run: it waits for nothing that Run does not
		timer := time.NewTimer(l.cfg.StopTimeout)
		defer timer.Stop()
		select {
		case <-timer.C:
			abort(context.Cause(ctx))
		case <-life.Done():
		}
	})
	defer stop()
	err := group.Wait()
	l.mu.Lock()
	l.mu.stopped = true
	close(l.mu.ended)
	l.mu.Unlock()
	return err
}

// dispatch sends what is ready, so many at a time. ctx ends the taking, life the sending.
func (l *Commands) dispatch(ctx, life context.Context) error {
	slots := make(chan struct{}, l.cfg.Parallel)
	senders, failing := errgroup.WithContext(ctx) // one that cannot write ends the others
	for {
		select {
		case slots <- struct{}{}:
		case <-failing.Done():
			return errors.Join(senders.Wait(), context.Cause(ctx))
		}
		e, err := l.take(failing)
		if err != nil {
			return errors.Join(senders.Wait(), context.Cause(ctx))
		}
		senders.Go(func() error {
			defer func() { <-slots }()
			return l.attempt(life, e)
		})
	}
}

// attempt tries to get the answer of a command that was taken.
func (l *Commands) attempt(life context.Context, e *entry) error {
	l.mu.Lock()
	rec, since := e.rec, e.stalled
	e.stalled = time.Time{}
	l.mu.count.attempts++
	l.mu.Unlock()
	if !since.IsZero() {
		l.cfg.Stalled(time.Since(since))
	}
	c, err := l.command(rec.Entry)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.landLocked(e)
		return err
	}
	ctx, cancel := context.WithTimeout(life, l.cfg.Timeout)
	answer, err := l.cfg.Send(ctx, c, rec.Attempts+1)
	cancel()
	switch {
	case err == nil:
		rec.State, rec.Answer, rec.Error = Answered, &answer, ""
		return l.finish(e, rec)
	case life.Err() != nil: // not the data server's fault; the next Run tries again, or the next process
		l.mu.Lock()
		defer l.mu.Unlock()
		l.landLocked(e)
		l.offerLocked(e.lane)
		return nil
	}
	return l.failed(life, e, rec, err)
}

// finish makes a command's end durable, and then tells it.
func (l *Commands) finish(e *entry, rec record) error {
	rec.Over = time.Now().UTC()
	stored, err := rec.encode()
	if err == nil {
		o := over{rec.Over, rec.Seq, rec.sizeOver(), rec.Key}
		err = l.cfg.Bucket.Update([]eventstore.Record{stored, o.record()}, []string{tagCommand + hex64(rec.Seq)})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.sending {
		l.landLocked(e)
	}
	e.busy = false
	if err != nil {
		l.offerLocked(e.lane)
		return fmt.Errorf("keep the end of command %q: %w", rec.Key, err)
	}
	l.leaveLocked(e)
	dead := e.rec.State == Dead
	e.rec = rec
	delete(l.mu.entries, rec.Key)
	l.mu.kept++
	l.mu.bytes += rec.sizeOver()
	if rec.State == Answered {
		l.mu.count.answered++
	}
	if !dead { // then they were told
		close(e.done)
	}
	return nil
}

// failed decides what becomes of a command after an attempt without an answer.
func (l *Commands) failed(ctx context.Context, e *entry, rec record, cause error) error {
	why := &AttemptError{Err: cause, Spent: true}
	_ = errors.As(cause, &why)
	rec.Error = why.Error()
	if why.Spent {
		rec.Attempts++
	}
	if why.Hopeless || rec.Attempts >= l.cfg.Attempts || time.Since(rec.Since) >= l.cfg.GiveUp {
		rec.State, rec.Over = Dead, time.Now().UTC()
		l.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "command is dead", slog.String("key", rec.Key), slog.String("type", rec.Type),
			slog.Int("attempts", rec.Attempts), slog.String("err", rec.Error))
	}
	stored, err := rec.encode()
	if err == nil {
		err = l.cfg.Bucket.Update([]eventstore.Record{stored}, nil)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.count.failed++
	l.landLocked(e)
	if err != nil {
		return fmt.Errorf("keep the failure of command %q: %w", rec.Key, err)
	}
	e.rec = rec
	e.fails++
	n := e.lane
	if rec.State == Dead {
		l.mu.count.died++
		if l.cfg.OnDead == DeadSkips {
			l.removeLocked(e)
		}
		close(e.done)
	} else {
		n.after = time.Now().Add(max(why.After, l.backoff(e.fails)))
	}
	l.offerLocked(n)
	return nil
}

// backoff is the pause after so many failures in a row, give or take a quarter.
func (l *Commands) backoff(fails int) time.Duration {
	d := min(l.cfg.BackoffMin<<min(fails-1, 20), l.cfg.BackoffMax)
	return d + time.Duration((rand.Float64()-0.5)/2*float64(d))
}

// Hold stops sending until Release. Commands are accepted meanwhile. Holding again is no error.
func (l *Commands) Hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.held.IsZero() {
		l.mu.held = time.Now()
	}
}

// Idle is closed while no command is at the data server. Ask again after each Hold.
func (l *Commands) Idle() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.idle
}

// Release sends again, what was delayed after a failure at once: it may be another data server that
// answers now.
func (l *Commands) Release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := l.mu.held
	if from.IsZero() {
		return
	}
	l.mu.held = time.Time{}
	for _, n := range l.mu.lanes {
		l.undelayLocked(n)
		n.after = time.Time{}
		l.offerLocked(n)
		for i, e := range n.entries { // those who waited for the hold, and not for others before it
			if i == 0 || e.rec.Accepted.After(from) {
				e.stalled = from
				if e.rec.Accepted.After(from) {
					e.stalled = e.rec.Accepted
				}
			}
		}
	}
	l.wakeLocked()
}
