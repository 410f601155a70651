package fence

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/internal/backoff"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
)

// A claim is the session that keeps other processes out, and what it put into ficus.driver.
type claim struct {
	conn  *pgx.Conn
	self  string // names the session among all that the server ever had
	token string
	lost  chan struct{}
	end   context.CancelFunc // ends the watch over conn, which closes it
	done  chan struct{}      // closed when it has ended
}

const (
	// lockDriver takes the session lock, and says who has it when somebody has. Its key is two
	// numbers, so that it meets no other lock of ours.
	lockDriver = `SELECT pg_try_advisory_lock(hashtext('ficus'), hashtext('driver'))`
	whoDrives  = `
		SELECT l.pid, ` + sessionName + `, coalesce(host(a.client_addr), 'the same machine') || ', session ' || l.pid || coalesce(', since ' || to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SS TZ'), '')
		FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
		AND l.classid = (hashtext('ficus')::bigint & 4294967295)::oid AND l.objid = (hashtext('driver')::bigint & 4294967295)::oid
		AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`

	sessionName = `a.pid || ' ' || a.backend_start`

	// The sessions that do the driver's work share a second lock; see Enlist.
	joinWork  = `SELECT pg_advisory_lock_shared(hashtext('ficus'), hashtext('work'))`
	takeWork  = `SELECT pg_advisory_xact_lock(hashtext('ficus'), hashtext('work'))`
	endOthers = `SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE pid <> pg_backend_pid() AND granted AND ` + ofWork
	ofWork    = `locktype = 'advisory' AND objsubid = 2 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND classid = (hashtext('ficus')::bigint & 4294967295)::oid AND objid = (hashtext('work')::bigint & 4294967295)::oid`

	// beat is how often the session of a claim is asked whether it is alive, beatTimeout how long it
	// may take to answer.
	beat        = 5 * time.Second
	beatTimeout = 15 * time.Second
)

// Claim implements [migrate.Database].
func (d *Database) Claim(ctx context.Context) (lost <-chan struct{}, err error) {
	d.claiming.Lock()
	defer d.claiming.Unlock()
	if c := d.claimed(); c != nil {
		select {
		case <-c.lost:
		default:
			return c.lost, d.wrap("claim", d.unchanged(ctx, c))
		}
	}
	c, err := d.newClaim(ctx)
	if err != nil {
		return nil, d.wrap("claim", err)
	}
	d.mu.Lock()
	d.mu.claim = c
	d.mu.Unlock()
	return c.lost, nil
}

func (d *Database) newClaim(ctx context.Context) (_ *claim, err error) {
	conn, err := d.cfg.DSN.Connect(ctx, "driver")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close(context.WithoutCancel(ctx)) // nothing was done in it
		}
	}()
	var got bool
	if err := conn.QueryRow(ctx, lockDriver).Scan(&got); err != nil {
		return nil, err
	}
	if !got {
		return nil, driven(ctx, conn, d.claimed())
	}
	c := &claim{conn: conn, lost: make(chan struct{}), done: make(chan struct{}), token: newToken()}
	if err := conn.QueryRow(ctx, `SELECT `+sessionName+` FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()`).Scan(&c.self); err != nil {
		return nil, err
	}
	last := d.token()
	if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return c.succeed(ctx, tx, last) }); err != nil {
		return nil, err
	}
	if last != "" {
		c.token = last // nobody came between: what is on its way may still arrive
	}
	watch, end := context.WithCancel(context.WithoutCancel(ctx))
	c.end = end
	go c.watch(watch)
	return c, nil
}

// unchanged asks whether somebody claimed the database though our session has not ended for us.
func (d *Database) unchanged(ctx context.Context, c *claim) error {
	var there bool
	err := d.pool.QueryRow(ctx, `SELECT to_regclass('ficus.driver') IS NOT NULL`).Scan(&there)
	if err != nil || !there {
		return err
	}
	return pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error { return c.succeed(ctx, tx, c.token) })
}

