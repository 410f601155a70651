package source

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
)

// dropTimeout bounds how long DropSlot waits for a walsender to let go of the slot.
const dropTimeout = 30 * time.Second

// createTries is how often a slot is tried to be made. A snapshot has room for so many transaction
// ids, and those of savepoints that commit meanwhile count ("initial slot snapshot too large").
const createTries = 12

// codeSerializationFailure is what a server says whose snapshot became too large.
const codeSerializationFailure = "40001"

// codeConfigurationLimit is what a server says that has no free slot.
const codeConfigurationLimit = "53400"

// A Snapshot is the state of the database at the position where a slot begins.
type Snapshot struct {
	Name string     // for SET TRANSACTION SNAPSHOT; lives until the next command on the slot's session
	LSN  change.LSN // the slot streams every transaction that the snapshot does not see
}

// CreateSlot makes a logical slot for pgoutput on a replication session and exports its snapshot.
// It waits for the transactions that are running; a temporary slot ends with the session. The
// error carries a hint.
// Source: PostgreSQL manual, "Streaming Replication Protocol", CREATE_REPLICATION_SLOT.
func CreateSlot(ctx context.Context, conn *pgconn.PgConn, name string, temporary bool) (Snapshot, error) {
	return createSlot(ctx, name, func() (pglogrepl.CreateReplicationSlotResult, error) {
		return pglogrepl.CreateReplicationSlot(ctx, conn, schema.QuoteIdent(name), "pgoutput", pglogrepl.CreateReplicationSlotOptions{
			Temporary: temporary, SnapshotAction: "EXPORT_SNAPSHOT", Mode: pglogrepl.LogicalReplication,
		})
	})
}

// CreateFailoverSlot is CreateSlot for a slot that standbys keep, too (sync_replication_slots on them),
// so that a link survives their promotion. Servers before FailoverVersion do not know it.
func CreateFailoverSlot(ctx context.Context, conn *pgconn.PgConn, name string) (Snapshot, error) {
	return createSlot(ctx, name, func() (pglogrepl.CreateReplicationSlotResult, error) {
		return pglogrepl.ParseCreateReplicationSlot(conn.Exec(ctx,
			"CREATE_REPLICATION_SLOT "+schema.QuoteIdent(name)+" LOGICAL pgoutput (SNAPSHOT 'export', FAILOVER true)"))
	})
}

// FailoverVersion is the first major version with slots that survive a failover.
const FailoverVersion = 17

func createSlot(ctx context.Context, name string, create func() (pglogrepl.CreateReplicationSlotResult, error)) (Snapshot, error) {
	var slot pglogrepl.CreateReplicationSlotResult
	var err error
	retry := backoff.Timer{Min: 100 * time.Millisecond, Max: 2 * time.Second}
	for range createTries {
		slot, err = create()
		if pg.Code(err) != codeSerializationFailure {
			break
		}
		if stop := retry.Wait(ctx); stop != nil {
			return Snapshot{}, fmt.Errorf("create slot %q: %w (%w)", name, err, stop)
		}
	}
	if err != nil {
		return Snapshot{}, fmt.Errorf("create slot %q: %w", name, slotHint(err, name))
	}
	lsn, err := change.ParseLSN(slot.ConsistentPoint)
	if err != nil {
		return Snapshot{}, fmt.Errorf("create slot %q: %w", name, err)
	}
	return Snapshot{Name: slot.SnapshotName, LSN: lsn}, nil
}

func slotHint(err error, name string) error {
	switch pg.Code(err) {
	case pg.CodeDuplicateObject:
		return hint.Wrap(err, "choose another name for the migration: the slots of a server share one set of names; or "+
			"SELECT pg_drop_replication_slot('%s'), if no other migration uses it", name)
	case codeConfigurationLimit:
		return hint.Wrap(err, "drop slots that nobody uses (pg_replication_slots), or raise max_replication_slots and restart the server")
	case pg.CodeObjectNotReady:
		return hint.Wrap(err, "ALTER SYSTEM SET wal_level = logical, and restart the server")
	case codeSerializationFailure:
		return hint.Wrap(err, "too many transactions with savepoints commit at once: begin at a quieter time, or raise max_connections, by which the server bounds them")
	case pg.CodeInsufficientPrivilege:
		return hint.Wrap(err, "the role needs the REPLICATION attribute: ALTER ROLE ... REPLICATION")
	}
	return err
}

