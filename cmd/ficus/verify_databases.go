package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/units"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/verify"
)

// maxRepairs is how many rows of a table "verify --repair" mends; more are better copied anew.
const maxRepairs = 100_000

// verifyDatabases compares two databases as they stand.
func (a *app) verifyDatabases(ctx context.Context, j *job, f *verifyFlags) error {
	log, err := a.log()
	if err != nil {
		return err
	}
	if err := j.read(ctx); err != nil {
		return err
	}
	if len(j.plan.Forward.Mappings) == 0 {
		return hint.Wrap(errors.New("there is no table to compare"), "look at --include and --exclude")
	}
	cfg := verify.Config{
		Source: j.source, Target: j.target, Mappings: j.plan.Forward.Mappings, Workers: j.playbook.Copy.Workers,
		ShowValues: f.values, MaxSamples: f.samples, Program: "ficus " + versionText(), Progress: a.pace(), Log: log,
	}
	if !f.rowsOnly {
		cfg.Definitions, cfg.Sequences = true, j.plan.Forward.Sequences
	}
	if f.repair != "" {
		if err := refuseFollowing(ctx, j.source, j.target); err != nil {
			return err
		}
		cfg.Repairs = maxRepairs
	}
	if f.checkpoint != "" {
		if err := goOn(&cfg, f.checkpoint); err != nil {
			return err
		}
	}
	s, err := verify.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer s.Close()
	report, err := s.Exact(ctx)
	if err != nil {
		return a.interrupted(ctx, err, f.checkpoint)
	}
	if f.checkpoint != "" {
		if err := os.Remove(f.checkpoint); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := a.conclude(report, f); err != nil {
		return err
	}
	if f.repair != "" && report.Differences > 0 {
		return a.repair(ctx, s, report, f)
	}
	return verdictStatus(report)
}

// conclude prints a report and writes it to where it is kept.
func (a *app) conclude(report *verify.Report, f *verifyFlags) error {
	if err := report.Seal(""); err != nil {
		return err
	}
	for _, file := range f.evidence {
		if err := writeEvidence(report, file); err != nil {
			return err
		}
	}
	if !a.json {
		return report.WriteText(a.stdout)
	}
	for i := range report.Tables {
		a.line("table", fields(report.Tables[i]), "")
	}
	for i := range report.Definitions {
		a.line("definition", fields(report.Definitions[i]), "")
	}
	for i := range report.Sequences {
		a.line("sequence", fields(report.Sequences[i]), "")
	}
	behind := 0
	for i := range report.Sequences {
		if !report.Sequences[i].Ahead {
			behind++
		}
	}
	a.line("result", map[string]any{
		"verdict": report.Verdict(), "tables": len(report.Tables), "rows": report.Rows, "differences": report.Differences, "seconds": report.Elapsed.Seconds(),
		"definitions": report.Matters(), "sequences_behind": behind,
		"lsn": report.LSN, "same_instant": report.SameInstant, "instants": max(1, len(report.Instants)), "digest": report.Digest,
	}, "")
	return nil
}

// verdictStatus turns a verdict into an exit status.
func verdictStatus(report *verify.Report) error {
	switch report.Verdict() {
	case verify.Equal:
		return nil
	case verify.Different:
		return &statusError{status: exitNo}
	case verify.Unknown:
	}
	return &statusError{status: exitFailed}
}

// pace returns what shows the progress, now and then.
func (a *app) pace() func(done, total int64) {
	start, last := time.Now(), time.Now()
	var mu sync.Mutex // guards last
	terminal := isTerminal(a.stderr)
	if !a.json && !terminal {
		return nil
	}
	return func(done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(last) < time.Second {
			return
		}
		last = time.Now()
		p := verify.NewPace(start, done, total)
		a.showPace(p.Done, p.Total, p.Rate, p.Left, nil)
	}
}

// showPace shows how far a comparison is, and who paused it.
func (a *app) showPace(done, total int64, rate float64, left time.Duration, held *migrate.Hold) {
	if a.json {
		line := map[string]any{"done": done, "total": total, "rows_per_second": rate, "seconds_left": left.Seconds()}
		if held != nil {
			line["paused_by"] = held.By
		}
		a.line("progress", line, "")
		return
	}
	text := fmt.Sprintf("%s of about %s rows, %s/s, %s left", units.Count(done), units.Count(total), units.Count(int64(rate)), units.Duration(left.Round(time.Second)))
	if held != nil {
		text = fmt.Sprintf("%s of about %s rows, paused by %s", units.Count(done), units.Count(total), held.By)
	}
	fmt.Fprintf(a.stderr, "\r\x1b[K%s\r", text)
}

// goOn makes a comparison one that goes on with what a file says, and keeps the file.
func goOn(cfg *verify.Config, file string) error {
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("read the checkpoint: %w", err)
	default:
		cfg.Resume = new(verify.Checkpoint)
		if err := json.Unmarshal(data, cfg.Resume); err != nil {
			return hint.Wrap(fmt.Errorf("read the checkpoint %s: %w", file, err), "remove the file to begin anew")
		}
	}
	cfg.Save = func(c verify.Checkpoint) error {
		data, err := json.Marshal(c)
		if err != nil {
			return fmt.Errorf("write the checkpoint: %w", err)
		}
		return replaceFile(file, data)
	}
	return nil
}

