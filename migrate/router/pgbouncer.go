package router

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/hooks"
)

// A Bouncer is one PgBouncer that clients go through.
type Bouncer struct {
	// Admin leads to its console: a user of admin_users, database pgbouncer.
	Admin pg.DSN
	// Database is the name in [databases] that clients connect to.
	Database string
	// Reads is the name that read-only clients connect to. Default: there is none.
	Reads string
	// File is where the lines of Database and Reads stand: pgbouncer.ini, or a file that it includes.
	File string
	// Command changes them where the file is not on this machine. It gets FICUS_DATABASE, FICUS_HOST,
	// FICUS_PORT and FICUS_DBNAME, once per name. One of File and Command is given.
	Command []string
}

// PgBouncerConfig holds what a PgBouncer router needs.
type PgBouncerConfig struct {
	// Bouncers are all PgBouncers that clients go through, at least one.
	Bouncers []Bouncer
	// Places are the two databases.
	Places map[migrate.Side]pg.DSN
	// Timeout bounds each talk with a console, PAUSE excepted. Default 10 s.
	Timeout time.Duration
	// Log gets what was done. Default: nothing.
	Log *slog.Logger
}

// PgBouncer leads clients by PAUSE, a change of the configuration, RELOAD and RESUME, on several
// PgBouncers at once.
type PgBouncer struct {
	cfg    PgBouncerConfig
	orders orders

	mu struct {
		sync.Mutex
		since  time.Time // when the present Hold began; zero while nothing is held
		stalls migrate.StallStats
	}
}

// NewPgBouncer checks cfg. It connects to nothing.
func NewPgBouncer(cfg PgBouncerConfig) (*PgBouncer, error) {
	if len(cfg.Bouncers) == 0 {
		return nil, errors.New("router pgbouncer: there is no PgBouncer")
	}
	for _, b := range cfg.Bouncers {
		switch {
		case b.Admin.IsZero():
			return nil, errors.New("router pgbouncer: a console has no connection string")
		case b.Database == "":
			return nil, fmt.Errorf("router pgbouncer: %s: no database is named", b.Admin)
		case (b.File == "") == (len(b.Command) == 0):
			return nil, fmt.Errorf("router pgbouncer: %s: it needs one of file and command", b.Admin)
		case b.Reads == b.Database:
			return nil, fmt.Errorf("router pgbouncer: %s: reads need a database of their own", b.Admin)
		}
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, 10*time.Second)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	return &PgBouncer{cfg: cfg}, nil
}

// Hold implements [migrate.Router]: it pauses the database on every PgBouncer, which waits for the
// transactions in flight.
func (r *PgBouncer) Hold(ctx context.Context, epoch int64) error {
	if err := r.orders.hold(epoch); err != nil {
		return err
	}
	r.mu.Lock()
	if r.mu.since.IsZero() {
		r.mu.since, r.mu.stalls = time.Now(), migrate.StallStats{}
	}
	r.mu.Unlock()
	return r.each(func(b Bouncer, _ int) error { return r.pause(ctx, b) })
}

func (r *PgBouncer) pause(ctx context.Context, b Bouncer) error {
	c, err := openConsole(ctx, b.Admin)
	if err != nil {
		return err
	}
	defer c.close(ctx)
	err = c.run(ctx, "PAUSE "+quoteIdent(b.Database))
	if err == nil || ctx.Err() == nil {
		return err
	}
	err = context.Cause(ctx)
	if n, askErr := r.inside(context.WithoutCancel(ctx), b); askErr == nil {
		err = fmt.Errorf("%d server sessions are still inside a transaction: %w", n, err)
	}
	return hint.Wrap(err, "look for long transactions in pg_stat_activity of the owner (state, xact_start)")
}

// inside counts the server sessions that a client still has.
func (r *PgBouncer) inside(ctx context.Context, b Bouncer) (n int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := openConsole(ctx, b.Admin)
	if err != nil {
		return 0, err
	}
	defer c.close(ctx)
	pools, err := c.pools(ctx, b.Database)
	return pools.active, err
}

