package buffer

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ficus-migrate/ficus/eventstore"
)

// An entry is a command that is not over, or a key that is being looked up. Its fields but the
// channels are guarded by Commands.mu.
type entry struct {
	rec     record
	lane    *lane         // nil: in none
	durable bool          // stored: what is not is not sent
	sending bool          // at the data server
	fails   int           // attempts in a row without an answer
	stalled time.Time     // since when the last hold kept it; zero: it did not
	busy    bool          // at the data server, or a change of it is being written: nobody else changes it
	gone    bool          // once settled: nothing is under this key here, look again
	settled chan struct{} // closed when durable or gone
	done    chan struct{} // closed when over or dead; requeue makes a new one
}

func (e *entry) size() int64 { return e.rec.size() }

// now returns the entry as others see it.
func (e *entry) now() Entry {
	out := e.rec.Entry
	if e.sending {
		out.State = Sending
	}
	return out
}

// Accept makes a command durable and returns where it stands; fresh is false when its key was known.
// A command that is not valid gets an *InvalidError, one whose key belongs to another command
// ErrMismatch, and one for which there is no room a *FullError. On an error that is none of these
// nobody can say whether the command was accepted: the same key asks again.
func (l *Commands) Accept(ctx context.Context, c Command) (stands Entry, fresh bool, err error) {
	if err := c.validate(l.cfg.MaxPayload); err != nil {
		return Entry{}, false, err
	}
	sum := c.print()
	for {
		e, mine := l.claim(c.Key)
		if mine {
			return l.settle(e, c, sum)
		}
		select {
		case <-e.settled:
		case <-ctx.Done():
			return Entry{}, false, context.Cause(ctx)
		}
		l.mu.Lock()
		gone, rec, now := e.gone, e.rec, e.now()
		l.mu.Unlock()
		if gone {
			continue
		}
		return now, false, l.same(rec, sum)
	}
}

// claim returns the entry of a key, and makes one when there is none: the caller must settle it.
func (l *Commands) claim(key string) (e *entry, mine bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.mu.entries[key]; e != nil {
		return e, false
	}
	e = &entry{settled: make(chan struct{}), done: make(chan struct{})}
	l.mu.entries[key] = e
	return e, true
}

// abandon takes back a claim.
func (l *Commands) abandon(key string, e *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.gone = true
	delete(l.mu.entries, key)
	close(e.settled)
}

// settle finds the claimed key among what is over, or stores its command.
func (l *Commands) settle(e *entry, c Command, sum []byte) (Entry, bool, error) {
	if rec, ok, err := l.read(c.Key); err != nil || ok {
		l.abandon(c.Key, e)
		if err == nil {
			err = l.same(rec, sum)
		}
		return rec.Entry, false, err
	}
	rec, err := l.enter(e, c, sum)
	if err != nil {
		l.abandon(c.Key, e)
		return Entry{}, false, err
	}
	err = l.store(rec, c)
	l.mu.Lock()
	if err != nil {
		l.leaveLocked(e)
		l.mu.Unlock()
		l.abandon(c.Key, e)
		return Entry{}, false, fmt.Errorf("accept command %q: %w", c.Key, err)
	}
	defer l.mu.Unlock()
	l.mu.count.accepted++
	e.durable = true
	close(e.settled)
	l.offerLocked(e.lane)
	return e.now(), true, nil
}

// same counts a command that came again, and refuses it when it is another one.
func (l *Commands) same(rec record, sum []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !bytes.Equal(rec.Print, sum) {
		l.mu.count.mismatched++
		return ErrMismatch
	}
	l.mu.count.repeated++
	return nil
}

