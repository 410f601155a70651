package verify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/schema"
)

// errRepairMoved says that a repair found another row than it was made for.
var errRepairMoved = errors.New("the row is no longer what it was when it was compared")

// errTooLarge says that a table cannot be mended while applying stands still.
var errTooLarge = errors.New("too large to be compared while applying stands still")

// Mend applies the repairs of a report of this session in one transaction of the target, all or none,
// then compares the rows again, and tables without a key as a whole. Call it when nobody else
// changes the target; with a Follower call MendFollowing.
func (s *Session) Mend(ctx context.Context, r *Report) (*Report, error) {
	if err := s.mend(ctx, r.Repairs); err != nil {
		return nil, err
	}
	return s.DeltaAtRest(ctx, repaired(r.Repairs))
}

// Mended is what MendFollowing did.
type Mended struct {
	Repairs []Repair
	Again   *Report // of the rows, afterwards, at the same instant
}

// MendFollowing mends the rows of a report of this session while the follower follows. It stops the
// follower at an instant, compares these rows once more there, mends in one transaction what still
// differs, compares again at that instant, and lets the follower go on. So nothing that was on its way
// is taken for a difference, and what comes next in the stream finds the rows that it was made for.
func (s *Session) MendFollowing(ctx context.Context, r *Report) (*Mended, error) {
	start := time.Now()
	s.hurry = true
	defer func() { s.hurry = false }()
	before, err := s.layouts(ctx, s.tables)
	if err != nil {
		return nil, err
	}
	defer s.thaw(ctx)
	at, goOn, err := s.stand(ctx, s.cfg.Follower)
	if err != nil {
		return nil, err
	}
	defer goOn()

	keys := distinct(repaired(r.Repairs))
	now, err := s.compareStanding(ctx, keys, at)
	if err != nil {
		return nil, err
	}
	if len(now.Uncovered) > 0 {
		return nil, hint.Wrap(fmt.Errorf("%s: %w", strings.Join(now.Uncovered, "; "), errTooLarge), "copy the table anew: ficus resync %s TABLE", s.cfg.Name)
	}
	// A source table that was rewritten since looks empty: what the target has would be taken away.
	if err := s.unchanged(ctx, s.tables, before); err != nil {
		return nil, err
	}
	now.finish(start)
	if len(now.Repairs) > 0 {
		if err := s.mend(ctx, now.Repairs); err != nil {
			return nil, err
		}
	}
	s.nodes[target].thaw(ctx)
	again, err := s.compareStanding(ctx, keys, at)
	if err != nil {
		return nil, fmt.Errorf("%d rows were mended, and not compared again: %w", len(now.Repairs), err)
	}
	again.Paused = time.Since(at.stopped)
	again.finish(start)
	s.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "mended", slog.Int("rows", len(now.Repairs)), slog.String("lsn", at.lsn.String()),
		slog.Int64("differences", again.Differences), slog.Duration("paused", again.Paused))
	return &Mended{Repairs: now.Repairs, Again: again}, nil
}

// compareStanding compares rows with what the target has now, while it stands at the instant that the
// source's workers see.
func (s *Session) compareStanding(ctx context.Context, keys Keys, at instant) (*Report, error) {
	s.atRest = false
	n := s.nodes[target]
	exported, err := n.export(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.adopt(ctx, exported.snapshot, 1); err != nil {
		return nil, err
	}
	report := s.newReport(Delta, at)
	whole, err := s.compareKeys(ctx, keys, report)
	if err != nil {
		return nil, err
	}
	return report, s.compareWhole(ctx, whole, report)
}

// mend applies repairs in one transaction of the target, all or none.
func (s *Session) mend(ctx context.Context, repairs []Repair) error {
	n := s.nodes[target]
	err := pgx.BeginFunc(ctx, n.control, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, repairSettings, pgx.QueryExecModeSimpleProtocol); err != nil {
			if pg.Code(err) == pg.CodeInsufficientPrivilege {
				return hint.Wrap(err, "triggers and foreign keys must not fire: GRANT SET ON PARAMETER session_replication_role TO %s (PostgreSQL 15), or mend as a superuser", n.dsn.User())
			}
			return err
		}
		if s.cfg.Mark != "" {
			if _, err := tx.Exec(ctx, s.cfg.Mark, pgx.QueryExecModeSimpleProtocol); err != nil {
				return err
			}
		}
		run := func(p *Repair, sql string) error {
			tag, err := tx.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
			if err == nil && tag.RowsAffected() != 1 {
				err = errRepairMoved
			}
			if err != nil {
				return fmt.Errorf("table %s: %s row %s: %w", p.Table.Display(), p.Kind, p.Key, quiet(err))
			}
			return nil
		}
		for i := range repairs {
			if err := run(&repairs[i], repairs[i].SQL); err != nil {
				return err
			}
		}
		for i := range repairs {
			if repairs[i].After == "" {
				continue
			}
			if err := run(&repairs[i], repairs[i].After); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return n.fail("mend", err)
	}
	return nil
}

// quiet takes from an error what may hold values of the row.
func quiet(err error) error {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return &pgconn.PgError{Severity: e.Severity, Code: e.Code, Message: e.Message, SchemaName: e.SchemaName, TableName: e.TableName, ConstraintName: e.ConstraintName}
	}
	return err
}

// repaired are the keys of the rows that were mended.
func repaired(list []Repair) Keys {
	return func(table schema.Name, yield func(key []string) error) error {
		for i := range list {
			if list[i].Table != table {
				continue
			}
			if err := yield(list[i].key); err != nil {
				return err
			}
		}
		return nil
	}
}

// distinct leaves out what comes again: each key is looked up once, and its rows are mended once.
func distinct(keys Keys) Keys {
	return func(table schema.Name, yield func(key []string) error) error {
		seen := map[string]bool{}
		return keys(table, func(key []string) error {
			id := fmt.Sprintf("%q", key)
			if seen[id] {
				return nil
			}
			seen[id] = true
			return yield(key)
		})
	}
}
