package verify

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// A comparison that runs can be paused (Config.Held). For a while its workers wait between two
// queries, with their snapshots. These hold VACUUM back on both sides, so after Config.HoldSnapshots
// the comparison lets them go, and its connections with them. It remembers the tables that it has
// compared; the others are compared at another instant, when it goes on.

// errLetGo ends a round of a comparison whose pause lasts too long to keep its snapshots.
var errLetGo = errors.New("the comparison is paused")

// breathe is called between two queries. While the comparison is paused it waits, and returns errLetGo
// when that takes too long.
func (s *Session) breathe(ctx context.Context) error {
	if s.cfg.Held == nil {
		return nil
	}
	held := s.cfg.Held()
	if held == nil {
		return nil
	}
	patience := time.NewTimer(s.cfg.HoldSnapshots)
	defer patience.Stop()
	for ; held != nil; held = s.cfg.Held() {
		select {
		case <-held:
		case <-patience.C:
			return errLetGo
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// sleep waits for the end of a pause without a connection, then opens the session anew: the tables
// may have changed their shape.
func (s *Session) sleep(ctx context.Context) error {
	s.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "comparison paused, snapshots let go", slog.Int("parts_compared", len(s.known.Parts)))
	s.Close() //nolint:contextcheck // it says goodbye in a time of its own
	s.nodes = [2]*node{}
	for held := s.cfg.Held(); held != nil; held = s.cfg.Held() {
		select {
		case <-held:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return s.attach(ctx)
}
