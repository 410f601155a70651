package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/gateway"
	"github.com/ficus-migrate/ficus/gateway/control"
	"github.com/ficus-migrate/ficus/gateway/httpdoor"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/fence"
	"github.com/ficus-migrate/ficus/migrate/hooks"
	"github.com/ficus-migrate/ficus/sync/apply"
	"github.com/ficus-migrate/ficus/sync/ddl"
	"github.com/ficus-migrate/ficus/sync/link"
	"github.com/ficus-migrate/ficus/sync/snapshot"
	"github.com/ficus-migrate/ficus/sync/source"
)

// This file is the only place that knows every part: it makes a migration's engines and hands them
// to the workflow through the interfaces that package migrate declares.

// An engine is one migration with everything that it drives.
type engine struct {
	job       *job
	migration *migrate.Migration
	gateway   *gateway.Gateway // nil without one
	door      *httpdoor.Door   // nil without one
	fleet     *fleet           // gateways that are processes of their own, nil without
	forward   *link.Link
	reverse   *link.Link // nil when the rules are lossy
	follower  *ddl.Follower
	sides     map[migrate.Side]*fence.Database
	verifier  *verifier
	hooks     *hooks.Runner

	planned sync.Mutex // guards job.plan once the migration runs
}

// engineConfig is what an engine needs besides its job.
type engineConfig struct {
	Store   *eventstore.Store
	Dir     string // of the store; the schema dump of a running load lies there
	Yes     bool   // every manual gate counts as approved
	Log     *slog.Logger
	Events  func(migrate.Event)
	Journal *eventstore.Bucket
}

