package migrate

import (
	"context"
	"log/slog"
	"time"
)

// sequenceTimeout bounds one round over the sequences.
const sequenceTimeout = 5 * time.Second

// keepSequences moves the follower's sequences to where the owner's stand, again and again until ctx is
// done, so that a follower whose owner is lost for good gives out no value twice but the last few. At
// a promotion they are set with headroom; see stepSequences.
func (m *Migration) keepSequences(ctx context.Context) {
	every := m.cfg.Settings.Sequences
	if every < 0 {
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := m.followSequences(ctx)
		if err != nil && !failed && ctx.Err() == nil { // once, until it works again
			m.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "sequences are not followed, will try again", slog.String("migration", m.cfg.Name), slog.Any("err", err))
		}
		failed = err != nil
	}
}

// followSequences is one round. One that overlaps a promotion does no harm: no sequence goes backward.
func (m *Migration) followSequences(ctx context.Context) error {
	from, ok := m.followsSequences()
	if !ok {
		return nil
	}
	return m.copySequences(ctx, from)
}

// copySequences moves the other side's sequences to where those of from stand.
func (m *Migration) copySequences(ctx context.Context, from Side) error {
	ctx, cancel := context.WithTimeout(ctx, sequenceTimeout)
	defer cancel()
	seqs, err := m.database(from).Sequences(ctx)
	if err != nil || len(seqs) == 0 {
		return err
	}
	return m.database(from.Other()).SetSequences(ctx, seqs, 0)
}

// followsSequences says which side's sequences the other one follows now: those of the side that a
// link leaves, while no promotion is under way.
func (m *Migration) followsSequences() (from Side, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	from, flows := linkOf(m.mu.state.phase)
	switch {
	case !flows, m.mu.live.link == nil, m.mu.live.linkFrom != from:
		return "", false
	case m.mu.state.phase == Promoting, m.mu.state.phase == RollingBack:
		return "", false
	}
	return from, true
}