// Release implements [migrate.Router]. A PgBouncer that answers lets its clients go on at once, whatever
// becomes of the others.
func (r *PgBouncer) Release(ctx context.Context, owner migrate.Side, epoch int64) error {
	if _, ok := r.cfg.Places[owner]; !ok {
		return fmt.Errorf("release: the place of %q is not known", owner)
	}
	percent, err := r.orders.release(owner, epoch)
	if err != nil {
		return err
	}
	var waited sync.Mutex
	var all waiting
	err = r.each(func(b Bouncer, i int) error {
		w, err := r.lead(ctx, b, r.places(b, i, owner, percent), true)
		waited.Lock()
		defer waited.Unlock()
		all.clients += w.clients
		all.longest = max(all.longest, w.longest)
		return err
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if all.clients > 0 && !r.mu.since.IsZero() {
		s := &r.mu.stalls
		s.Clients += int(all.clients)
		s.Max = max(s.Max, all.longest)
		s.P50, s.P99 = s.Max, s.Max // PgBouncer tells of the longest only
	}
	if err == nil {
		r.mu.since = time.Time{}
	}
	return err
}

// Reads implements [migrate.Router]: as many PgBouncers as the percentage allows send their reads to the
// side that does not own.
func (r *PgBouncer) Reads(ctx context.Context, percent int) error {
	owner, err := r.orders.reads(percent)
	if err != nil {
		return err
	}
	if owner == "" {
		owner = migrate.Source
	}
	return r.each(func(b Bouncer, i int) error {
		if b.Reads == "" {
			return nil
		}
		places := r.places(b, i, owner, percent)
		delete(places, b.Database)
		_, err := r.lead(ctx, b, places, false)
		return err
	})
}

// Stalls implements [migrate.Router].
func (r *PgBouncer) Stalls() migrate.StallStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.stalls
}

// places says where the databases of the i-th PgBouncer lead to.
func (r *PgBouncer) places(b Bouncer, i int, owner migrate.Side, percent int) map[string]pg.DSN {
	p := map[string]pg.DSN{b.Database: r.cfg.Places[owner]}
	if b.Reads != "" {
		side := owner
		if (i+1)*100 <= percent*len(r.cfg.Bouncers) {
			side = owner.Other()
		}
		p[b.Reads] = r.cfg.Places[side]
	}
	return p
}

// waiting is what a PgBouncer says of its waiting clients.
type waiting struct {
	clients int64
	longest time.Duration
}

// lead points databases of a PgBouncer to places, makes sure that it knows, and lets their clients go on.
func (r *PgBouncer) lead(ctx context.Context, b Bouncer, places map[string]pg.DSN, resume bool) (w waiting, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.cfg.Timeout, fmt.Errorf("no answer within %s", r.cfg.Timeout))
	defer cancel()
	if err := r.point(ctx, b, places); err != nil { // also when it does not answer: it may be started again
		return w, err
	}
	c, err := openConsole(ctx, b.Admin)
	if err != nil {
		return w, err
	}
	defer c.close(ctx)
	rows, err := c.databases(ctx)
	if err != nil {
		return w, err
	}
	if astray(rows, places) != "" {
		if err := c.run(ctx, "RELOAD"); err != nil {
			return w, err
		}
		if rows, err = c.databases(ctx); err != nil {
			return w, err
		}
	}
	if name := astray(rows, places); name != "" {
		return w, hint.Wrap(fmt.Errorf("after RELOAD its database %q still leads elsewhere", name),
			"is router.pgbouncers[].file, or what the command changes, the file that this PgBouncer reads?")
	}
	if !resume || !rows[b.Database].paused {
		return w, nil
	}
	pools, err := c.pools(ctx, b.Database)
	if err != nil {
		return w, err
	}
	if err := c.run(ctx, "RESUME "+quoteIdent(b.Database)); err != nil {
		return w, err
	}
	r.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "released clients of a pgbouncer",
		slog.String("console", b.Admin.String()), slog.String("host", places[b.Database].Host()), slog.Int64("held", pools.waiting.clients))
	return pools.waiting, nil
}

