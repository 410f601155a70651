package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/bench/lab"
)

// dumpJobs is how many tables pg_dump -j and pg_restore -j move at a time.
const dumpJobs = 2

// peers returns the other ways to copy. Of pgcopydb's settings it takes those that were fastest in
// one run each, and says in r which were tried.
func (g *copyGround) peers(ctx context.Context, r *Result) ([]contender, error) {
	peers := []contender{
		&copier{g, Contender{Name: "pg_dump | psql", Settings: "defaults"}, g.dumpPipe},
		&copier{g, Contender{Name: "pg_dump -j", Settings: fmt.Sprintf("pg_dump -Fd -Z0 -j%d, then pg_restore -j%[1]d", dumpJobs)}, g.dumpRestore},
	}
	if g.tools.pgcopydb == "" {
		missing := &copier{copyGround: g, what: Contender{Name: "pgcopydb", Missing: "pgcopydb is not installed"}}
		return append(peers, missing), nil
	}
	var best *copier
	var fastest time.Duration
	var tried []string
	for _, s := range pgcopydbSettings() {
		c := &copier{g, Contender{Name: "pgcopydb", Settings: "pgcopydb clone " + s.String()}, func(ctx context.Context) (copied, error) { return g.pgcopydb(ctx, s) }}
		if err := g.Checkpoint(ctx); err != nil {
			return nil, err
		}
		run, err := c.run(ctx, 0)
		if err != nil {
			return nil, fmt.Errorf("pgcopydb clone %s: %w", s, err)
		}
		took := time.Duration(run.Metrics[0].Value * float64(time.Second))
		tried = append(tried, fmt.Sprintf("%s: %s", s, run.Metrics[0]))
		if best == nil || took < fastest {
			best, fastest = c, took
		}
		g.say(ctx, "try pgcopydb %s: %s", s, run.Metrics[0])
	}
	r.Work = append(r.Work, "Settings tried for pgcopydb, once each: "+strings.Join(tried, "; ")+".")
	return append(peers, best), nil
}

// pgcopydbSetting is one choice of settings.
type pgcopydbSetting struct {
	tableJobs, indexJobs int
	split                string // tables larger than this are copied in parts; "" for none
}

func pgcopydbSettings() []pgcopydbSetting {
	return []pgcopydbSetting{{2, 2, ""}, {4, 4, ""}, {2, 2, "200MB"}, {4, 4, "200MB"}}
}

// String returns it as on the command line.
func (s pgcopydbSetting) String() string { return strings.Join(s.args(), " ") }

func (s pgcopydbSetting) args() []string {
	args := []string{"--table-jobs", strconv.Itoa(s.tableJobs), "--index-jobs", strconv.Itoa(s.indexJobs)}
	if s.split != "" {
		args = append(args, "--split-tables-larger-than", s.split)
	}
	return args
}

func (g *copyGround) pgcopydb(ctx context.Context, s pgcopydbSetting) (copied, error) {
	dir, err := g.Scratch()
	if err != nil {
		return copied{}, err
	}
	args := append([]string{
		"clone", "--source", g.Source.URL(g.source), "--target", g.Target.URL(g.target),
		"--dir", filepath.Join(dir, "pgcopydb"), "--no-owner", "--no-acl", "--skip-large-objects", "--skip-extensions",
	}, s.args()...)
	_, cpu, err := lab.Run(ctx, g.tools.pgcopydb, args...)
	return copied{cpu: cpu, after: func(context.Context) error { return os.RemoveAll(dir) }}, err
}

func (g *copyGround) dumpPipe(ctx context.Context) (copied, error) {
	cpu, err := lab.Pipe(ctx, []string{g.tools.pgDump, g.Source.URL(g.source)}, g.tools.psqlInto(g.Target.URL(g.target)))
	return copied{cpu: cpu}, err
}

// dumpRestore goes over files, because that is what pg_dump and pg_restore need to work in parallel.
func (g *copyGround) dumpRestore(ctx context.Context) (copied, error) {
	dir, err := g.Scratch()
	if err != nil {
		return copied{}, err
	}
	jobs, dump := "-j"+strconv.Itoa(dumpJobs), filepath.Join(dir, "dump")
	_, out, err := lab.Run(ctx, g.tools.pgDump, "-Fd", "-Z0", jobs, "-f", dump, g.Source.URL(g.source))
	if err != nil {
		return copied{}, errors.Join(err, os.RemoveAll(dir))
	}
	_, in, err := lab.Run(ctx, g.tools.pgRestore, jobs, "-d", g.Target.URL(g.target), dump)
	return copied{cpu: out + in, after: func(context.Context) error { return os.RemoveAll(dir) }}, err
}
