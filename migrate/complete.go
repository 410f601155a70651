package migrate

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// OldData says what becomes of the source's tables when a migration is completed.
type OldData string

// The choices.
const (
	// KeepOldData leaves them where they are, and fenced: schema ficus stays on the source for that.
	KeepOldData OldData = "keep"
	// ArchiveOldData moves them into schemas named after the day, where no application finds them by
	// accident; then the fence can go, and nothing of Ficus is left.
	ArchiveOldData OldData = "archive"
)

// An Archiver is a Database that can put the tables of its side away.
type Archiver interface {
	Database

	// Archive moves every fenced table into a schema named after its own, with a suffix, and returns these
	// schemas. The tables keep their fence.
	Archive(ctx context.Context, suffix string) (schemas []string, err error)
}

// archiveOld puts the old owner's tables away, if the settings say so.
func (m *Migration) archiveOld(ctx context.Context, _ *attempt) error {
	if m.cfg.Settings.OldData != ArchiveOldData {
		return nil
	}
	if err := m.stillDrives(ctx); err != nil {
		return err
	}
	a, ok := m.cfg.Source.(Archiver)
	if !ok {
		return fmt.Errorf("the tables of the source cannot be moved: it is a %T", m.cfg.Source)
	}
	day := m.snapshot().endsAt
	schemas, err := a.Archive(ctx, "_old_"+day.UTC().Format("20060102"))
	if err != nil {
		return m.heed(err)
	}
	m.note(Event{Type: eventStep, Message: "the old tables are in " + strings.Join(schemas, ", ")}, fact{Archived: schemas})
	return nil
}

// freeOld removes the fence from tables that were put away.
func (m *Migration) freeOld(ctx context.Context, _ *attempt) error {
	if m.cfg.Settings.OldData != ArchiveOldData {
		return nil
	}
	return m.database(Source).Uninstall(ctx)
}

// refuseCompleteLocked says what would be given up by completing now, beside the way back itself.
func (m *Migration) refuseCompleteLocked() error {
	because := m.unsettledLocked()
	if len(because) == 0 {
		return nil
	}
	return hint.Wrap(fmt.Errorf("complete: %w: %s", ErrNotNow, strings.Join(because, "; ")),
		"there is no way back afterwards, and the old data stays as it is now; if that is wanted: ficus complete %s --force", m.cfg.Name)
}

// unsettledLocked lists what stands against completing now; nothing while the target does not own the data.
func (m *Migration) unsettledLocked() []string {
	s := &m.mu.state
	if s.owner != Target || s.phase.Final() || s.wish == Complete {
		return nil
	}
	var because []string
	if len(m.lossy()) == 0 {
		because = m.behindLocked()
	}
	if s.foreign > 0 {
		because = append(because, foreignText(s.foreign))
	}
	if ends := m.windowLocked(); time.Now().Before(ends) {
		because = append(because, fmt.Sprintf("the way back is kept until %s", ends.Format(time.RFC3339)))
	}
	return because
}
