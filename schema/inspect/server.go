package inspect

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
)

// Info is what a server, a database and the connected role can do.
type Info struct {
	Major      int    // 15
	VersionNum int    // server_version_num: 150018
	Database   string // the connected one
	Role       string // the connected one
	SystemID   string // of the cluster; "" when the role may not read it

	WALLevel   string // "logical" is what Ficus needs
	Encoding   string
	Collation  string // LC_COLLATE of the database
	InRecovery bool   // a standby

	Superuser             bool
	Replication           bool // may open replication connections and make slots
	BypassRLS             bool // row level security never hides rows from the role
	CanSetReplicationRole bool // may SET session_replication_role
	CanCreate             bool // may create schemas in the database

	MaxSlots, FreeSlots           int
	MaxWALSenders, FreeWALSenders int

	Extensions   []Extension // ordered by name, without plpgsql
	LargeObjects int64       // in this database
}

// An Extension is one that is installed in the database.
type Extension struct{ Name, Version, Schema string }

// serverSQL: managed services give replication by membership in a role of their own (rds_replication
// on Amazon) instead of the attribute.
const serverSQL = `
SELECT pg_catalog.current_setting('server_version_num')::int, d.datname, r.rolname,
	pg_catalog.current_setting('wal_level'), pg_catalog.pg_encoding_to_char(d.encoding), d.datcollate,
	pg_catalog.pg_is_in_recovery(), r.rolsuper,
	r.rolsuper OR r.rolreplication OR EXISTS (SELECT FROM pg_catalog.pg_roles m
		WHERE m.rolname = 'rds_replication' AND pg_catalog.pg_has_role(r.oid, m.oid, 'MEMBER')),
	r.rolsuper OR r.rolbypassrls,
	pg_catalog.has_database_privilege(r.oid, d.oid, 'CREATE'),
	pg_catalog.current_setting('max_replication_slots')::int,
	(SELECT count(*) FROM pg_catalog.pg_replication_slots)::int,
	pg_catalog.current_setting('max_wal_senders')::int,
	(SELECT count(*) FROM pg_catalog.pg_stat_replication)::int,
	(SELECT count(*) FROM pg_catalog.pg_largeobject_metadata)
FROM pg_catalog.pg_database d, pg_catalog.pg_roles r
WHERE d.datname = pg_catalog.current_database() AND r.rolname = current_user`

// Server asks the server about itself and the connected role. conn must not be in a transaction.
func Server(ctx context.Context, conn *pgx.Conn) (Info, error) {
	var s Info
	var slots, senders int
	err := conn.QueryRow(ctx, serverSQL).Scan(&s.VersionNum, &s.Database, &s.Role, &s.WALLevel, &s.Encoding, &s.Collation,
		&s.InRecovery, &s.Superuser, &s.Replication, &s.BypassRLS, &s.CanCreate, &s.MaxSlots, &slots,
		&s.MaxWALSenders, &senders, &s.LargeObjects)
	if err != nil {
		return Info{}, fmt.Errorf("read server: %w", err)
	}
	s.Major = s.VersionNum / 10000
	s.FreeSlots, s.FreeWALSenders = max(s.MaxSlots-slots, 0), max(s.MaxWALSenders-senders, 0)

	// Tried, not looked up: besides superusers and (since 15) GRANT SET ON PARAMETER, managed
	// services have ways of their own to allow it. Outside a transaction it lasts for this statement.
	_, err = conn.Exec(ctx, `SELECT pg_catalog.set_config('session_replication_role', 'replica', true)`)
	if s.CanSetReplicationRole, err = allowed(err); err != nil {
		return Info{}, fmt.Errorf("try session_replication_role: %w", err)
	}
	err = conn.QueryRow(ctx, `SELECT system_identifier::text FROM pg_catalog.pg_control_system()`).Scan(&s.SystemID)
	if _, err = allowed(err); err != nil {
		return Info{}, fmt.Errorf("read system identifier: %w", err)
	}

	rows, err := conn.Query(ctx, `SELECT e.extname, e.extversion, n.nspname
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname <> 'plpgsql' ORDER BY e.extname`)
	if err != nil {
		return Info{}, fmt.Errorf("read extensions: %w", err)
	}
	if s.Extensions, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Extension]); err != nil {
		return Info{}, fmt.Errorf("read extensions: %w", err)
	}
	return s, nil
}

// allowed turns "insufficient privilege" into false.
func allowed(err error) (bool, error) {
	if pg.Code(err) == pg.CodeInsufficientPrivilege {
		return false, nil
	}
	return err == nil, err
}
