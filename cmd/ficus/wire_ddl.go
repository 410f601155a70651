package main

import (
	"context"

	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/fence"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/ddl"
	"github.com/ficus-migrate/ficus/sync/snapshot"
)

// A followingLink is a link that follows DDL, as the workflow wants it (migrate.Link).
type followingLink struct {
	linkAdapter

	follower *ddl.Follower
}

// Run implements [migrate.Link].
func (l followingLink) Run(ctx context.Context) error { return l.follower.Run(ctx) }

// Settle implements [migrate.Settler].
func (l followingLink) Settle(ctx context.Context) error { return l.follower.Settle(ctx) }

// Unsettle implements [migrate.Settler].
func (l followingLink) Unsettle() { l.follower.Unsettle() }

// Known implements [migrate.Recopier].
func (l followingLink) Known(tables []string) ([]string, error) {
	known, err := l.follower.Known(tables)
	names := make([]string, len(known))
	for i, t := range known {
		names[i] = t.Display()
	}
	return names, err
}

// Wake implements [migrate.Recopier].
func (l followingLink) Wake() { l.follower.Wake() }

// choice is what the playbook says now.
func (e *engine) choice() ddl.Choice {
	c := e.job.choice()
	b := e.current().Playbook
	c.Rules = b.Rules()
	return c
}

// choice is what a playbook says of what moves, in the follower's terms.
func (j *job) choice() ddl.Choice {
	p := j.playbook
	return ddl.Choice{
		Filter: schema.Filter{Include: p.Select.Include, Exclude: p.Select.Exclude},
		Rules:  p.Rules(), InsertsOnly: p.Follow.NoReplicaIdentity,
	}
}

// wireFollower lets the forward link follow the source's DDL.
func (e *engine) wireFollower(ctx context.Context, cfg engineConfig) (err error) {
	j := e.job
	p := j.playbook
	e.follower, err = ddl.New(ctx, ddl.Config{
		Migration: p.Name, Origin: j.source, Destination: j.target, Link: e.forward,
		Opposite: e.remapReverse, Plans: forwardPlans{e, cfg.Store}, Host: ddlHost{e, migrate.Source}, Requests: requestsOf{e},
		Choice: e.choice, Safe: p.Follow.DDL == "safe", MakesTables: p.CopiesSchema(), Tools: j.tools, Dir: cfg.Dir,
		Workers: p.Copy.Workers, ChunkBytes: int64(p.Copy.Chunk), Progress: e.recopying, Log: cfg.Log,
	})
	return err
}

// recopying shows how far tables are that are copied anew.
func (e *engine) recopying(why string, t *snapshot.Table) {
	if t == nil {
		e.migration.Recopying(why, nil)
		return
	}
	p := tableProgress(*t)
	e.migration.Recopying(why, &p)
}

// requestsOf are what operators ask of a migration's link.
type requestsOf struct{ engine *engine }

// Asked implements [ddl.Requests].
func (r requestsOf) Asked() []ddl.Ask {
	var asks []ddl.Ask
	for _, a := range r.engine.migration.Asked() {
		ask := ddl.Ask{Number: a.Number, By: a.By}
		for _, name := range a.Tables {
			if t, err := schema.ParseName(name); err == nil { // the link said it so
				ask.Tables = append(ask.Tables, t)
			}
		}
		asks = append(asks, ask)
	}
	return asks
}

// Answered implements [ddl.Requests].
func (r requestsOf) Answered(number int64) { r.engine.migration.Answered(number) }

// remapReverse tells the reverse link what the forward link moves now.
func (e *engine) remapReverse(ctx context.Context) error {
	if e.reverse == nil {
		return nil
	}
	back := &e.current().Backward
	return e.reverse.Remap(ctx, back.Mappings, back.Full, back.InsertOnly)
}

// A ddlHost is the migration as the follower of one link sees it. origin is where the link begins.
type ddlHost struct {
	engine *engine
	origin migrate.Side
}

// Tell implements [ddl.Host].
func (h ddlHost) Tell(message string) { h.engine.migration.Tell(message) }

// Warn implements [ddl.Host].
func (h ddlHost) Warn(w ddl.Warning) {
	h.engine.migration.Notice(migrate.Finding{
		Severity: migrate.SeverityWarning, Check: w.Check, Object: w.Object, Message: w.Object + ": " + w.Message, Fix: w.Fix,
	})
}

// Unprove implements [ddl.Host].
func (h ddlHost) Unprove(why string) error {
	if err := h.engine.verifier.unprove(h.origin); err != nil {
		return err
	}
	h.engine.migration.Unprove(why)
	return nil
}

// Signal implements [ddl.Host].
func (h ddlHost) Signal(ctx context.Context, nonce string) error {
	return h.engine.sides[h.origin].Signal(ctx, nonce)
}

// Arm implements [ddl.Host].
func (h ddlHost) Arm(ctx context.Context) error {
	h.engine.scope()
	return h.engine.sides[h.origin.Other()].Arm(ctx)
}

// forwardPlans keeps what the forward link moves: the blueprint's.
type forwardPlans struct {
	engine *engine
	store  *eventstore.Store
}

// Current implements [ddl.Plans].
func (p forwardPlans) Current() *ddl.Plan { return &p.engine.current().Forward }

// Replace implements [ddl.Plans].
func (p forwardPlans) Replace(next *ddl.Plan) error {
	b := *p.engine.current()
	b.Forward = *next
	b.invert()
	return p.engine.replace(p.store, &b)
}

// Loses implements [ddl.Plans].
func (p forwardPlans) Loses(next *ddl.Plan) []string {
	if p.engine.reverse == nil {
		return nil
	}
	_, lossy := next.Inverse(p.engine.job.playbook.Follow.NoReplicaIdentity)
	return lossy
}

// current returns the blueprint as it is now: following DDL replaces it.
func (e *engine) current() *blueprint {
	e.planned.Lock()
	defer e.planned.Unlock()
	return e.job.plan
}

// replace makes another blueprint the migration's, durably.
func (e *engine) replace(store *eventstore.Store, next *blueprint) error {
	e.planned.Lock()
	defer e.planned.Unlock()
	was := e.job.plan
	e.job.plan = next
	if err := e.job.keep(store); err != nil {
		e.job.plan = was
		return err
	}
	return nil
}

// scope tells the fences which tables and sequences move now.
func (e *engine) scope() {
	plan := e.current()
	source, target := plan.Forward.Moved()
	sequences, serials := plan.sequences()
	e.sides[migrate.Source].SetScope(fence.Scope{Tables: source, Sequences: sequences})
	e.sides[migrate.Target].SetScope(fence.Scope{Tables: target, Sequences: sequences, Serials: serials})
}