// succeed writes the token of a new claim, or makes sure that last, that of an earlier one of this
// process, is still there. A database that is not installed has no place for it; Install writes it.
func (c *claim) succeed(ctx context.Context, tx pgx.Tx, last string) error {
	var installed bool
	if err := tx.QueryRow(ctx, `SELECT to_regclass('ficus.ownership') IS NOT NULL`).Scan(&installed); err != nil || !installed {
		return err
	}
	if last == "" {
		// What a process that is gone, or was cut off, has at work here ends first. A session that comes
		// later waits for our token, and is refused because of it.
		for _, sql := range []string{driverSQL, endOthers, takeWork} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `INSERT INTO ficus.driver (token, who) VALUES ($1, $2)
			ON CONFLICT (only_row) DO UPDATE SET token = excluded.token, who = excluded.who, since = now()`, c.token, whoAmI())
		return err
	}
	var have, who string
	err := tx.QueryRow(ctx, `SELECT token, who FROM ficus.driver`).Scan(&have, &who)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil // it was claimed before anything was installed
	case err != nil:
		return err
	case have != last:
		return fmt.Errorf("%w: %s", migrate.ErrDeposed, who)
	}
	return nil
}

// driven names who has the lock. That may be a session of our own, last, which broke on our side and
// whose end the server has not noticed: then it is ended.
func driven(ctx context.Context, conn *pgx.Conn, last *claim) error {
	var pid int
	var session *string
	var who string
	err := conn.QueryRow(ctx, whoDrives).Scan(&pid, &session, &who)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return errors.New("whoever had it has just gone")
	case err != nil:
		return errors.Join(migrate.ErrDriven, err)
	case last != nil && session != nil && *session == last.self:
		if _, err := conn.Exec(ctx, `SELECT pg_terminate_backend($1)`, pid); err != nil {
			return err
		}
		return errors.New("an earlier session of this process is ending")
	}
	return fmt.Errorf("%w: from %s", migrate.ErrDriven, who)
}

// watch keeps an eye on the session until it is told to end it.
func (c *claim) watch(ctx context.Context) {
	defer close(c.done)
	defer close(c.lost)
	defer func() {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), beat)
		defer cancel()
		_ = c.conn.Close(late) // the server ends it by itself otherwise
	}()
	for {
		if backoff.Sleep(ctx, beat) != nil {
			return
		}
		ping, cancel := context.WithTimeout(ctx, beatTimeout)
		err := c.conn.Ping(ping)
		cancel()
		if err != nil {
			return
		}
	}
}

// Disclaim implements [migrate.Database].
func (d *Database) Disclaim() {
	d.claiming.Lock()
	defer d.claiming.Unlock()
	d.mu.Lock()
	c := d.mu.claim
	d.mu.claim = nil
	d.mu.Unlock()
	if c != nil {
		c.end()
		<-c.done
	}
}

func (d *Database) claimed() *claim {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.claim
}

// token is what this process put into ficus.driver; "" when it did not claim the database.
func (d *Database) token() string {
	if c := d.claimed(); c != nil {
		return c.token
	}
	return ""
}

// stillMine makes a transaction fail when another process has claimed the database since, and the
// other process wait until the transaction has ended. A Database that never claimed anything, as that of a
// command which only looks or cleans up, passes.
func (d *Database) stillMine(ctx context.Context, tx pgx.Tx) error {
	mine := d.token()
	if mine == "" {
		return nil
	}
	var have, who string
	err := tx.QueryRow(ctx, `SELECT token, who FROM ficus.driver FOR SHARE`).Scan(&have, &who)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("%w: schema ficus was made anew", migrate.ErrDeposed)
	case err != nil:
		return err
	case have != mine:
		return fmt.Errorf("%w: %s", migrate.ErrDeposed, who)
	}
	return nil
}

