package migrate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// A linkRunner is the link that runs in the background, if any.
type linkRunner struct {
	side   Side // where it starts
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when it has stopped; nil when none was started
}

// linkOf says from which side data flows during a phase.
func linkOf(p Phase) (from Side, flows bool) {
	switch p {
	case CatchingUp, Following, Verifying, ReadsSwitched, Promoting, RolledBack:
		return Source, true
	case Promoted, RollingBack:
		return Target, true
	case Pending, Preparing, Copying, Completed, Cancelled, Failed:
	}
	return "", false
}

// linkName is how people read it.
func linkName(from Side) string {
	if from == Source {
		return "forward link"
	}
	return "reverse link"
}

// runLink sees to it that the link of a phase runs, and no other. A link that stopped by itself is
// an error, except that the new owner stays in service without its reverse link: there it shows as
// "rollback not safe" and starts again with "resume".
func (m *Migration) runLink(ctx context.Context, p Phase) error {
	from, flows := linkOf(p)
	if m.link.done != nil && (!flows || m.link.side != from) {
		m.stopLink()
	}
	m.mu.Lock()
	relink, lost := m.mu.live.relink, m.mu.live.linkErr
	m.mu.live.relink = false
	if relink {
		m.mu.live.linkErr = nil
	}
	m.mu.Unlock()
	link := m.linkFrom(from)
	switch {
	case !flows || link == nil:
		return nil
	case m.link.done != nil && lost == nil && !relink:
		return nil
	case lost != nil && !relink && (p == Promoted || p == Promoting || p == RollingBack):
		return nil // an attempt finds out by itself, and undoes itself
	case lost != nil && !relink:
		return lost
	}
	m.stopLink()
	m.startLink(ctx, from, link)
	return nil
}

func (m *Migration) startLink(ctx context.Context, from Side, link Link) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	m.link = linkRunner{side: from, cancel: cancel, done: done}
	m.update(func(l *live) { l.link, l.linkFrom, l.linkErr = link, from, nil })
	go func() { // ends before Run does: stopLink waits for it
		defer close(done)
		err := link.Run(ctx)
		if ctx.Err() == nil {
			m.linkLost(from, err)
		}
	}()
}

// linkLost takes note that a link stopped by itself.
func (m *Migration) linkLost(from Side, err error) {
	if err == nil {
		err = errors.New("it stopped by itself")
	}
	err = m.heed(fmt.Errorf("%s: %w", linkName(from), err))
	m.note(Event{Type: eventLink, Message: err.Error()}, fact{Error: err.Error(), Hint: hint.Of(err)})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.live.link, m.mu.live.linkErr, m.mu.live.samples = nil, err, nil
	if m.mu.interrupt != nil && m.lostLinkLocked() != nil {
		m.mu.interrupt(err)
	}
	m.changedLocked()
}

// lostLinkLocked returns why the present phase cannot go on without its link, or nil.
func (m *Migration) lostLinkLocked() error {
	if m.mu.state.phase == Promoted {
		return nil
	}
	return m.mu.live.linkErr
}

// stopLink ends the running link, if any, and waits until it has stopped.
func (m *Migration) stopLink() {
	if m.link.done == nil {
		return
	}
	m.link.cancel(errStopped)
	<-m.link.done
	m.link = linkRunner{}
	m.update(func(l *live) { l.link, l.linkErr, l.lag, l.samples = nil, nil, nil, nil })
}

// monitor measures the running link's lag until ctx is done.
func (m *Migration) monitor(ctx context.Context) {
	tick := time.NewTicker(m.cfg.Settings.Sample)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			m.sample(ctx)
			m.mu.Lock()
			m.markLocked(time.Now())
			m.mu.Unlock()
		}
	}
}

// sample takes one measurement. One that fails is one that is missing, and a gate stays closed.
func (m *Migration) sample(ctx context.Context) {
	m.mu.Lock()
	link := m.mu.live.link
	m.mu.Unlock()
	if link == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, max(5*time.Second, m.cfg.Settings.Sample))
	defer cancel()
	lag, err := link.Lag(ctx)
	overruled := int64(0)
	m.update(func(l *live) {
		switch {
		case l.link != link: // another one runs by now
		case err != nil:
			l.samples = nil
		default:
			if l.lag != nil {
				overruled = lag.Decided - l.lag.Decided
			}
			l.lag = &lag
			l.samples = append(l.samples, lag)
			l.samples = l.samples[max(0, len(l.samples)-m.cfg.Settings.LagSamples):]
		}
	})
	if overruled > 0 {
		m.note(Event{Type: eventLink, Message: fmt.Sprintf("%d rows of the follower were overruled by the owner's: see ficus.conflicts there", overruled)}, fact{})
	}
	if err == nil {
		m.tell(Event{Type: eventProgress, Message: "lag", Data: map[string]any{"lag": lag}})
	}
}
