package gates

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
)

// Servers are the connection strings of both sides.
type Servers map[migrate.Side]pg.DSN

const serverTimeout = 10 * time.Second

// Transactions is open while no transaction of others on the owner, prepared ones included, is older than
// oldest: the fence would have to wait for it.
func Transactions(before migrate.Phase, servers Servers, oldest time.Duration) migrate.Gate {
	return &gate{
		name: "transactions", before: before, timeout: serverTimeout, wanted: fmt.Sprintf("none older than %s", oldest),
		measure: func(ctx context.Context, s migrate.Status) (open bool, measured string, err error) {
			err = query(ctx, servers[s.Owner], func(conn *pgx.Conn) error {
				var who string
				var seconds float64
				err := conn.QueryRow(ctx, `
					SELECT * FROM (
						SELECT 'pid ' || pid || ', ' || coalesce(usename, '') || ', ' || coalesce(state, ''), extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age
						FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL AND application_name !~ '^ficus/' AND pid <> pg_backend_pid()
							AND backend_type = 'client backend'
						UNION ALL
						SELECT 'prepared transaction ' || gid || ', ' || owner, extract(epoch FROM clock_timestamp() - prepared)::float8
						FROM pg_prepared_xacts WHERE database = current_database()) x
					ORDER BY age DESC LIMIT 1`).Scan(&who, &seconds)
				age := time.Duration(seconds * float64(time.Second))
				open, measured = age <= oldest, fmt.Sprintf("%s: %s", age.Round(time.Second), who)
				if errors.Is(err, pgx.ErrNoRows) {
					open, measured, err = true, "none", nil
				}
				return err
			})
			return open, measured, err
		},
	}
}

// WALRoom is open while each slot of Ficus on the owner may keep that much more WAL before the server
// gives it up (max_slot_wal_keep_size).
func WALRoom(before migrate.Phase, servers Servers, least int64) migrate.Gate {
	return &gate{
		name: "wal-room", before: before, timeout: serverTimeout, wanted: "at least " + units.Bytes(least),
		measure: func(ctx context.Context, s migrate.Status) (open bool, measured string, err error) {
			err = query(ctx, servers[s.Owner], func(conn *pgx.Conn) error {
				var room *int64
				err := conn.QueryRow(ctx, `SELECT min(safe_wal_size) FROM pg_replication_slots
					WHERE database = current_database() AND slot_name ~ '^ficus_'`).Scan(&room)
				open, measured = true, "no limit is set"
				if err == nil && room != nil {
					open, measured = *room >= least, units.Bytes(max(*room, 0))+" until the slot is given up"
				}
				return err
			})
			return open, measured, err
		},
	}
}

// Disk is open while the file system of a directory has that much room.
func Disk(before migrate.Phase, dir string, least int64) migrate.Gate {
	return &gate{
		name: "disk", before: before, timeout: serverTimeout, wanted: "at least " + units.Bytes(least),
		measure: func(context.Context, migrate.Status) (open bool, measured string, err error) {
			var fs syscall.Statfs_t
			if err := syscall.Statfs(dir, &fs); err != nil {
				return false, "", fmt.Errorf("look at the file system of the data directory: %w", err)
			}
			free := int64(min(fs.Bavail, 1<<40)) * int64(fs.Bsize) //nolint:unconvert // not an int64 on every system
			return free >= least, strings.TrimSpace(units.Bytes(free) + " free"), nil
		},
	}
}