// enter gives a command its number and its place in line, if there is room. It takes the place before
// it is durable, so that the line stands in the order of numbers.
func (l *Commands) enter(e *entry, c Command, sum []byte) (record, error) {
	now := time.Now().UTC()
	rec := record{
		Entry: Entry{Key: c.Key, Order: c.Order, Type: c.Type, State: Waiting, Accepted: now},
		Print: sum, Since: now, Payload: c.size(),
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.mu.stopped:
		return rec, &Error{Reason: Closed, Held: l.mu.active}
	case l.mu.active >= l.cfg.MaxCommands, l.mu.bytes+rec.size() > l.cfg.MaxBytes:
		l.mu.count.refused++
		return rec, l.fullLocked()
	}
	l.mu.seq++
	rec.Seq = l.mu.seq
	e.rec = rec
	l.mu.active++
	l.mu.bytes += e.size()
	l.appendLocked(e)
	return rec, nil
}

// fullLocked says when to try again: soon where commands are what fills the log, later where it is
// answers, which go with time alone.
func (l *Commands) fullLocked() *FullError {
	full := &FullError{Commands: l.mu.active, Bytes: l.mu.bytes, After: time.Second}
	if l.mu.active < l.cfg.MaxCommands && l.mu.kept > l.mu.active {
		full.After = min(30*time.Second, l.cfg.Keep)
	}
	return full
}

// store makes a command and its record durable.
func (l *Commands) store(rec record, c Command) error {
	stored, err := rec.encode()
	if err != nil {
		return err
	}
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return l.cfg.Bucket.Update([]eventstore.Record{stored, {Key: tagCommand + hex64(rec.Seq), Value: data}}, nil)
}

// Look returns where a command stands, or ErrUnknown.
func (l *Commands) Look(ctx context.Context, key string) (Entry, error) {
	for {
		l.mu.Lock()
		e := l.mu.entries[key]
		if e != nil && e.durable {
			defer l.mu.Unlock()
			return e.now(), nil
		}
		l.mu.Unlock()
		if e == nil {
			break
		}
		select {
		case <-e.settled:
		case <-ctx.Done():
			return Entry{}, context.Cause(ctx)
		}
	}
	rec, ok, err := l.read(key)
	switch {
	case err != nil:
		return Entry{}, fmt.Errorf("look for command %q: %w", key, err)
	case !ok || !rec.State.Over():
		// Not over here means that it was accepted since we looked: the next look finds it.
		return Entry{}, fmt.Errorf("command %q: %w", key, ErrUnknown)
	}
	return rec.Entry, nil
}

// Command returns the command itself, or ErrUnknown once it is over.
func (l *Commands) Command(ctx context.Context, key string) (Command, error) {
	entry, err := l.Look(ctx, key)
	if err != nil {
		return Command{}, err
	}
	return l.command(entry)
}

func (l *Commands) command(of Entry) (c Command, err error) {
	data, ok, err := l.cfg.Bucket.Get(tagCommand + hex64(of.Seq))
	switch {
	case err != nil:
	case !ok:
		err = ErrUnknown
	default:
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		return c, fmt.Errorf("read command %q: %w", of.Key, err)
	}
	return c, nil
}

// Wait returns when a command is over or dead, and where it stands. When ctx ends first, or the log
// stops, it returns where the command stands then, without an error: it goes on without its waiter.
func (l *Commands) Wait(ctx context.Context, key string) (Entry, error) {
	for {
		l.mu.Lock()
		e := l.mu.entries[key]
		if e == nil || !e.durable {
			l.mu.Unlock()
			return l.Look(context.WithoutCancel(ctx), key)
		}
		done, ended := e.done, l.mu.ended
		l.mu.Unlock()
		select {
		case <-done:
			l.mu.Lock()
			now, again := e.now(), !e.rec.State.Over() && e.rec.State != Dead
			l.mu.Unlock()
			if again { // requeued in between
				continue
			}
			return now, nil
		case <-ended:
			return l.Look(context.WithoutCancel(ctx), key)
		case <-ctx.Done():
			return l.Look(context.WithoutCancel(ctx), key)
		}
	}
}
