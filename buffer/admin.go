package buffer

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// A Filter chooses commands. The zero value means all that are not over.
type Filter struct {
	States []State // default: Waiting, Sending, Dead
	Order  string  // default: any
	Type   string  // default: any
	After  uint64  // only those with a higher number, of those that are not over (default: all)
	Limit  int     // default 100
}

func (f *Filter) match(e *Entry) bool {
	return slices.Contains(f.States, e.State) && (f.Order == "" || f.Order == e.Order) && (f.Type == "" || f.Type == e.Type)
}

// List returns the commands that a filter chooses: those that are not over by number, then the newest
// of those that are, newest first.
func (l *Commands) List(f Filter) ([]Entry, error) {
	if f.States == nil {
		f.States = []State{Waiting, Sending, Dead}
	}
	f.Limit = cmp.Or(f.Limit, 100)
	var found []Entry
	l.mu.Lock()
	for _, e := range l.mu.entries {
		if now := e.now(); e.durable && now.Seq > f.After && f.match(&now) {
			found = append(found, now)
		}
	}
	l.mu.Unlock()
	slices.SortFunc(found, func(a, b Entry) int { return cmp.Compare(a.Seq, b.Seq) })
	found = found[:min(len(found), f.Limit)]
	if !slices.ContainsFunc(f.States, State.Over) {
		return found, nil
	}
	err := l.cfg.Bucket.EachBack(tagOver, func(r eventstore.Record) (bool, error) {
		if len(found) >= f.Limit {
			return false, nil
		}
		o, err := parseOver(r)
		if err != nil {
			return false, err
		}
		rec, ok, err := l.read(o.key)
		if ok && err == nil && f.match(&rec.Entry) {
			found = append(found, rec.Entry)
		}
		return true, err
	})
	if err != nil {
		return nil, fmt.Errorf("list commands: %w", err)
	}
	return found, nil
}

// Requeue sends a dead command again, in its place, with all its attempts before it. A command in
// another state gets ErrState.
func (l *Commands) Requeue(ctx context.Context, key string) error {
	e, err := l.change(ctx, key, "requeue", Dead)
	if err != nil {
		return err
	}
	rec := e.rec // nobody else changes it: it is busy
	rec.State, rec.Attempts, rec.Since, rec.Over = Waiting, 0, time.Now().UTC(), time.Time{}
	stored, err := rec.encode()
	if err == nil {
		err = l.cfg.Bucket.Update([]eventstore.Record{stored}, nil)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e.busy = false
	if err != nil {
		return fmt.Errorf("requeue command %q: %w", key, err)
	}
	e.rec, e.fails, e.done = rec, 0, make(chan struct{})
	if e.lane == nil {
		l.appendLocked(e)
	}
	e.lane.after = time.Time{}
	l.offerLocked(e.lane)
	return nil
}

// Drop gives up a command that is dead or waits. Its key stays taken for as long as answers are kept.
func (l *Commands) Drop(ctx context.Context, key string) error {
	e, err := l.change(ctx, key, "drop", Dead, Waiting)
	if err != nil {
		return err
	}
	rec := e.rec
	rec.State = Dropped
	return l.finish(e, rec)
}

// change makes an entry busy that is in one of the states.
func (l *Commands) change(ctx context.Context, key, doing string, states ...State) (*entry, error) {
	at, err := l.Look(ctx, key)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.mu.entries[key]
	if e == nil || !e.durable || e.busy || !slices.Contains(states, e.rec.State) {
		if e != nil && e.durable {
			at = e.now()
		}
		return nil, hint.Wrap(fmt.Errorf("%s command %q, which is %s: %w", doing, key, at.State, ErrState), "only these can be taken: %v", states)
	}
	e.busy = true
	return e, nil
}

// expire forgets, for as long as ctx lives, what has been over for long enough.
func (l *Commands) expire(ctx context.Context) error {
	for {
		if err := l.forget(time.Now().Add(-l.cfg.Keep)); err != nil {
			return fmt.Errorf("forget old answers: %w", err)
		}
		if err := backoff.Sleep(ctx, min(time.Minute, l.cfg.Keep/4)); err != nil {
			return err
		}
	}
}

// forget removes what was over before a time. One at a time: a key that comes again meanwhile is known until
// it is removed, and new afterwards.
func (l *Commands) forget(before time.Time) error {
	const atOnce = 1000
	for {
		var old []over
		err := l.cfg.Bucket.Each(tagOver, func(r eventstore.Record) (bool, error) {
			o, err := parseOver(r)
			if err != nil || !o.at.Before(before) {
				return false, err
			}
			old = append(old, o)
			return len(old) < atOnce, nil
		})
		if err != nil || len(old) == 0 {
			return err
		}
		err = l.remove(old)
		if err != nil || len(old) < atOnce {
			return err
		}
	}
}

func (l *Commands) remove(old []over) error {
	if len(old) == 0 {
		return nil
	}
	var keys []string
	var bytes int64
	l.mu.Lock()
	highest := l.mu.seq
	l.mu.Unlock()
	for _, o := range old {
		keys = append(keys, tagRecord+o.key, o.record().Key)
		bytes += o.size
	}
	err := l.cfg.Bucket.Update([]eventstore.Record{{Key: tagHighest, Value: []byte(hex64(highest))}}, keys)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.kept -= len(old)
	l.mu.bytes -= bytes
	return nil
}
