package preflight

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

// Config says what a migration is about to do.
type Config struct {
	Migration      string
	Source, Target pg.DSN
	Tables         []schema.Table // of the source, all that were selected
	Mappings       []transform.Mapping
	// Full are the tables that will get REPLICA IDENTITY FULL, InsertOnly those of which only
	// inserts move, with the reason of each in Why.
	Full, InsertOnly []schema.Name
	Why              map[schema.Name]string
	// ForwardSlot and ReverseSlot name the slots that will be made on the source and on the target.
	ForwardSlot, ReverseSlot string

	CopiesSchema bool     // the target's tables are made by Ficus
	Follows      bool     // changes are followed after the copy
	FailoverSlot bool     // the slot is one that the source's standbys keep
	Promotes     bool     // ownership is going to move
	EndsSessions bool     // writers that a closing fence waits for are cancelled or terminated
	Lossy        []string // why no reverse link is possible; empty when one is
	// Tools says whether pg_dump can read the source; its hint becomes the fix.
	Tools error
}

// A report collects findings.
type report struct{ findings []migrate.Finding }

func (r *report) add(s migrate.Severity, check, object, fix, format string, args ...any) {
	r.findings = append(r.findings, migrate.Finding{Severity: s, Check: check, Object: object, Message: fmt.Sprintf(format, args...), Fix: fix})
}

const (
	fail = migrate.SeverityError
	warn = migrate.SeverityWarning
	info = migrate.SeverityInfo
)

// Run asks both databases. The error says that one could not be asked; what it answered is in the
// findings, errors first.
func Run(ctx context.Context, cfg Config) ([]migrate.Finding, error) {
	source, err := cfg.Source.Connect(ctx, "check")
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	defer source.Close(context.WithoutCancel(ctx))
	target, err := cfg.Target.Connect(ctx, "check")
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	defer target.Close(context.WithoutCancel(ctx))

	var r report
	src, err := inspect.Server(ctx, source)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	dst, err := inspect.Server(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	r.servers(cfg, src, dst)
	for _, part := range []func(context.Context, Config, *pgx.Conn, *pgx.Conn) error{
		r.sameDatabase, r.slotNames, r.occupied, r.extensions(src), r.privileges(src), r.signals, r.missingRoles,
		r.unmoved, r.objects, r.events(dst), r.newerTables(src, dst), r.virtualColumns, r.collations(src, dst), r.longTransactions,
	} {
		if err := part(ctx, cfg, source, target); err != nil {
			return nil, err
		}
	}
	r.tables(cfg)
	r.inexact(cfg, src, dst)
	return sorted(r.findings), nil
}

// sorted puts errors before warnings before notes, each in the order of finding.
func sorted(in []migrate.Finding) []migrate.Finding {
	out := make([]migrate.Finding, 0, len(in))
	for _, s := range []migrate.Severity{fail, warn, info} {
		for _, f := range in {
			if f.Severity == s {
				out = append(out, f)
			}
		}
	}
	return out
}
