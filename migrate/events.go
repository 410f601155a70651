package migrate

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
)

// How many events are kept in memory: the newest kept ones for all subscribers, and the passing
// ones that one slow subscriber has not fetched yet.
const (
	recentEvents  = 256
	passingEvents = 64
)

// eventLog is what subscribers are served from.
type eventLog struct {
	recent      []Event // the newest journaled ones, in order
	subscribers map[*subscriber]struct{}
}

type subscriber struct{ passing []Event }

// Subscribe yields every event after the one with that sequence number, first from the journal,
// then as they happen, until ctx is done. 0 starts at the beginning; an event with Seq 0 is passing
// and may be missing. A slow reader loses passing events only. The error, if any, comes last.
func (m *Migration) Subscribe(ctx context.Context, after int64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		sub := &subscriber{}
		m.mu.Lock()
		m.mu.log.subscribers[sub] = struct{}{}
		m.mu.Unlock()
		defer func() {
			m.mu.Lock()
			delete(m.mu.log.subscribers, sub)
			m.mu.Unlock()
		}()
		for {
			events, changed, err := m.eventsAfter(sub, after)
			if err != nil {
				yield(Event{}, err)
				return
			}
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
				after = max(after, e.Seq)
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	}
}

// eventsAfter returns what a subscriber has not seen, and a channel that closes when there may be more.
func (m *Migration) eventsAfter(sub *subscriber, after int64) (events []Event, changed <-chan struct{}, err error) {
	m.mu.Lock()
	last, recent := m.mu.state.seq, m.mu.log.recent
	passing := sub.passing
	sub.passing = nil
	changed = m.mu.changed
	m.mu.Unlock()

	if after < last && (len(recent) == 0 || recent[0].Seq > after+1) {
		err := m.cfg.Journal.Scan(func(b []byte) error {
			var e Event
			if err := json.Unmarshal(b, &e); err != nil {
				return fmt.Errorf("read journal record after %d: %w", after, err)
			}
			if e.Seq > after && e.Seq <= last {
				events = append(events, e)
			}
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
		return append(events, passing...), changed, nil
	}
	for _, e := range recent {
		if e.Seq > after {
			events = append(events, e)
		}
	}
	return append(events, passing...), changed, nil
}

// keepLocked remembers a journaled event for subscribers.
func (m *Migration) keepLocked(e Event) {
	log := &m.mu.log
	if len(log.recent) == recentEvents {
		log.recent = append([]Event(nil), log.recent[recentEvents/2:]...) // readers may hold the old array
	}
	log.recent = append(log.recent, e)
}

// passLocked hands a passing event to those who listen.
func (m *Migration) passLocked(e Event) {
	for sub := range m.mu.log.subscribers {
		if len(sub.passing) < passingEvents {
			sub.passing = append(sub.passing, e)
		}
	}
	m.changedLocked()
}
