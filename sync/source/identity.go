package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
)

// What tells a server from the one that was read before. Each comes with a hint.
var (
	// ErrOtherServer: the connection string leads to another cluster, or to another database of it.
	ErrOtherServer = errors.New("not the database that the link began with")
	// ErrForked: the server's history parted from the one that was read, before the end of what was read.
	ErrForked = errors.New("server was promoted or restored before what was already read")
)

// An Identity tells a database, and the history that its server is in, from every other. Fields that
// a role may not know are zero, and compare as equal.
type Identity struct {
	System   string `json:"system"`       // of the cluster; kept by its standbys and copies
	Timeline int32  `json:"timeline"`     // grows with each promotion and restore
	OID      uint32 `json:"database_oid"` // of the database in the cluster
	Database string `json:"database"`     // its name, which may change
}

// Identify asks a replication session, for which no privilege but REPLICATION is needed. It ends the
// life of a snapshot that the session exported.
// Source: PostgreSQL manual, "Streaming Replication Protocol", IDENTIFY_SYSTEM.
func Identify(ctx context.Context, conn *pgconn.PgConn) (Identity, error) {
	sys, err := pglogrepl.IdentifySystem(ctx, conn)
	if err != nil {
		return Identity{}, fmt.Errorf("identify the server: %w", err)
	}
	id := Identity{System: sys.SystemID, Timeline: sys.Timeline, Database: sys.DBName}
	results, err := conn.Exec(ctx, `SELECT oid FROM pg_database WHERE datname = current_database()`).ReadAll()
	if err != nil {
		return Identity{}, fmt.Errorf("identify the database: %w", err)
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 1 {
		return Identity{}, errors.New("identify the database: want one row")
	}
	oid, err := strconv.ParseUint(string(results[0].Rows[0][0]), 10, 32)
	if err != nil {
		return Identity{}, fmt.Errorf("identify the database: %w", err)
	}
	id.OID = uint32(oid)
	return id, nil
}

// IdentifySession asks an ordinary session, and leaves zero what the role may not know. It does not
// tell the timeline: the control file lags behind a promotion.
func IdentifySession(ctx context.Context, conn *pgx.Conn) (Identity, error) {
	id := Identity{Database: conn.Config().Database}
	if err := conn.QueryRow(ctx, `SELECT oid FROM pg_database WHERE datname = current_database()`).Scan(&id.OID); err != nil {
		return Identity{}, fmt.Errorf("identify the database: %w", err)
	}
	err := conn.QueryRow(ctx, `SELECT system_identifier::text FROM pg_control_system()`).Scan(&id.System)
	if err != nil && pg.Code(err) != pg.CodeInsufficientPrivilege {
		return Identity{}, fmt.Errorf("identify the server: %w", err)
	}
	return id, nil
}

// Same returns nil when both are one database, whatever its timeline and name; otherwise an error that
// wraps ErrOtherServer and says which.
func (id Identity) Same(now Identity) error {
	switch {
	case id.System != "" && now.System != "" && id.System != now.System:
		return hint.Wrap(fmt.Errorf("%w: its server has system identifier %s, the link's %s", ErrOtherServer, now.System, id.System),
			"give the connection string of the server that the migration began with, or start the migration again with a new copy")
	case id.OID != 0 && now.OID != 0 && id.OID != now.OID:
		return hint.Wrap(fmt.Errorf("%w: the server is the same, the database is %q (oid %d), the link's %q (oid %d)",
			ErrOtherServer, now.Database, now.OID, id.Database, id.OID),
			"give the connection string of the database that the migration began with; if it was dropped and restored there, start the migration again with a new copy")
	}
	return nil
}

// followFork is called when the server is on another timeline than it was. When what is held here was
// read before the timelines parted, it is as good on the new one; everything else that the old one
// said of itself is forgotten. Otherwise the server has another past than what is held.
func (r *Reader) followFork(ctx context.Context, conn *pgconn.PgConn, now Identity) error {
	was := r.identity
	parted, err := partedAt(ctx, conn, was.Timeline, now.Timeline)
	if err != nil {
		return err
	}
	held, err := r.held(ctx)
	if err != nil {
		return err
	}
	if held > parted {
		return hint.Wrap(fmt.Errorf("%w: timeline %d left timeline %d at %s, and changes up to %s were read there: between %s and %s the histories differ",
			ErrForked, now.Timeline, was.Timeline, parted, held, parted, held),
			"if a server of timeline %d is still there, connect to that; otherwise the target holds changes that the source has lost: start the migration again with a new copy", was.Timeline)
	}
	// Positions without changes may have been acknowledged behind the fork. On the new timeline there
	// may be changes: nothing after the fork was seen of it.
	acked, err := r.cfg.Stream.Cursor(cursorAcked)
	if err != nil {
		return err
	}
	if acked > parted {
		if err := r.cfg.Stream.SetCursor(cursorAcked, parted); err != nil {
			return err
		}
	}
	r.pos.fork(parted)
	r.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "the source goes on on another timeline: a standby was promoted or a backup restored; nothing that was read is lost there",
		slog.String("slot", r.cfg.Slot), slog.Int("was", int(was.Timeline)), slog.Int("is", int(now.Timeline)), slog.String("parted", parted.String()))
	return nil
}

// held returns the end of the newest transaction that is stored here, applied or copied.
func (r *Reader) held(ctx context.Context) (change.LSN, error) {
	at, err := r.cfg.Held(ctx)
	if err != nil {
		return 0, fmt.Errorf("learn what is applied: %w", err)
	}
	copied, err := r.cfg.Copied()
	return max(at, copied, r.cfg.Stream.Head(), r.cfg.Start), err
}

// partedAt returns where timeline now, or an ancestor of it, left timeline was.
func partedAt(ctx context.Context, conn *pgconn.PgConn, was, now int32) (change.LSN, error) {
	var history []byte
	if now > 1 { // the first has no past
		h, err := pglogrepl.TimelineHistory(ctx, conn, now)
		if err != nil {
			return 0, fmt.Errorf("read the history of timeline %d: %w", now, err)
		}
		history = h.Content
	}
	at, ok, err := endOfTimeline(string(history), was)
	if err != nil {
		return 0, fmt.Errorf("read the history of timeline %d: %w", now, err)
	}
	if !ok {
		return 0, hint.Wrap(fmt.Errorf("%w: it is on timeline %d, which does not come from timeline %d", ErrForked, now, was),
			"this is an old primary, or another restore: connect to the server of timeline %d or one that was promoted from it", was)
	}
	return at, nil
}

// endOfTimeline finds a timeline in a history file: one line for each ancestor, its number, where it
// was left, and why, between tabs. Source: PostgreSQL source, src/backend/access/transam/timeline.c.
func endOfTimeline(history string, timeline int32) (at change.LSN, ok bool, err error) {
	for line := range strings.Lines(history) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		n, err := strconv.ParseInt(fields[0], 10, 32)
		if err != nil || len(fields) < 2 {
			return 0, false, fmt.Errorf("malformed line %q", strings.TrimSpace(line))
		}
		if int32(n) == timeline {
			at, err := change.ParseLSN(fields[1])
			return at, err == nil, err
		}
	}
	return 0, false, nil
}