// openStore opens the data directory for this process alone.
func (a *app) openStore(log *slog.Logger) (*eventstore.Store, error) {
	if err := os.MkdirAll(dumpDir(a.dataDir), 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	return eventstore.Open(eventstore.Config{Dir: filepath.Join(a.dataDir, "store"), Log: log, Fatal: a.fatal})
}

// newEngine reads the source (or recalls what an earlier run read) and wires the parts. It changes
// nothing in the databases.
func newEngine(ctx context.Context, j *job, cfg engineConfig) (*engine, error) {
	known, err := j.recall(cfg.Store)
	if err != nil {
		return nil, err
	}
	if known {
		if err := j.recognise(ctx); err != nil {
			return nil, err
		}
	} else if err := j.read(ctx); err != nil { // kept once the check has passed: until then all may be mended
		return nil, err
	}

	e := &engine{job: j, sides: map[migrate.Side]*fence.Database{}}
	if err := e.wireDatabases(ctx); err != nil {
		return nil, err
	}
	if err := e.wireLinks(ctx, cfg); err != nil {
		e.Close()
		return nil, err
	}
	if err := e.wireFollower(ctx, cfg); err != nil {
		e.Close()
		return nil, err
	}
	if err := e.wireGateway(ctx, cfg); err != nil {
		e.Close()
		return nil, err
	}
	if err := e.wireDoor(ctx, cfg); err != nil {
		e.Close()
		return nil, err
	}
	e.verifier = newVerifier(e, cfg)
	if err := e.wireMigration(cfg); err != nil {
		e.Close()
		return nil, err
	}
	if j.amended {
		e.migration.Tell(amendedText(j.plan, ""))
	}
	return e, nil
}

func (e *engine) wireDatabases(ctx context.Context) error {
	source, target := e.job.plan.Forward.Moved()
	sequences, serials := e.job.plan.sequences()
	for side, c := range map[migrate.Side]fence.Config{
		migrate.Source: {DSN: e.job.source, Tables: source},
		migrate.Target: {DSN: e.job.target, Tables: target, Serials: serials},
	} {
		c.Self, c.Sequences = side, sequences
		c.Blockers, c.BlockersAfter = fence.BlockerAnswer(e.job.playbook.Promote.Blockers), time.Duration(e.job.playbook.Promote.BlockersAfter)
		db, err := fence.New(ctx, c)
		if err != nil {
			e.Close()
			return err
		}
		e.sides[side] = db
	}
	return nil
}

func (e *engine) wireLinks(ctx context.Context, cfg engineConfig) error {
	plan := e.job.plan
	common := e.linkConfig(cfg)
	var err error
	e.forward, err = link.New(ctx, common(link.Config{
		Name: e.job.linkName(migrate.Source), From: e.job.source, To: e.job.target, Mappings: plan.Forward.Mappings,
		Full: plan.Forward.Full, InsertOnly: plan.Forward.InsertOnly, OnConflict: e.job.onConflict(),
		Guard: e.sides[migrate.Target].Guard, EnlistFrom: e.sides[migrate.Source].Enlist, EnlistTo: e.sides[migrate.Target].Enlist,
		Log: cfg.Log.With(slog.String("link", "forward")),
	}))
	if err != nil || len(plan.Lossy) > 0 {
		return err
	}
	e.reverse, err = link.New(ctx, common(link.Config{
		Name: e.job.linkName(migrate.Target), From: e.job.target, To: e.job.source, Mappings: plan.Backward.Mappings,
		Full: plan.Backward.Full, InsertOnly: plan.Backward.InsertOnly, OnConflict: e.job.onConflict(),
		Guard: e.sides[migrate.Source].Guard, EnlistFrom: e.sides[migrate.Target].Enlist, EnlistTo: e.sides[migrate.Source].Enlist,
		Log: cfg.Log.With(slog.String("link", "reverse")),
	}))
	return err
}

// linkConfig returns what fills in what both links have in common.
func (e *engine) linkConfig(cfg engineConfig) func(link.Config) link.Config {
	f := e.job.playbook.Follow
	return func(c link.Config) link.Config {
		c.Store, c.Touch, c.Workers = cfg.Store, true, f.Workers
		c.Failover, c.MaxSourceWAL = f.FailoverSlot, int64(f.MaxSourceWAL)
		if f.Ack == "applied" {
			c.Ack = source.AckApplied
		}
		switch f.OnMaxSourceWAL {
		case "pause-copy":
			c.OnMaxSourceWAL = link.WALPauseCopy
		case "drop-slot":
			c.OnMaxSourceWAL = link.WALDropSlot
		}
		c.Pace = func(ctx context.Context) error { return e.migration.Pace(ctx) }
		c.Alarm = func(warning string) { e.migration.Alarm(warning) }
		return c
	}
}

// warnings are what an operator should know of both links.
func (e *engine) warnings() []string {
	var all []string
	for _, l := range []*link.Link{e.forward, e.reverse} {
		if l != nil {
			all = append(all, l.Warnings()...)
		}
	}
	return append(all, e.follower.Warnings()...)
}

// onConflict is the playbook's choice in the link's terms.
func (j *job) onConflict() apply.OnConflict {
	if j.playbook.Follow.OnConflict == apply.SourceWins.String() {
		return apply.SourceWins
	}
	return apply.Stop
}

// linkName names the link that leaves a side, and everything it makes.
func (j *job) linkName(from migrate.Side) string { return linkName(j.playbook.Name, from) }

func linkName(migration string, from migrate.Side) string {
	direction := "forward"
	if from == migrate.Target {
		direction = "reverse"
	}
	return "ficus_" + slotName(migration) + "_" + direction
}

// slotName makes a migration's name fit for a replication slot, which knows no hyphen.
func slotName(name string) string {
	b := []byte(name)
	for i := range b {
		if b[i] == '-' {
			b[i] = '_'
		}
	}
	return string(b)
}

func (e *engine) wireGateway(ctx context.Context, cfg engineConfig) error {
	r := e.job.playbook.Router
	if r.Type != "gateway" || len(r.Control) > 0 {
		return nil
	}
	owner, epoch, err := e.owner(ctx)
	if err != nil {
		return err
	}
	readListen := r.ReadListen
	if readListen == "" {
		if readListen, err = nextPort(r.Listen); err != nil {
			return &statusError{exitUsage, err}
		}
	}
	e.gateway, err = gateway.New(gateway.Config{
		Listen: r.Listen, ReadListen: readListen, Users: r.Users, AuthQuery: r.AuthQuery, TLS: gateway.TLS(r.TLS),
		Reads: e.reads(), Shadow: e.shadow(),
		Backends: map[gateway.Backend]pg.DSN{
			gateway.Backend(migrate.Source): e.job.source, gateway.Backend(migrate.Target): e.job.target,
		},
		Owner: gateway.Backend(owner), Epoch: epoch, Log: cfg.Log.With(slog.String("part", "gateway")),
	})
	return err
}

// owner asks both databases who owns the data. Before a migration is installed it is the source.
// One database is enough when it says that it owns.
func (e *engine) owner(ctx context.Context) (migrate.Side, int64, error) {
	best := migrate.Ownership{Owner: migrate.Source}
	var failed error
	for _, side := range []migrate.Side{migrate.Target, migrate.Source} {
		o, err := e.sides[side].Ownership(ctx)
		if err != nil {
			failed = errors.Join(failed, err)
		} else if o.Epoch > best.Epoch {
			best = o
		}
	}
	if failed != nil && best.Epoch == 0 {
		return "", 0, failed
	}
	return best.Owner, best.Epoch, nil
}

// cleaned reports whether somebody removed everything of Ficus from both databases (ficus cleanup) in the
// middle of the migration.
func (e *engine) cleaned(ctx context.Context) bool {
	switch p := e.migration.Status().Phase; {
	case p.Final(), p == migrate.Pending, p == migrate.Preparing, e.migration.Ending():
		return false
	}
	for _, db := range e.sides {
		if o, err := db.Ownership(ctx); err != nil || o.Epoch > 0 {
			return false
		}
	}
	return true
}

// nextPort returns the address one port above addr; a free port stays one.
func nextPort(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("gateway address %q: %w", addr, err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return "", fmt.Errorf("gateway address %q: port: %w", addr, err)
	}
	if n > 0 {
		n++
	}
	return net.JoinHostPort(host, strconv.Itoa(n)), nil
}

func (e *engine) wireMigration(cfg engineConfig) error {
	j := e.job
	forward := followingLink{linkAdapter{e.forward}, e.follower}
	c := migrate.Config{
		Name: j.playbook.Name, Playbook: j.recipe, SourceDSN: j.source.String(), TargetDSN: j.target.String(),
		Source: e.sides[migrate.Source], Target: e.sides[migrate.Target],
		Forward: forward, Lossy: j.plan.Lossy, Loses: func() []string { return e.current().Lossy },
		Loader: &loader{job: j, link: e.forward, dir: cfg.Dir, log: cfg.Log, engine: e, follower: forward.follower}, Verifier: e.verifier,
		Preflight: func(ctx context.Context) ([]migrate.Finding, error) { return e.preflight(ctx, cfg.Store) },
		Journal:   cfg.Journal, Settings: j.settings(cfg.Yes), Warnings: e.warnings,
		Retryable: retryable, Events: cfg.Events, Log: cfg.Log,
	}
	c.Brakes = j.brakes()
	var err error
	if c.Gates, err = j.gates(cfg.Dir); err != nil {
		return err
	}
	if e.hooks, err = j.hooks(cfg.Log); err != nil {
		return err
	}
	c.Before = e.hooks.Before
	if e.reverse != nil {
		c.Reverse = linkAdapter{e.reverse}
	}
	switch {
	case e.gateway != nil:
		c.Router = routerAdapter{e.gateway}
	case e.door != nil:
		c.Router = doorAdapter{e.door}
	default:
		if c.Router, err = j.router(cfg.Log.With(slog.String("part", "router"))); err != nil {
			return err
		}
	}
	e.fleet, _ = c.Router.(*fleet)
	e.migration, err = migrate.New(c)
	return err
}

// retryable reports whether a step may succeed later by itself. A comparison that DDL interrupts is
// begun again; where the link cannot follow the DDL, its own end ends the step. A copy whose snapshot
// went with a connection goes on under another one. A gateway of its own that is away is started again by somebody.
func retryable(err error) bool {
	return interruptedByDDL(err) || errors.Is(err, control.ErrGone) || errors.Is(err, snapshot.ErrSnapshotGone) || errors.Is(err, snapshot.ErrMoved) || pg.Retryable(err)
}

// preflight checks, and keeps the blueprint when nothing stands against the migration: what it moves
// is settled from then on.
func (e *engine) preflight(ctx context.Context, store *eventstore.Store) ([]migrate.Finding, error) {
	findings, err := e.job.check(ctx)
	if err != nil || refusal(findings) != nil {
		return findings, err
	}
	return findings, e.job.keep(store)
}

// settings turns the playbook's choices into the workflow's.
func (j *job) settings(yes bool) migrate.Settings {
	p := j.playbook
	s := migrate.Settings{
		AutoApprove: yes || !*p.Gates.Approval,
		Rehearse:    j.rehearse,
		Until:       migrate.Phase(p.Until),
		ReadSteps:   p.Promote.Reads,
		ReadWatch:   time.Duration(p.Promote.ReadsWatch),
		LagBytes:    int64(p.Gates.MaxLag),
		LagTime:     time.Duration(p.Gates.MaxLagTime),
		LagSamples:  max(1, int(time.Duration(p.Gates.LagWindow)/time.Second)), // one a second
		Approval:    migrate.Approval{Need: p.Gates.Approvals.Need, Of: p.Gates.Approvals.Of, Valid: time.Duration(p.Gates.Approvals.Valid)},
		ProofAge:    time.Duration(p.Gates.ProofAge),
		Headroom:    p.Promote.Headroom,
		Sequences:   cmp.Or(time.Duration(*p.Follow.Sequences), -1),

		RollbackWindow: time.Duration(p.RollbackWindow), OldData: migrate.OldData(p.Complete.OldData),
		Budgets: migrate.Budgets{
			Hold: time.Duration(p.Promote.HoldBudget), Writers: time.Duration(p.Promote.FenceBudget),
			Drain: time.Duration(p.Promote.DrainBudget), Proof: time.Duration(p.Promote.ProofBudget),
		},
	}
	if !j.leadsReads() {
		s.ReadSteps = nil
	}
	return s
}

// Run drives the migration, with the gateway beside it, until it is over or ctx is done. A failure
// ends it only while nobody depends on it: the front door of a database that is in use stays open,
// and the migration waits for "resume"; with stays, that of any does. failed is told of such a failure.
func (e *engine) Run(ctx context.Context, stays bool, failed func(error)) error {
	defer e.watchHooks(ctx)()
	if e.job.playbook.Follow.Verify == "live" {
		live, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { // ends before Run does
			defer close(done)
			_ = e.verifier.watch(live) // it says itself what went wrong, and ends with live
		}()
		defer func() {
			stop()
			<-done
		}()
	}
	door := e.front()
	if door == nil {
		return e.migration.Run(ctx)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := door.Run(ctx); ctx.Err() == nil || !errors.Is(err, context.Cause(ctx)) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		select {
		case <-door.Listening():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		for {
			err := e.migration.Run(ctx)
			switch {
			case err == nil:
				return errOver
			case ctx.Err() != nil || !stays && !e.inUse():
				return err
			}
			failed(err)
			if !resumed(ctx, e.migration) {
				return context.Cause(ctx)
			}
		}
	})
	if err := g.Wait(); !errors.Is(err, errOver) {
		return err
	}
	return nil
}

// inUse reports whether clients depend on the front door: some are connected, or have sent it something, or
// ownership has moved and they cannot go back to where they were.
func (e *engine) inUse() bool {
	if e.door != nil && e.door.Used() {
		return true
	}
	return e.gateway != nil && e.gateway.Stats().Clients > 0 || len(e.migration.Status().Promotions) > 0
}

// errOver ends the gateway of a migration that is completed or cancelled.
var errOver = errors.New("migration is over")

// Close ends every session that the engine holds.
func (e *engine) Close() {
	if e.verifier != nil {
		e.verifier.Close()
	}
	if e.follower != nil {
		e.follower.Close()
	}
	if e.fleet != nil {
		e.fleet.Close()
	}
	for _, l := range []*link.Link{e.forward, e.reverse} {
		if l != nil {
			l.Close()
		}
	}
	for _, db := range e.sides {
		db.Close()
	}
}

// A linkAdapter is sync/link as the workflow wants it.
type linkAdapter struct{ *link.Link }

// Lag implements [migrate.Link].
func (a linkAdapter) Lag(ctx context.Context) (migrate.Lag, error) {
	l, err := a.Link.Lag(ctx)
	return migrate.Lag(l), err
}

// A routerAdapter is the gateway as the workflow wants it.
type routerAdapter struct{ g *gateway.Gateway }

func (r routerAdapter) Reads(ctx context.Context, percent int) error { return r.g.Reads(ctx, percent) }

func (r routerAdapter) Expect(ctx context.Context, owner migrate.Side) error {
	return r.g.Expect(ctx, gateway.Backend(owner))
}

func (r routerAdapter) Hold(ctx context.Context, epoch int64) error { return r.g.Hold(ctx, epoch) }

func (r routerAdapter) Release(ctx context.Context, owner migrate.Side, epoch int64) error {
	return r.g.Release(ctx, gateway.Backend(owner), epoch)
}

func (r routerAdapter) Stalls() migrate.StallStats { return migrate.StallStats(r.g.Stalls()) }
