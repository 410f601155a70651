package link

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/manifest"
	"github.com/ficus-migrate/ficus/sync/source"
)

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
	// From here on the databases alone tell where the link begins, should the record be lost before it ran.
	if err := l.begins(ctx, snap.LSN); err != nil {
		return fmt.Errorf("link %s: %w", l.cfg.Name, err)
	}
	return l.remember(record{Start: snap.LSN, AfterEpoch: afterEpoch, AckApplied: l.cfg.Ack == source.AckApplied})
}

// begins writes the destination's first progress.
func (l *Link) begins(ctx context.Context, at change.LSN) error {
	to, err := l.connectTo(ctx, "prepare")
	if err != nil {
		return err
	}
	defer to.Close(context.WithoutCancel(ctx))
	return apply.Begin(ctx, to, l.cfg.Name, at)
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
	to, err := l.connectTo(ctx, "prepare")
	if err != nil {
		return nil, source.Snapshot{}, err
	}
	defer to.Close(context.WithoutCancel(ctx))
	if err := apply.Install(ctx, to); err != nil {
		return fail("install progress", err)
	}
	if err := manifest.Install(ctx, to); err != nil {
		return fail("install the manifest", err)
	}

	from, err := l.connectFrom(ctx, "prepare")
	if err != nil {
		return nil, source.Snapshot{}, err
	}
	defer from.Close(context.WithoutCancel(ctx))
	if err := l.setIdentities(ctx, from); err != nil {
		return fail("set replica identities", err)
	}
	options := source.PublicationOptions{InsertOnly: l.cfg.InsertOnly}
	if err := source.EnsurePublication(ctx, from, l.cfg.Name, l.tables(), options); err != nil {
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
	var snap source.Snapshot
	if err = l.cfg.EnlistFrom(ctx, replication); err == nil {
		snap, err = l.awaitSlot(ctx, from, replication)
	}
	if err != nil {
		return fail("create the slot", errors.Join(err, replication.Close(context.WithoutCancel(ctx))))
	}
	return replication, snap, nil
}

// connectFrom opens a session that changes something at the origin.
func (l *Link) connectFrom(ctx context.Context, part string) (*pgx.Conn, error) {
	conn, err := l.cfg.From.Connect(ctx, part)
	if err != nil {
		return nil, err
	}
	return enlisted(ctx, conn, l.cfg.EnlistFrom)
}

// connectTo opens a session that changes something at the destination.
func (l *Link) connectTo(ctx context.Context, part string) (*pgx.Conn, error) {
	conn, err := l.cfg.To.Connect(ctx, part)
	if err != nil {
		return nil, err
	}
	return enlisted(ctx, conn, l.cfg.EnlistTo)
}

func enlisted(ctx context.Context, conn *pgx.Conn, enlist func(context.Context, *pgconn.PgConn) error) (*pgx.Conn, error) {
	if err := enlist(ctx, conn.PgConn()); err != nil {
		return nil, errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	}
	return conn, nil
}

// awaitSlot makes the slot, and tells whom it waits for when that takes long.
func (l *Link) awaitSlot(ctx context.Context, conn *pgx.Conn, replication *pgconn.PgConn) (source.Snapshot, error) {
	telling, stop := context.WithCancel(ctx)
	var teller sync.WaitGroup
	teller.Go(func() { source.TellAwaited(telling, l.cfg.From, replication.PID(), l.cfg.Log) })
	defer teller.Wait()
	defer stop()
	return l.createSlot(ctx, conn, replication)
}

// lockTables takes ACCESS SHARE on tables, for as long as conn lives.
func (l *Link) lockTables(ctx context.Context, conn *pgx.Conn, tables []schema.Name) error {
	if len(tables) == 0 {
		return nil
	}
	names := make([]string, len(tables))
	for i := range tables {
		names[i] = tables[i].String()
	}
	for _, sql := range []string{`BEGIN READ ONLY`, `LOCK TABLE ` + strings.Join(names, ", ") + ` IN ACCESS SHARE MODE`} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("link %s: lock the tables for the copy: %w", l.cfg.Name, err)
		}
	}
	return nil
}

// tables names the tables that the link moves, at the origin.
func (l *Link) tables() []schema.Name {
	tables := make([]schema.Name, len(l.cfg.Mappings))
	for i := range l.cfg.Mappings {
		tables[i] = l.cfg.Mappings[i].Source.Name
	}
	return tables
}

// Drop implements [migrate.Link]. The record goes first: a half-dropped link starts over.
func (l *Link) Drop(ctx context.Context) error {
	if err := l.forget(); err != nil {
		return err
	}
	from, err := l.connectFrom(ctx, "drop")
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
	to, err := l.connectTo(ctx, "drop")
	if err != nil {
		return err
	}
	defer to.Close(context.WithoutCancel(ctx))
	if err := apply.Forget(ctx, to, l.cfg.Name); err != nil {
		return fmt.Errorf("link %s: forget the progress: %w", l.cfg.Name, err)
	}
	if err := manifest.Forget(ctx, to, l.cfg.Name); err != nil {
		return fmt.Errorf("link %s: %w", l.cfg.Name, err)
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
