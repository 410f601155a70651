package main

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/gates"
	"github.com/ficus-migrate/ficus/migrate/hooks"
)

// gates makes the conditions that the playbook asks for beside the engine's own.
func (j *job) gates(dir string) ([]migrate.Gate, error) {
	g := j.playbook.Gates
	servers := gates.Servers{migrate.Source: j.source, migrate.Target: j.target}
	var all []migrate.Gate
	if g.Window.Cron != "" {
		w, err := gates.Window(migrate.Promoting, g.Window.Cron, time.Duration(g.Window.For))
		if err != nil {
			return nil, &statusError{exitUsage, hint.Wrap(err, "gates.window.cron has five fields: minute hour day month weekday")}
		}
		all = append(all, w)
	}
	if g.MaxTransactionAge > 0 {
		all = append(all, gates.Transactions(migrate.Promoting, servers, time.Duration(g.MaxTransactionAge)))
	}
	if g.MinWALRoom > 0 {
		all = append(all, gates.WALRoom(migrate.Promoting, servers, int64(g.MinWALRoom)))
	}
	if g.MinDisk > 0 {
		all = append(all, gates.Disk(migrate.Promoting, dir, int64(g.MinDisk)))
	}
	if g.Shadow.Min > 0 {
		all = append(all, gates.Shadow(migrate.Promoting, g.Shadow.Min, g.Shadow.MaxMismatches))
	}
	for _, c := range g.Checks {
		check := gates.Check{
			Name: c.Name, Before: migrate.Phase(cmp.Or(c.Before, string(migrate.Promoting))), Timeout: time.Duration(c.Timeout),
			SQL: c.SQL, DSN: map[string]pg.DSN{"": j.source, "source": j.source, "target": j.target}[c.On], HTTP: c.HTTP, Command: c.Command,
		}
		gate, err := gates.New(check)
		if err != nil {
			return nil, &statusError{exitUsage, err}
		}
		all = append(all, gate)
	}
	return all, nil
}

// brakes makes what lets copy and link stand back.
func (j *job) brakes() []migrate.Brake {
	t := j.playbook.Slow
	servers := gates.Servers{migrate.Source: j.source, migrate.Target: j.target}
	var all []migrate.Brake
	if t.ReplicaLag > 0 {
		all = append(all, gates.Replicas(servers, time.Duration(t.ReplicaLag)))
	}
	if t.MaxActive > 0 {
		all = append(all, gates.Load(servers, t.MaxActive))
	}
	for _, q := range t.Queries {
		all = append(all, gates.Query(q.Name, servers[migrate.Side(cmp.Or(q.On, string(migrate.Source)))], q.SQL))
	}
	return all
}

// hooks makes the runner of the playbook's hooks and notices.
func (j *job) hooks(log *slog.Logger) (*hooks.Runner, error) {
	c := hooks.Config{Log: log}
	for _, h := range j.playbook.Hooks {
		c.Hooks = append(c.Hooks, hooks.Hook{
			Name: h.Name, Before: migrate.Phase(h.Before), After: migrate.Phase(h.After), Command: h.Command, URL: h.HTTP, Timeout: time.Duration(h.Timeout),
		})
	}
	for _, n := range j.playbook.Notify {
		c.Notices = append(c.Notices, hooks.Notice{URL: cmp.Or(n.Slack, n.HTTP), Slack: n.Slack != "", On: n.On})
	}
	r, err := hooks.New(c)
	if err != nil {
		return nil, &statusError{exitUsage, err}
	}
	return r, nil
}

// watchHooks tells of what happens to a migration until the returned function is called, which waits a little
// for the last of it to be told.
func (e *engine) watchHooks(ctx context.Context) (stop func()) {
	const patience = 5 * time.Second
	watch, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	began := e.migration.Status()
	go func() {
		defer close(done)
		e.hooks.Watch(watch, e.migration, began)
	}()
	return func() {
		last := e.migration.Status().Seq
		limit, stopWaiting := context.WithTimeout(watch, patience)
		defer stopWaiting()
		e.hooks.Told(limit, last)
		cancel()
		<-done
	}
}