// A State is what a server says about a slot.
type State struct {
	Exists         bool
	Active         bool // a walsender streams from it
	ActivePID      int
	ConfirmedFlush change.LSN // transactions that end at or before this are never streamed again
	Restart        change.LSN // WAL from here on is kept
	RetainedBytes  int64      // WAL kept because of the slot
	WALStatus      string     // "reserved", "extended", "unreserved", or "lost": the slot is unusable
	SafeWALBytes   int64      // WAL that can still be written before the slot is in danger; -1: no limit
	Invalidation   string     // why the server gave it up, from PostgreSQL 17 on; "" for none
	Plugin         string     // "" for a physical slot
	Database       string
	Failover       bool // its standbys keep it, from PostgreSQL 17 on
}

// SlotState describes a slot; the zero State when there is none.
// Source: PostgreSQL manual, view pg_replication_slots.
func SlotState(ctx context.Context, conn *pgx.Conn, name string) (State, error) {
	var s State
	var confirmed, restart string
	err := conn.QueryRow(ctx, `
		SELECT active, coalesce(active_pid, 0), coalesce(wal_status, ''), coalesce(safe_wal_size, -1),
		       coalesce(to_jsonb(s)->>'invalidation_reason', ''), coalesce((to_jsonb(s)->>'failover')::bool, false),
		       coalesce(plugin, ''), coalesce(database, ''),
		       coalesce(confirmed_flush_lsn, '0/0')::text, coalesce(restart_lsn, '0/0')::text,
		       coalesce(pg_wal_lsn_diff(
		           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
		           restart_lsn), 0)::bigint
		FROM pg_replication_slots s WHERE slot_name = $1`, name).
		Scan(&s.Active, &s.ActivePID, &s.WALStatus, &s.SafeWALBytes, &s.Invalidation, &s.Failover, &s.Plugin, &s.Database,
			&confirmed, &restart, &s.RetainedBytes)
	if errors.Is(err, pgx.ErrNoRows) {
		return State{}, nil
	} else if err != nil {
		return State{}, fmt.Errorf("read slot %q: %w", name, err)
	}
	s.Exists = true
	var errs [2]error
	s.ConfirmedFlush, errs[0] = change.ParseLSN(confirmed)
	s.Restart, errs[1] = change.ParseLSN(restart)
	return s, errors.Join(errs[:]...)
}

// DropSlot removes a slot of the session's database; no error when there is none. A walsender of Ficus
// that still holds it, left by a process or network that died, is terminated; somebody else's is not.
// A slot of that name in another database of the server is another migration's, and is left alone.
func DropSlot(ctx context.Context, conn *pgx.Conn, name string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, dropTimeout, errors.New("the slot stayed in use"))
	defer cancel()
	retry := backoff.Timer{Min: 20 * time.Millisecond, Max: time.Second}
	for {
		err := dropSlotOnce(ctx, conn, name)
		if code := pg.Code(err); code == pg.CodeUndefinedObject {
			return nil
		} else if code != pg.CodeObjectInUse {
			return err
		}
		if stop := retry.Wait(ctx); stop != nil {
			return hint.Wrap(fmt.Errorf("%w (%w)", err, stop), "see who reads it: "+
				"SELECT * FROM pg_stat_activity WHERE pid = (SELECT active_pid FROM pg_replication_slots WHERE slot_name = '%s')", name)
		}
	}
}

func dropSlotOnce(ctx context.Context, conn *pgx.Conn, name string) error {
	_, err := conn.Exec(ctx, `
		SELECT pg_terminate_backend(a.pid)
		FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
		WHERE s.slot_name = $1 AND s.database = current_database() AND a.application_name LIKE 'ficus/%'`, name)
	if err == nil {
		_, err = conn.Exec(ctx, `
			SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
			WHERE slot_name = $1 AND database = current_database()`, name)
	}
	if err != nil {
		return fmt.Errorf("drop slot %q: %w", name, err)
	}
	return nil
}