// Guard makes a transaction of others at this database fail when another process has claimed it, and that
// one wait until the transaction has ended: for what no method of a Database does, such as copying rows.
func (d *Database) Guard(ctx context.Context, tx pgx.Tx) error {
	if d.token() == "" {
		return nil
	}
	var there bool
	if err := tx.QueryRow(ctx, `SELECT to_regclass('ficus.driver') IS NOT NULL`).Scan(&there); err != nil {
		return d.wrap("look who drives the migration", err)
	}
	if !there {
		return d.wrap("look who drives the migration", fmt.Errorf("%w: schema ficus is gone", migrate.ErrDeposed))
	}
	return d.wrap("look who drives the migration", d.stillMine(ctx, tx))
}

// Enlist makes a session of others one that works for this process: what it does from now on, in
// whatever transactions, it does before another process can claim the database, which ends it first.
// It fails when another process has claimed the database already. It is for what no transaction can
// hold together: slots that are read and dropped, tables that are altered one by one.
func (d *Database) Enlist(ctx context.Context, session *pgconn.PgConn) error {
	mine := d.token()
	if mine == "" {
		return nil
	}
	const doing = "look who drives the migration"
	if _, err := word(ctx, session, joinWork); err != nil {
		return d.wrap(doing, err)
	}
	there, err := word(ctx, session, `SELECT to_regclass('ficus.driver') IS NOT NULL`)
	if err != nil || there != "t" { // nobody has claimed it since schema ficus went
		return d.wrap(doing, err)
	}
	have, err := word(ctx, session, `SELECT token || ' ' || who FROM ficus.driver`)
	if err != nil {
		return d.wrap(doing, err)
	}
	if token, who, _ := strings.Cut(have, " "); token != mine {
		return d.wrap(doing, fmt.Errorf("%w: %s", migrate.ErrDeposed, who))
	}
	return nil
}

// word asks for one value in the simple protocol, which replication sessions speak too; "" for no row.
func word(ctx context.Context, session *pgconn.PgConn, sql string) (string, error) {
	results, err := session.Exec(ctx, sql).ReadAll()
	if err != nil || len(results) == 0 || len(results[0].Rows) == 0 {
		return "", err
	}
	return string(results[0].Rows[0][0]), nil
}

// enter puts the token of a claim that was made before schema ficus into it.
func (d *Database) enter(ctx context.Context, tx pgx.Tx) error {
	mine := d.token()
	if mine == "" {
		return nil
	}
	if _, err := tx.Exec(ctx, `INSERT INTO ficus.driver (token, who) VALUES ($1, $2) ON CONFLICT DO NOTHING`, mine, whoAmI()); err != nil {
		return err
	}
	return d.stillMine(ctx, tx)
}

// Drivers says who drives the migration at this database now, "" for nobody, and who claimed it last. It
// claims nothing.
func (d *Database) Drivers(ctx context.Context) (now, last string, err error) {
	var pid int
	var session *string
	err = d.pool.QueryRow(ctx, whoDrives).Scan(&pid, &session, &now)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return "", "", d.wrap("look who drives the migration", err)
	}
	err = d.pool.QueryRow(ctx, `SELECT who || ', since ' || to_char(since, 'YYYY-MM-DD HH24:MI:SS TZ') FROM ficus.driver`).Scan(&last)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) && pg.Code(err) != pg.CodeUndefinedTable {
		return "", "", d.wrap("look who drives the migration", err)
	}
	return now, last, nil
}

func newToken() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // crypto/rand: never fails
	return hex.EncodeToString(b)
}

// whoAmI names this process to people.
func whoAmI() string {
	host, err := os.Hostname()
	if err != nil {
		host = "an unnamed machine"
	}
	return fmt.Sprintf("process %d on %s", os.Getpid(), host)
}

const driverSQL = `
CREATE TABLE IF NOT EXISTS ficus.driver (
	only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
	token    text NOT NULL,
	who      text NOT NULL,
	since    timestamptz NOT NULL DEFAULT now()
)`