// point changes the configuration.
func (r *PgBouncer) point(ctx context.Context, b Bouncer, places map[string]pg.DSN) error {
	if b.File != "" {
		_, err := pointFile(b.File, places)
		return err
	}
	for name, p := range places {
		vars := []string{
			"FICUS_DATABASE=" + name, "FICUS_HOST=" + p.Host(),
			fmt.Sprintf("FICUS_PORT=%d", p.Port()), "FICUS_DBNAME=" + p.Database(),
		}
		if err := (hooks.Action{Command: b.Command, Timeout: r.cfg.Timeout}).Send(ctx, vars, nil); err != nil {
			return fmt.Errorf("command %s: %w", b.Command[0], err)
		}
	}
	return nil
}

// astray names a database that does not lead where it should, "" for none.
func astray(rows map[string]database, places map[string]pg.DSN) string {
	for name, p := range places {
		if row := rows[name]; row.host != p.Host() || row.port != int64(p.Port()) || row.dbname != p.Database() {
			return name
		}
	}
	return ""
}

// each works on every PgBouncer at once, and says which of them failed.
func (r *PgBouncer) each(work func(b Bouncer, i int) error) error {
	errs := make([]error, len(r.cfg.Bouncers))
	var wg sync.WaitGroup
	for i, b := range r.cfg.Bouncers {
		wg.Go(func() { // waited for below
			if err := work(b, i); err != nil {
				errs[i] = hint.Wrap(fmt.Errorf("pgbouncer %s: %w", b.Admin, err), "%s", hint.Of(err))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Check looks for what would go wrong at a switch. stall is the longest that clients may wait.
func (r *PgBouncer) Check(ctx context.Context, stall time.Duration) []migrate.Finding {
	var all []migrate.Finding
	for _, b := range r.cfg.Bouncers {
		found := func(s migrate.Severity, message, fix string) {
			all = append(all, migrate.Finding{Severity: s, Check: "pgbouncer", Object: b.Admin.String(), Message: message, Fix: fix})
		}
		if err := r.check(ctx, b, stall, found); err != nil {
			found(migrate.SeverityError, err.Error(), hint.Of(err))
		}
	}
	return all
}

func (r *PgBouncer) check(ctx context.Context, b Bouncer, stall time.Duration, found func(s migrate.Severity, message, fix string)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, r.cfg.Timeout, fmt.Errorf("no answer within %s", r.cfg.Timeout))
	defer cancel()
	c, err := openConsole(ctx, b.Admin)
	if err != nil {
		return err
	}
	defer c.close(ctx)
	rows, err := c.databases(ctx)
	if err != nil {
		return err
	}
	config, err := c.config(ctx)
	if err != nil {
		return err
	}
	for _, name := range []string{b.Database, b.Reads} {
		if row, ok := rows[name]; name != "" && !ok {
			found(migrate.SeverityError, fmt.Sprintf("it has no database %q", name), "add it to [databases]")
		} else if name == b.Database && cmp.Or(row.mode, config["pool_mode"]) == "session" {
			found(migrate.SeverityError, "session pooling: PAUSE would wait until every client has gone", "pool_mode = transaction, or router.type: gateway")
		}
	}
	if wait, err := time.ParseDuration(config["query_wait_timeout"] + "s"); err == nil && wait > 0 && wait < stall {
		found(migrate.SeverityWarning, fmt.Sprintf("clients that wait longer than query_wait_timeout (%s) are cut off, and a switch may take %s", wait, stall),
			fmt.Sprintf("query_wait_timeout = %d", int(stall.Seconds())+1))
	}
	if b.File == "" {
		return nil
	}
	text, err := os.ReadFile(b.File)
	if err != nil {
		return err
	}
	for _, name := range []string{b.Database, b.Reads} {
		if name == "" {
			continue
		}
		if _, err := pointText(string(text), name, r.cfg.Places[migrate.Source]); err != nil {
			return fmt.Errorf("%s: %w", b.File, err)
		}
	}
	return nil
}

// quoteIdent quotes a name for the console, which takes it as SQL does.
func quoteIdent(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
