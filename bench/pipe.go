package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ficus-migrate/ficus/bench/lab"
)

// pipe moves the bytes of one COPY: what it costs that Ficus stands between two servers, where two
// psql and a pipe of the kernel would do.
type pipe struct{}

func (pipe) name() string { return "pipe" }

// pipeTable has no key, so that nothing but COPY is measured.
const pipeTable = `CREATE TABLE public.piped (id bigint NOT NULL, a int, b text, c text, d timestamptz, e numeric(12, 2), f boolean, g uuid, h jsonb, i double precision)`

func (pipe) run(ctx context.Context, b *bench) (_ []*Result, err error) {
	g := &copyGround{bench: b, source: "pipe_source", target: "pipe_target"}
	defer func() { err = errors.Join(err, g.clear(context.WithoutCancel(ctx))) }()
	err = g.fill(ctx, shape{name: "pipe", fill: func(ctx context.Context, b *bench, db string) error {
		return b.Source.Exec(ctx, db, pipeTable, fmt.Sprintf(`INSERT INTO public.piped SELECT i, i %% 1000, md5(i::text), 'note ' || i, timestamptz '2026-01-01' + i * interval '1 s',
			i %% 100000 / 100.0, i %% 3 = 0, md5(i::text)::uuid, jsonb_build_object('id', i, 'n', i %% 17), i / 7.0 FROM generate_series(1, %d) i`, b.size.pipeRows))
	}})
	if err != nil {
		return nil, err
	}
	size, err := b.Source.Text(ctx, g.source, "SELECT pg_size_pretty(pg_relation_size('public.piped'))")
	if err != nil {
		return nil, err
	}
	r := &Result{Scenario: "pipe", Title: "Bytes of one COPY", Work: []string{
		fmt.Sprintf("%s rows of ten columns (bigint, int, two texts, timestamptz, numeric, boolean, uuid, jsonb, double precision), %s, no key, no index.", thousands(b.size.pipeRows), size),
		"psql: from the start of both programs to their end. Ficus: copy_seconds of its result, which leaves out reading catalogs and pg_dump; its processor time is all of it.",
	}}
	r.Contenders, err = b.compete(ctx, "pipe", []contender{
		&pipeFicus{copier{g, Contender{Name: ficusName, Settings: "ficus copy, one worker, one chunk"}, nil}},
		&pipePsql{g, ""},
		&pipePsql{g, "FREEZE"},
	}, nil)
	if err != nil {
		return nil, err
	}
	r.compare(0.95)
	return []*Result{r}, nil
}

// pipeFicus is "ficus copy" told to copy the table as one piece.
type pipeFicus struct{ copier }

func (p *pipeFicus) run(ctx context.Context, _ int) (Run, error) {
	dir, err := p.Scratch()
	if err != nil {
		return Run{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // the lab's folder goes in the end
	if err := errors.Join(p.Target.Drop(ctx, p.target), p.Target.Create(ctx, p.target, "")); err != nil {
		return Run{}, err
	}
	playbook := filepath.Join(dir, "pipe.yaml")
	text := fmt.Sprintf("name: pipe\nsource: %s\ntarget: %s\ncopy:\n  workers: 1\n  chunk: 1TB\n", p.Source.URL(p.source), p.Target.URL(p.target))
	if err := os.WriteFile(playbook, []byte(text), 0o600); err != nil {
		return Run{}, err
	}
	clock := p.Clock()
	process, err := lab.Start(ctx, p.ficus, "copy", "--json", "-f", playbook)
	if err != nil {
		return Run{}, err
	}
	result, err := process.Line(ctx, map[string]any{"type": "result"})
	err = errors.Join(err, process.Wait())
	_, usage := clock.Stop()
	usage.Program = process.CPU()
	seconds, _ := result["copy_seconds"].(float64)
	if err == nil && seconds == 0 {
		err = errors.New("no copy_seconds in the result")
	}
	if err != nil {
		return Run{}, err
	}
	return measured(time.Duration(seconds*float64(time.Second)), usage, process.PeakRSS()), p.complete(ctx)
}

// pipePsql is psql writing into psql, binary.
type pipePsql struct {
	*copyGround
	option string // of the COPY that stores
}

func (p *pipePsql) about() Contender {
	if p.option == "" {
		return Contender{Name: "psql | psql", Settings: "COPY TO STDOUT (FORMAT binary) | COPY FROM STDIN (FORMAT binary)"}
	}
	return Contender{Name: "psql | psql, " + p.option, Settings: "the same with TRUNCATE before it in its transaction and " + p.option}
}

func (p *pipePsql) run(ctx context.Context, _ int) (Run, error) {
	if err := errors.Join(p.Target.Drop(ctx, p.target), p.Target.Create(ctx, p.target, ""), p.Target.Exec(ctx, p.target, pipeTable)); err != nil {
		return Run{}, err
	}
	from := []string{p.tools.psql, "-X", "-d", p.Source.URL(p.source), "-c", "COPY public.piped TO STDOUT (FORMAT binary)"}
	to := []string{p.tools.psql, "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", p.Target.URL(p.target)}
	if p.option == "" {
		to = append(to, "-c", "COPY public.piped FROM STDIN (FORMAT binary)")
	} else {
		to = append(to, "-c", "TRUNCATE public.piped", "-c", "COPY public.piped FROM STDIN (FORMAT binary, "+p.option+")")
	}
	clock := p.Clock()
	cpu, err := lab.Pipe(ctx, from, to)
	elapsed, usage := clock.Stop()
	if err != nil {
		return Run{}, err
	}
	usage.Program = cpu
	return measured(elapsed, usage, 0), p.complete(ctx)
}

func (p *pipePsql) discard(ctx context.Context, _ int) error { return p.Target.Drop(ctx, p.target) }