// interrupted says how to go on, where that is possible.
func (a *app) interrupted(ctx context.Context, err error, checkpoint string) error {
	if checkpoint == "" || ctx.Err() == nil {
		return err
	}
	if _, missing := os.Stat(checkpoint); missing != nil {
		return err
	}
	return hint.Wrap(fmt.Errorf("interrupted: %w", err), "the same command goes on with %s", checkpoint)
}

// replaceFile writes a file that only its owner may read; it is there in whole or as it was.
func replaceFile(file string, data []byte) error {
	next := file + ".next"
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return err
	}
	return os.Rename(next, file)
}

// writeEvidence writes a sealed report in the form that the file's name asks for.
func writeEvidence(report *verify.Report, file string) error {
	var b strings.Builder
	write := report.WriteText
	switch filepath.Ext(file) {
	case ".html":
		write = report.WriteHTML
	case ".json":
		write = report.WriteJSON
	}
	if err := write(&b); err != nil {
		return err
	}
	if err := replaceFile(file, []byte(b.String())); err != nil {
		return fmt.Errorf("write the evidence: %w", err)
	}
	return nil
}

// checkEvidence tells whether a report was altered.
func (a *app) checkEvidence(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return &statusError{exitUsage, fmt.Errorf("read the evidence: %w", err)}
	}
	if filepath.Ext(file) == ".html" {
		if data, err = verify.Embedded(data); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	digest, previous, err := verify.CheckSeal(data)
	if errors.Is(err, verify.ErrAltered) {
		a.line("result", map[string]any{"file": file, "altered": true}, file+": altered: the digest does not belong to the report")
		return &statusError{status: exitNo}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	a.line("result", map[string]any{"file": file, "altered": false, "digest": digest, "previous": previous}, file+": as it was sealed, digest "+digest)
	return nil
}

// repair writes the SQL that mends the target, and runs it if it is told to.
func (a *app) repair(ctx context.Context, s *verify.Session, report *verify.Report, f *verifyFlags) error {
	var b strings.Builder
	if err := report.WriteRepairs(&b); err != nil {
		return err
	}
	if err := replaceFile(f.repair, []byte(b.String())); err != nil {
		return fmt.Errorf("write the SQL: %w", err)
	}
	if !f.apply {
		a.say(fmt.Sprintf("%s: %d statements that mend the target; --apply runs them, or psql -f", f.repair, len(report.Repairs)))
		return verdictStatus(report)
	}
	if report.Verdict() == verify.Unknown {
		return hint.Wrap(errors.New("nothing was applied: the source was written to meanwhile, and the rows may have been on their way"), "apply when the source is quiet")
	}
	again, err := s.Mend(ctx, report)
	if err != nil {
		return hint.Wrap(err, "nothing was applied; compare again")
	}
	if again.Differences > 0 {
		return fmt.Errorf("%d rows still differ after %d statements", again.Differences, len(report.Repairs))
	}
	a.line("result", map[string]any{"repaired": len(report.Repairs), "differences": 0, "rows": again.Rows},
		fmt.Sprintf("mended: %d statements applied, the rows compared again: equal", len(report.Repairs)))
	if report.Matters() > 0 {
		return &statusError{status: exitNo} // what SQL for rows does not mend
	}
	return nil
}

// refuseFollowing refuses to mend a database that a migration follows into: what is on its way would be
// taken for wrong, and the link would find rows there that it did not make.
func refuseFollowing(ctx context.Context, source, target pg.DSN) error {
	var names [2]string
	for i, dsn := range []pg.DSN{source, target} {
		name, err := migrationOf(ctx, dsn)
		if err != nil {
			return err
		}
		names[i] = name
	}
	if names[0] == "" || names[0] != names[1] {
		return nil
	}
	return hint.Wrap(fmt.Errorf("nothing is mended: migration %s keeps one of the databases in step with the other, and rows may be on their way", names[0]),
		"ficus verify %[1]s --repair FILE --apply mends at one instant, while it follows; where it has stopped over a row: ficus resync %[1]s TABLE", names[0])
}

// migrationOf returns the migration that a database belongs to, "" where there is none.
func migrationOf(ctx context.Context, dsn pg.DSN) (name string, err error) {
	conn, err := dsn.Connect(ctx, "verify")
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	err = conn.QueryRow(ctx, `SELECT migration FROM ficus.ownership`).Scan(&name)
	switch code := pg.Code(err); {
	case code == pg.CodeUndefinedTable, code == "3F000", errors.Is(err, pgx.ErrNoRows): // no such schema
		return "", nil
	case err != nil:
		return "", fmt.Errorf("look whether %s belongs to a migration: %w", dsn, err)
	}
	return name, nil
}

// say prints what only people read.
func (a *app) say(text string) {
	if !a.json {
		fmt.Fprintln(a.stdout, text)
	}
}
