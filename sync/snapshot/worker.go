package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/manifest"
)

// ErrSnapshotGone says that the session which exported the snapshot has ended, as when its connection
// is lost, and ErrMoved that a table was truncated or rewritten during the copy. The same copy may
// succeed under a new snapshot.
var (
	ErrSnapshotGone = errors.New("the snapshot is no longer exported")
	ErrMoved        = errors.New("the table was truncated or rewritten during the copy")
)

// codeNoSnapshot is what servers before 18 say of a snapshot that is not there.
const codeNoSnapshot = "22023"

// closeTimeout bounds the goodbye of one session.
const closeTimeout = 5 * time.Second

// work copies chunks until none are left. Its sessions serve every chunk; an error ends the Run.
func (c *copier) work(ctx context.Context, chunks <-chan chunk) error {
	pulse := pg.NewPulse(c.cfg.AnswerTimeout)
	return pulse.Run(ctx, func(ctx context.Context) error { return c.copyChunks(ctx, pulse, chunks) })
}

func (c *copier) copyChunks(ctx context.Context, pulse *pg.Pulse, chunks <-chan chunk) error {
	src, err := c.openSource(ctx, pulse)
	if err != nil {
		return err
	}
	defer closeSession(ctx, src.Conn)
	dst, err := c.openTarget(ctx, pulse)
	if err != nil {
		return err
	}
	defer closeSession(ctx, dst)

	for ch := range chunks {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if gate := c.cfg.Gate; gate != nil {
			wake := pulse.Rest()
			err := gate(ctx)
			wake()
			if err != nil {
				return err
			}
		}
		if err := c.copyChunk(ctx, src, dst, ch); err != nil {
			if silent, ok := errors.AsType[*pg.SilentError](context.Cause(ctx)); ok {
				err = silent // rather than what giving the sessions up led to
			}
			return fmt.Errorf("%s: %w", ch.table.m.Source.Name.Display(), err)
		}
		if ch.table.left.Add(-1) == 0 {
			c.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "table copied",
				slog.String("table", ch.table.m.Source.Name.Display()), slog.String("format", ch.table.format),
				slog.Int64("rows", ch.table.rows.Load()), slog.Int64("bytes", ch.table.bytes.Load()))
			c.tell(ctx, ch.table)
		}
	}
	if err := flush(ctx, dst); err != nil {
		return err
	}
	if c.cfg.Idle != nil {
		c.cfg.Idle(ctx)
	}
	return nil
}

// openSource starts a session that reads the snapshot and nothing else.
func (c *copier) openSource(ctx context.Context, pulse *pg.Pulse) (*reader, error) {
	src := &reader{relay: newRelay()}
	conn, err := pulse.Connect(ctx, c.cfg.Source, "source", "copy", src.attach,
		pg.Setting("row_security", "off"),         // an error instead of missing rows
		pg.Setting("synchronize_seqscans", "off")) // keep the physical order
	if err != nil {
		return nil, err
	}
	begin := "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT " + schema.QuoteLiteral(c.cfg.Snapshot)
	if _, err := conn.PgConn().Exec(ctx, begin).ReadAll(); err != nil {
		closeSession(ctx, conn)
		if code := pg.Code(err); code == codeNoSnapshot || code == pg.CodeUndefinedObject {
			err = fmt.Errorf("%w: %w", ErrSnapshotGone, err)
		}
		return nil, hint.Wrap(fmt.Errorf("read under snapshot %q: %w", c.cfg.Snapshot, err),
			"the session that exported the snapshot has ended: start the copy again, under a new snapshot")
	}
	src.Conn = conn
	return src, nil
}

