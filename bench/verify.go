package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/bench/lab"
)

// verify compares two databases that hold the same, row by row. Before the rounds one row is made
// different, and every contender has to notice.
type verify struct{}

func (verify) name() string { return "verify" }

func (verify) run(ctx context.Context, b *bench) (_ []*Result, err error) {
	v := &verifyGround{bench: b, source: "verify_source", target: "verify_target"}
	defer func() { err = errors.Join(err, v.clear(context.WithoutCancel(ctx))) }()
	if err := v.fill(ctx); err != nil {
		return nil, err
	}
	all := []*verifier{
		{v, Contender{Name: ficusName, Settings: "ficus verify --source --target, defaults"}, v.ficusVerify},
		v.pgcopydb(ctx),
		{v, Contender{Name: "query of pgcopydb", Settings: "the query that pgcopydb compare data is documented to run, on both sides at once, table by table"}, v.query},
	}
	if err := v.noticed(ctx, all); err != nil {
		return nil, err
	}
	r := &Result{Scenario: "verify", Title: "Exact comparison of two databases", Work: []string{
		fmt.Sprintf("pgbench at scale %d, %s rows, equal on both sides. Before that, one changed row was noticed by each.", b.size.verifyScale, thousands(b.size.verifyScale*100_000)),
	}}
	contenders := make([]contender, len(all))
	for i, c := range all {
		contenders[i] = c
	}
	if r.Contenders, err = b.compete(ctx, "verify", contenders, nil); err != nil {
		return nil, err
	}
	r.compare(1.5)
	return []*Result{r}, nil
}

// A verifyGround is two databases with the same rows.
type verifyGround struct {
	*bench
	source, target string
}

func (v *verifyGround) fill(ctx context.Context) error {
	err := errors.Join(v.clear(ctx), v.Source.Create(ctx, v.source, ""), v.Target.Create(ctx, v.target, ""))
	if err != nil {
		return err
	}
	if err := v.pgbenchInit(ctx, v.Source, v.source, v.size.verifyScale); err != nil {
		return err
	}
	if _, err := lab.Pipe(ctx, []string{v.tools.pgDump, v.Source.URL(v.source)}, v.tools.psqlInto(v.Target.URL(v.target))); err != nil {
		return err
	}
	return errors.Join(v.Source.Exec(ctx, v.source, "VACUUM ANALYZE"), v.Target.Exec(ctx, v.target, "VACUUM ANALYZE"))
}

func (v *verifyGround) clear(ctx context.Context) error {
	return errors.Join(v.Source.Drop(ctx, v.source), v.Target.Drop(ctx, v.target))
}

// noticed makes one row different, and everybody has to tell. A peer that does not is left out, with
// the reason.
func (v *verifyGround) noticed(ctx context.Context, all []*verifier) error {
	change := func(by int) error {
		return v.Target.Exec(ctx, v.target, fmt.Sprintf("UPDATE public.pgbench_accounts SET abalance = abalance + %d WHERE aid = 4711", by))
	}
	if err := change(1); err != nil {
		return err
	}
	for _, c := range all {
		if c.what.Missing != "" {
			continue
		}
		switch _, err := c.run(ctx, 0); {
		case errors.Is(err, errDifferent):
		case c.what.Name == ficusName:
			return fmt.Errorf("ficus did not notice a changed row: %w", err)
		default:
			c.what.Missing = fmt.Sprintf("did not notice a changed row (%v)", err)
		}
	}
	return errors.Join(change(-1), v.Target.Exec(ctx, v.target, "VACUUM public.pgbench_accounts"))
}

// errDifferent says that a comparison found a difference.
var errDifferent = errors.New("the databases differ")

// A verifier is one way to compare. Its error is errDifferent when they differ.
type verifier struct {
	*verifyGround
	what    Contender
	compare func(ctx context.Context) (copied, error)
}

func (v *verifier) about() Contender { return v.what }

func (v *verifier) run(ctx context.Context, _ int) (Run, error) {
	clock := v.Clock()
	done, err := v.compare(ctx)
	elapsed, usage := clock.Stop()
	usage.Program = done.cpu
	if done.after != nil {
		err = errors.Join(err, done.after(ctx))
	}
	return measured(elapsed, usage, done.peak), err
}

func (v *verifier) discard(context.Context, int) error { return nil }

func (v *verifyGround) ficusVerify(ctx context.Context) (copied, error) {
	p, err := lab.Start(ctx, v.ficus, "verify", "--json", "--source", v.Source.URL(v.source), "--target", v.Target.URL(v.target))
	if err != nil {
		return copied{}, err
	}
	result, err := p.Line(ctx, map[string]any{"type": "result"})
	ended := p.Wait() // exit status 1 says that they differ
	done := copied{cpu: p.CPU(), peak: p.PeakRSS()}
	differences, ok := result["differences"].(float64)
	switch rows := result["rows"]; {
	case err != nil:
		return done, err
	case !ok:
		return done, errors.Join(errors.New("no differences in the result"), ended)
	case differences > 0:
		return done, errDifferent
	case rows != float64(v.rows()):
		return done, fmt.Errorf("compared %v rows, there are %d", rows, v.rows())
	}
	return done, ended
}

// rows is how many pgbench makes: accounts, tellers, branches.
func (v *verifyGround) rows() int { return v.size.verifyScale * (100_000 + 10 + 1) }

// pgcopydb is "pgcopydb compare data" where the installed one has it.
func (v *verifyGround) pgcopydb(ctx context.Context) *verifier {
	c := &verifier{v, Contender{Name: "pgcopydb", Settings: "pgcopydb compare data"}, v.pgcopydbCompare}
	if v.tools.pgcopydb == "" {
		c.what.Missing = "pgcopydb is not installed"
	} else if _, _, err := lab.Run(ctx, v.tools.pgcopydb, "compare", "data", "--help"); err != nil {
		c.what.Missing = "the installed pgcopydb has no compare"
	}
	return c
}

func (v *verifyGround) pgcopydbCompare(ctx context.Context) (copied, error) {
	dir, err := v.Scratch()
	if err != nil {
		return copied{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // the lab's folder goes in the end
	said, cpu, err := lab.Run(ctx, v.tools.pgcopydb, "compare", "data", "--json",
		"--dir", filepath.Join(dir, "compare"), "--source", v.Source.URL(v.source), "--target", v.Target.URL(v.target))
	var tables []map[string]json.RawMessage
	if err == nil {
		err = json.Unmarshal([]byte(said), &tables)
	}
	for _, t := range tables {
		if !bytes.Equal(t["source"], t["target"]) {
			err = errDifferent
		}
	}
	return copied{cpu: cpu}, err
}

// query runs what pgcopydb documents, over two sessions.
func (v *verifyGround) query(ctx context.Context) (copied, error) {
	for _, table := range []string{"pgbench_accounts", "pgbench_branches", "pgbench_history", "pgbench_tellers"} {
		sql := "SELECT count(1) || ' ' || coalesce(md5(format('%s-%s', sum(hashtext(t::text)::bigint), count(1)))::uuid::text, '') FROM ONLY public." + table + " t"
		var source, target string
		g, gctx := errgroup.WithContext(ctx)
		g.Go(func() (err error) { source, err = v.Source.Text(gctx, v.source, sql); return err })
		g.Go(func() (err error) { target, err = v.Target.Text(gctx, v.target, sql); return err })
		if err := g.Wait(); err != nil {
			return copied{}, err
		}
		if source != target {
			return copied{}, errDifferent
		}
	}
	return copied{}, nil
}
