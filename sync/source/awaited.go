package source

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
)

const (
	// awaitedEvery is how often it is looked whom a slot waits for.
	awaitedEvery = time.Second
	// awaitedAgain is how often the same transaction is named.
	awaitedAgain = 30 * time.Second
)

// An awaited transaction began before a slot, which cannot be made until it ends. It may be of any
// database of the server.
type awaited struct {
	pid                                     int
	gid                                     string // of a prepared one, which has no pid
	database, role, application, state, xid string
	age                                     time.Duration // negative: the role may not know
}

// String names the transaction to who has to end it.
func (a awaited) String() string {
	age := ""
	if a.age >= 0 {
		age = ", for " + a.age.Round(time.Second).String()
	}
	if a.gid != "" {
		return fmt.Sprintf("prepared transaction %q (%s in %s%s)", a.gid, a.role, a.database, age)
	}
	return fmt.Sprintf("pid %d (%s in %s, %s, %s%s)", a.pid, a.role, a.database, a.application, a.state, age)
}

// TellAwaited logs whom a slot waits for that the session with that pid is making (CreateSlot): who
// holds it up for longer than a second, and again from time to time. It returns when ctx is done. That
// it cannot see or say so does not keep the slot from being made, so there is no error.
func TellAwaited(ctx context.Context, dsn pg.DSN, pid uint32, log *slog.Logger) {
	first := time.NewTimer(awaitedEvery)
	defer first.Stop()
	select {
	case <-ctx.Done(): // as a rule
		return
	case <-first.C:
	}
	err := tellAwaited(ctx, dsn, pid, log)
	if ctx.Err() == nil {
		log.LogAttrs(ctx, slog.LevelWarn, "cannot see whom the slot waits for", slog.Any("err", err))
	}
}

func tellAwaited(ctx context.Context, dsn pg.DSN, pid uint32, log *slog.Logger) error {
	conn, err := dsn.Connect(ctx, "waits")
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn.PgConn())
	tick := time.NewTicker(awaitedEvery)
	defer tick.Stop()
	var last awaited
	for told := time.Now(); ; {
		a, err := findAwaited(ctx, conn, pid)
		if err != nil {
			return err
		}
		if a != nil && (a.xid != last.xid || time.Since(told) >= awaitedAgain) {
			last, told = *a, time.Now()
			log.LogAttrs(ctx, slog.LevelWarn, "waiting for a transaction that began before the slot",
				slog.String("transaction", a.String()), slog.Int("pid", a.pid), slog.String("gid", a.gid),
				slog.String("role", a.role), slog.Duration("age", a.age))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// findAwaited returns the transaction that a session waits for, nil when it waits for none. A server
// that makes a slot waits for one after another, by locking their ids.
func findAwaited(ctx context.Context, conn *pgx.Conn, pid uint32) (*awaited, error) {
	rows, err := conn.Query(ctx, `
		SELECT w.transactionid::text, coalesce(h.pid, 0), coalesce(p.gid, ''), coalesce(a.datname, p.database, '')::text,
		       coalesce(a.usename, p.owner, '')::text, coalesce(a.application_name, ''), coalesce(a.state, ''),
		       coalesce(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared)), -1)::float8
		FROM pg_locks w
		LEFT JOIN pg_locks h ON h.locktype = 'transactionid' AND h.transactionid = w.transactionid AND h.granted
		LEFT JOIN pg_stat_activity a ON a.pid = h.pid
		LEFT JOIN pg_prepared_xacts p ON p.transaction = w.transactionid
		WHERE w.pid = $1 AND w.locktype = 'transactionid' AND NOT w.granted`, pid)
	if err != nil {
		return nil, fmt.Errorf("read the locks: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*awaited, error) {
		var a awaited
		var age float64
		err := row.Scan(&a.xid, &a.pid, &a.gid, &a.database, &a.role, &a.application, &a.state, &age)
		a.age = time.Duration(age * float64(time.Second))
		return &a, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the locks: %w", err)
	}
	if len(list) == 0 {
		return nil, nil //nolint:nilnil // waiting for nobody is no error
	}
	return list[0], nil
}
