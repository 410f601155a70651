package gates

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
)

// brakeEvery is how often a brake asks a server; in between it says what it said last.
const brakeEvery = 2 * time.Second

// A brake makes copy and link stand back. It is used by one goroutine.
type brake struct {
	name string
	ask  func(context.Context) (reason string, err error)

	asked  time.Time
	reason string
	err    error
}

// Name implements [migrate.Brake].
func (b *brake) Name() string { return b.name }

// Look implements [migrate.Brake].
func (b *brake) Look(ctx context.Context) (string, error) {
	if time.Since(b.asked) < brakeEvery {
		return b.reason, b.err
	}
	b.reason, b.err = b.ask(ctx)
	b.asked = time.Now()
	return b.reason, b.err
}

// Replicas is on while a physical standby of either database replays what is older than most: the application may
// read there.
func Replicas(servers Servers, most time.Duration) migrate.Brake {
	return &brake{name: "replica-lag", ask: func(ctx context.Context) (reason string, err error) {
		for _, side := range []migrate.Side{migrate.Source, migrate.Target} {
			err := query(ctx, servers[side], func(conn *pgx.Conn) error {
				var name string
				var seconds float64
				// A standby with nothing to replay has no lag; a walsender of logical replication has no standby.
				err := conn.QueryRow(ctx, `
					SELECT r.application_name, extract(epoch FROM r.replay_lag)::float8 FROM pg_stat_replication r
					WHERE r.replay_lag > $1::float8 * interval '1 second'
					AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
					ORDER BY 2 DESC LIMIT 1`, most.Seconds()).Scan(&name, &seconds)
				if errors.Is(err, pgx.ErrNoRows) {
					return nil
				}
				reason = fmt.Sprintf("standby %q of the %s replays %s behind, at most %s", name, side, time.Duration(seconds*float64(time.Second)).Round(100*time.Millisecond), most)
				return err
			})
			if err != nil || reason != "" {
				return reason, err
			}
		}
		return "", nil
	}}
}

// Load is on while more than most sessions of others run a statement on either server.
func Load(servers Servers, most int) migrate.Brake {
	return &brake{name: "load", ask: func(ctx context.Context) (reason string, err error) {
		for _, side := range []migrate.Side{migrate.Source, migrate.Target} {
			err := query(ctx, servers[side], func(conn *pgx.Conn) error {
				var active int
				err := conn.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity
					WHERE state = 'active' AND backend_type = 'client backend' AND application_name !~ '^ficus/' AND pid <> pg_backend_pid()`).Scan(&active)
				if err == nil && active > most {
					reason = fmt.Sprintf("%d sessions run statements on the %s, at most %d", active, side, most)
				}
				return err
			})
			if err != nil || reason != "" {
				return reason, err
			}
		}
		return "", nil
	}}
}

// Query is on while a query does not return true; its second column, if there is one, is shown.
func Query(name string, dsn pg.DSN, sql string) migrate.Brake {
	c := Check{Name: name, DSN: dsn, SQL: sql}
	return &brake{name: name, ask: func(ctx context.Context) (reason string, err error) {
		ok, said, err := c.query(ctx, migrate.Status{})
		if err != nil || ok {
			return "", err
		}
		return "its query says " + said, nil
	}}
}
