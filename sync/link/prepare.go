package link

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/sync/source"
)

// errLoaded is the cause with which Load stops its reader.
var errLoaded = errors.New("initial load is done")

// Prepare implements [migrate.Link]: the destination already holds what the origin holds, and
// changes from now on are kept.
func (l *Link) Prepare(ctx context.Context, afterEpoch int64) error {
	if p, err := l.attached(); err == nil && p.record.AfterEpoch == afterEpoch {
		return nil
	}
	replication, snap, err := l.begin(ctx, func() error { return nil })
	if err != nil {
		return err
	}
	if err := replication.Close(ctx); err != nil {
		return fmt.Errorf("link %s: %w", l.cfg.Name, err)
	}
	return l.remember(record{Start: snap.LSN, AfterEpoch: afterEpoch, AckApplied: l.cfg.Ack == source.AckApplied})
}

// LoadConfig says how to make the first copy.
type LoadConfig struct {
	Workers    int   // see [snapshot.Config]
	ChunkBytes int64 // see [snapshot.Config]
	Progress   func(snapshot.Table)
}

// Load prepares the link at an exported snapshot and copies every row of that snapshot, while the
// changes that follow are being stored. It starts over whatever an earlier Load left.
func (l *Link) Load(ctx context.Context, cfg LoadConfig) (snapshot.Result, error) {
	// Snapshots do not see through a TRUNCATE: a table truncated between the slot and its copy would
	// be copied empty, and the changes before the TRUNCATE would find no row. Like pg_dump, a session
	// holds ACCESS SHARE locks until the copy is done, so that TRUNCATE and DDL wait.
	// Source: PostgreSQL manual, "Concurrency Control", section "Caveats".
	keeper, err := l.cfg.From.Connect(ctx, "lock")
	if err != nil {
		return snapshot.Result{}, err
	}
	defer keeper.Close(context.WithoutCancel(ctx))
	replication, snap, err := l.begin(ctx, func() error { return l.lockTables(ctx, keeper) })
	if err != nil {
		return snapshot.Result{}, err
	}
	closed := false
	closeReplication := func() error {
		if closed {
			return nil
		}
		closed = true
		return replication.Close(context.WithoutCancel(ctx))
	}
	defer func() { _ = closeReplication() }() // an error here follows one that is returned

	// The slot's snapshot dies with the next command on its connection, and the reader needs the
	// slot at once: a second session imports the snapshot and exports it again.
	holder, err := l.cfg.From.Connect(ctx, "snapshot")
	if err != nil {
		return snapshot.Result{}, err
	}
	defer holder.Close(context.WithoutCancel(ctx))
	exported, err := reexport(ctx, holder, snap.Name)
	if err != nil {
		return snapshot.Result{}, fmt.Errorf("link %s: hold the snapshot: %w", l.cfg.Name, err)
	}
	if err := closeReplication(); err != nil {
		return snapshot.Result{}, fmt.Errorf("link %s: %w", l.cfg.Name, err)
	}

	rec := record{Start: snap.LSN, AckApplied: l.cfg.Ack == source.AckApplied}
	p, err := l.assemble(rec)
	if err != nil {
		return snapshot.Result{}, err
	}
	var result snapshot.Result
	g, ctx := errgroup.WithContext(ctx)
	readCtx, stopReading := context.WithCancelCause(ctx)
	defer stopReading(nil)
	g.Go(func() error {
		if err := p.reader.Run(readCtx); !errors.Is(err, errLoaded) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		defer stopReading(errLoaded)
		var err error
		result, err = snapshot.Run(ctx, snapshot.Config{
			Source: l.cfg.From, Target: l.cfg.To, Snapshot: exported, Mappings: l.cfg.Mappings,
			Workers: cfg.Workers, ChunkBytes: cfg.ChunkBytes, Progress: cfg.Progress, Log: l.cfg.Log,
		})
		return err
	})
	if err := g.Wait(); err != nil {
		return snapshot.Result{}, fmt.Errorf("link %s: load: %w", l.cfg.Name, err)
	}
	return result, l.remember(rec)
}

