package link

// Bucket "identities" holds one record per link, under its name: which databases it stands between.
// It is written when a database is first met, and when one is met again on another timeline; it goes
// with the link's own record.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/source"
)

const identityBucket = "identities"

// ErrDestinationBehind says that the destination lost what it held: it was restored, or failed over to
// a standby that had not received all.
var ErrDestinationBehind = errors.New("destination lost what was applied to it")

// identities is what a link knows of its databases.
type identities struct {
	Origin      source.Identity `json:"origin"`
	Destination source.Identity `json:"destination"`
	Progress    bool            `json:"progress"` // the destination has had its progress row
	Copied      change.LSN      `json:"copied"`   // what the newest base sees was on the origin's disk before it
	GaveUp      string          `json:"gave_up"`  // why the link dropped its own slot; "" when it did not
}

// identities reads the record; the zero value when there is none.
func (l *Link) identities() (identities, error) {
	var ids identities
	value, ok, err := l.cfg.Store.Bucket(identityBucket).Get(l.cfg.Name)
	if err == nil && ok {
		err = json.Unmarshal(value, &ids)
	}
	if err != nil {
		return identities{}, fmt.Errorf("link %s: read which databases it stands between: %w", l.cfg.Name, err)
	}
	return ids, nil
}

// updateIdentities changes the record, durably.
func (l *Link) updateIdentities(change func(*identities)) error {
	l.recording.Lock()
	defer l.recording.Unlock()
	ids, err := l.identities()
	if err != nil {
		return err
	}
	before := ids
	change(&ids)
	if ids == before {
		return nil
	}
	value, err := json.Marshal(ids)
	if err == nil {
		err = l.cfg.Store.Bucket(identityBucket).Put(l.cfg.Name, value)
	}
	if err != nil {
		return fmt.Errorf("link %s: remember which databases it stands between: %w", l.cfg.Name, err)
	}
	return nil
}

func (l *Link) forgetIdentities() error {
	l.recording.Lock()
	defer l.recording.Unlock()
	if err := l.cfg.Store.Bucket(identityBucket).Delete(l.cfg.Name); err != nil {
		return fmt.Errorf("link %s: forget which databases it stood between: %w", l.cfg.Name, err)
	}
	return nil
}

// guardOrigin makes a reader's configuration compare the origin with the one that is remembered.
func (l *Link) guardOrigin(cfg *source.Config) error {
	ids, err := l.identities()
	if err != nil {
		return err
	}
	cfg.Identity = ids.Origin
	cfg.Identified = func(now source.Identity) error {
		return l.updateIdentities(func(ids *identities) { ids.Origin = now })
	}
	cfg.Copied = func() (change.LSN, error) {
		ids, err := l.identities()
		return ids.Copied, err
	}
	cfg.Held = func(ctx context.Context) (change.LSN, error) {
		conn, err := l.cfg.To.Connect(ctx, "source")
		if err != nil {
			return 0, err
		}
		defer conn.Close(context.WithoutCancel(ctx))
		at, _, err := apply.Progress(ctx, conn, l.cfg.Name)
		return at, err
	}
	return nil
}

// guardDestination compares the destination that a session has reached with the one that the link
// began with, and what it holds with what is still stored. It is called before anything is applied.
func (l *Link) guardDestination(ctx context.Context, conn *pgx.Conn) error {
	if err := l.cfg.EnlistTo(ctx, conn.PgConn()); err != nil {
		return err
	}
	now, err := source.IdentifySession(ctx, conn)
	if err != nil {
		return err
	}
	ids, err := l.identities()
	if err != nil {
		return err
	}
	if err := ids.Destination.Same(now); err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	at, known, err := apply.Progress(ctx, conn, l.cfg.Name)
	if err != nil {
		return err
	}
	const advice = "if a newer standby or backup of it exists, use that; otherwise start the migration again with a new copy"
	switch tail := l.Stream().Info().Tail; {
	case !known && ids.Progress:
		return hint.Wrap(fmt.Errorf("%w: there is no progress of the link any more", ErrDestinationBehind), advice)
	case known && at < tail:
		return hint.Wrap(fmt.Errorf("%w: it stands at %s, and changes up to %s are no longer stored because it had them: those between are missing",
			ErrDestinationBehind, at, tail), advice)
	}
	return l.updateIdentities(func(ids *identities) {
		if now.System == "" {
			now.System = ids.Destination.System
		}
		ids.Destination, ids.Progress = now, known
	})
}

// createSlot makes the link's slot over a replication session; conn is an ordinary one. It remembers
// first on which server: a standby may be promoted before a reader has been there.
func (l *Link) createSlot(ctx context.Context, conn *pgx.Conn, replication *pgconn.PgConn) (source.Snapshot, error) {
	var major int
	var wanted bool
	err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int / 10000, coalesce(current_setting('synchronized_standby_slots', true), '') <> ''`).
		Scan(&major, &wanted)
	if err != nil {
		return source.Snapshot{}, fmt.Errorf("ask whether standbys keep slots: %w", err)
	}
	if f := l.cfg.Failover; f != nil {
		wanted = *f
	}
	now, err := source.Identify(ctx, replication)
	if err == nil {
		err = l.updateIdentities(func(ids *identities) { ids.Origin = now })
	}
	if err != nil {
		return source.Snapshot{}, err
	}
	switch {
	case wanted && major < source.FailoverVersion:
		return source.Snapshot{}, hint.Wrap(fmt.Errorf("a slot that survives a failover needs PostgreSQL %d, the origin is %d", source.FailoverVersion, major),
			"leave follow.failover_slot out; after a failover the migration then starts again with a new copy")
	case wanted:
		return source.CreateFailoverSlot(ctx, replication, l.cfg.Name)
	}
	return source.CreateSlot(ctx, replication, l.cfg.Name, false)
}