// openTarget starts a session that fires no triggers and does not wait for the disk at each commit;
// flush makes up for that.
func (c *copier) openTarget(ctx context.Context, pulse *pg.Pulse) (*pgx.Conn, error) {
	conn, err := pulse.Connect(ctx, c.cfg.Target, "target", "copy", pg.Setting("synchronous_commit", "off"))
	if err != nil {
		return nil, err
	}
	if c.replica {
		if _, err := becomeReplica(ctx, conn); err != nil {
			closeSession(ctx, conn)
			return nil, err
		}
	}
	return conn, nil
}

// copyChunk moves one chunk in one target transaction, which records it too.
func (c *copier) copyChunk(ctx context.Context, src *reader, dst *pgx.Conn, ch chunk) error {
	t := ch.table
	tx, err := dst.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin on the target: %w", err)
	}
	if err := c.guard(ctx, tx); err != nil {
		return err
	}
	if c.cfg.Link != "" {
		if err := manifest.Enter(ctx, tx, c.cfg.Link, t.m.Source.Name, t.run); err != nil {
			return err
		}
	}
	if t.refresh { // the same transaction as COPY: PostgreSQL may then freeze the rows as it stores them
		if _, err := tx.Exec(ctx, "TRUNCATE "+t.truncated()); err != nil {
			return fmt.Errorf("empty the target's table: %w", targetError(err))
		}
	}
	m, err := pump(ctx, src, dst.PgConn(), ch.out, t.copyIn(), t)
	if err != nil {
		return err
	}
	if err := c.unmoved(ctx, src.Conn, ch); err != nil {
		return err
	}
	if m.sent != m.stored {
		return hint.Wrap(fmt.Errorf("the source sent %d rows and the target stored %d", m.sent, m.stored),
			"a trigger on the target's table (ENABLE ALWAYS or REPLICA) leaves rows out: disable it for the copy")
	}
	if c.cfg.Link != "" {
		ch.part.Rows, ch.part.Bytes = m.sent, m.bytes
		if err := manifest.Finish(ctx, tx, c.cfg.Link, t.m.Source.Name, ch.part); err != nil {
			return err
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit on the target: %w", err)
	}
	src.relay.settle(m.sent)
	return nil
}

// unmoved makes sure that a chunk was read from where its rows were when the copy began. A snapshot
// does not see through a TRUNCATE or a rewrite: it finds the table empty. Whoever runs the copy keeps
// both away by a lock, which ends with its session; and COPY has taken one of its own by now.
func (c *copier) unmoved(ctx context.Context, src *pgx.Conn, ch chunk) error {
	var files []string
	for _, p := range ch.table.src.pieces {
		if name := p.name.String(); name == ch.part.Relation || ch.table.src.whole {
			files = append(files, p.file)
		}
	}
	var moved bool
	err := src.QueryRow(ctx, `SELECT EXISTS (SELECT FROM unnest($1::text[]) f
		WHERE coalesce(pg_relation_filenode(split_part(f, '/', 1)::oid), 0)::text <> split_part(f, '/', 2))`, files).Scan(&moved)
	if err == nil && moved {
		err = ErrMoved
	}
	if err != nil {
		return fmt.Errorf("look where the rows are: %w", err)
	}
	return nil
}

// flush makes everything committed on dst so far durable: a commit that waits for the WAL waits for
// all WAL before it. A message is the smallest thing to commit that needs no table.
func flush(ctx context.Context, dst *pgx.Conn) error {
	if _, err := dst.Exec(ctx, "SET synchronous_commit = local"); err != nil {
		return fmt.Errorf("wait for the target's disk: %w", err)
	}
	if _, err := dst.Exec(ctx, "SELECT pg_logical_emit_message(true, 'ficus', 'copied')"); err != nil {
		return fmt.Errorf("wait for the target's disk: %w", err)
	}
	return nil
}

// closeSession ends a session, whatever it is doing, and waits until its connection is gone. It
// works after ctx has ended, too.
func closeSession(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx) // whoever needed an answer has it
	select {
	case <-conn.PgConn().CleanupDone():
	case <-ctx.Done():
	}
}