// begin starts afresh: it removes what is there and makes identities, publication and slot. The
// returned session holds the slot's exported snapshot. ahead is called before the slot is made.
func (l *Link) begin(ctx context.Context, ahead func() error) (*pgconn.PgConn, source.Snapshot, error) {
	if err := l.Drop(ctx); err != nil {
		return nil, source.Snapshot{}, err
	}
	fail := func(doing string, err error) (*pgconn.PgConn, source.Snapshot, error) {
		return nil, source.Snapshot{}, fmt.Errorf("link %s: %s: %w", l.cfg.Name, doing, err)
	}
	to, err := l.cfg.To.Connect(ctx, "prepare")
	if err != nil {
		return nil, source.Snapshot{}, err
	}
	defer to.Close(context.WithoutCancel(ctx))
	if err := apply.Install(ctx, to); err != nil {
		return fail("install progress", err)
	}

	from, err := l.cfg.From.Connect(ctx, "prepare")
	if err != nil {
		return nil, source.Snapshot{}, err
	}
	defer from.Close(context.WithoutCancel(ctx))
	if err := l.setIdentities(ctx, from); err != nil {
		return fail("set replica identities", err)
	}
	tables := make([]schema.Name, len(l.cfg.Mappings))
	for i := range l.cfg.Mappings {
		tables[i] = l.cfg.Mappings[i].Source.Name
	}
	options := source.PublicationOptions{InsertOnly: l.cfg.InsertOnly}
	if err := source.EnsurePublication(ctx, from, l.cfg.Name, tables, options); err != nil {
		return fail("publish", err)
	}
	if err := l.markPolicy(ctx, from); err != nil {
		return fail("note the acknowledgement policy", err)
	}
	if err := ahead(); err != nil {
		return nil, source.Snapshot{}, err
	}
	replication, err := l.cfg.From.ConnectReplication(ctx, "slot")
	if err != nil {
		return nil, source.Snapshot{}, err
	}
	snap, err := source.CreateSlot(ctx, replication, l.cfg.Name, false)
	if err != nil {
		return fail("create the slot", errors.Join(err, replication.Close(context.WithoutCancel(ctx))))
	}
	return replication, snap, nil
}

// lockTables takes ACCESS SHARE on every table, for as long as conn lives.
func (l *Link) lockTables(ctx context.Context, conn *pgx.Conn) error {
	if len(l.cfg.Mappings) == 0 {
		return nil
	}
	names := make([]string, len(l.cfg.Mappings))
	for i := range l.cfg.Mappings {
		names[i] = l.cfg.Mappings[i].Source.Name.String()
	}
	for _, sql := range []string{`BEGIN READ ONLY`, `LOCK TABLE ` + strings.Join(names, ", ") + ` IN ACCESS SHARE MODE`} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("link %s: lock the tables for the copy: %w", l.cfg.Name, err)
		}
	}
	return nil
}

// Drop implements [migrate.Link]. The record goes first: a half-dropped link starts over.
func (l *Link) Drop(ctx context.Context) error {
	if err := l.forget(); err != nil {
		return err
	}
	from, err := l.cfg.From.Connect(ctx, "drop")
	if err != nil {
		return err
	}
	defer from.Close(context.WithoutCancel(ctx))
	if err := source.DropSlot(ctx, from, l.cfg.Name); err != nil {
		return fmt.Errorf("link %s: drop the slot: %w", l.cfg.Name, err)
	}
	if err := source.DropPublication(ctx, from, l.cfg.Name); err != nil {
		return fmt.Errorf("link %s: drop the publication: %w", l.cfg.Name, err)
	}
	if err := RestoreIdentities(ctx, from, l.cfg.Name, l.cfg.LockTimeout); err != nil {
		return fmt.Errorf("link %s: restore replica identities: %w", l.cfg.Name, err)
	}
	to, err := l.cfg.To.Connect(ctx, "drop")
	if err != nil {
		return err
	}
	defer to.Close(context.WithoutCancel(ctx))
	if err := apply.Forget(ctx, to, l.cfg.Name); err != nil {
		return fmt.Errorf("link %s: forget the progress: %w", l.cfg.Name, err)
	}
	if err := l.cfg.Store.DropStream(l.cfg.Name); err != nil {
		return fmt.Errorf("link %s: drop the stored events: %w", l.cfg.Name, err)
	}
	stream, err := l.cfg.Store.Stream(l.cfg.Name)
	if err != nil {
		return fmt.Errorf("link %s: %w", l.cfg.Name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.stream = stream
	return nil
}

// reexport imports a snapshot into a transaction of conn, which from then on holds it, and exports
// it again. Source: PostgreSQL manual, "Snapshot Synchronization Functions".
func reexport(ctx context.Context, conn *pgx.Conn, name string) (string, error) {
	if _, err := conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`); err != nil {
		return "", err
	}
	if _, err := conn.Exec(ctx, `SET TRANSACTION SNAPSHOT `+schema.QuoteLiteral(name)); err != nil {
		return "", err
	}
	var exported string
	err := conn.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&exported)
	return exported, err
}
