package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/hooks"
	"github.com/ficus-migrate/ficus/migrate/router"
	"github.com/ficus-migrate/ficus/playbooks"
)

// guarantees says what the playbook's router promises.
func (j *job) guarantees() []migrate.Guarantee {
	r := j.playbook.Router
	return router.Guarantees(router.Kind(r.Type), router.Options{
		Bouncers: len(r.PgBouncers), Reads: j.leadsReads(), HoldsHook: r.Hooks.Hold != nil,
	})
}

// leadsReads reports whether the router can lead reads elsewhere than to the owner.
func (j *job) leadsReads() bool {
	r := j.playbook.Router
	switch router.Kind(r.Type) {
	case router.KindGateway, router.KindHTTP:
		return true
	case router.KindPgBouncer:
		for _, b := range r.PgBouncers {
			if b.Reads != "" {
				return true
			}
		}
	case router.KindHooks:
		return r.Hooks.Reads != nil
	case router.KindNone:
	}
	return false
}

// router makes what leads clients besides the gateway. It connects to nothing.
func (j *job) router(log *slog.Logger) (migrate.Router, error) {
	r := j.playbook.Router
	places := map[migrate.Side]pg.DSN{migrate.Source: j.source, migrate.Target: j.target}
	switch router.Kind(r.Type) {
	case router.KindGateway:
		return newFleet(r.Control, r.Database, log), nil
	case router.KindHTTP: // wireDoor makes it
	case router.KindPgBouncer:
		return j.pgbouncer(log)
	case router.KindHooks:
		h := r.Hooks
		return router.NewHooks(router.HooksConfig{
			Migration: j.playbook.Name, Hold: action(h.Hold), Release: action(h.Release), Reads: action(h.Reads), Places: places,
		})
	case router.KindNone:
		return &router.Manual{Places: places}, nil
	}
	return nil, fmt.Errorf("router %q is not known", r.Type)
}

func (j *job) pgbouncer(log *slog.Logger) (*router.PgBouncer, error) {
	cfg := router.PgBouncerConfig{
		Places: map[migrate.Side]pg.DSN{migrate.Source: j.source, migrate.Target: j.target},
		Log:    log,
	}
	for _, b := range j.playbook.Router.PgBouncers {
		admin, err := pg.Parse(b.Admin)
		if err != nil {
			return nil, &statusError{exitUsage, fmt.Errorf("router.pgbouncers: admin: %w", err)}
		}
		cfg.Bouncers = append(cfg.Bouncers, router.Bouncer{Admin: admin, Database: b.Database, Reads: b.Reads, File: b.File, Command: b.Command})
	}
	return router.NewPgBouncer(cfg)
}

// action is a playbook's hook in the terms of what calls it.
func action(h *playbooks.RouterHook) *hooks.Action {
	if h == nil {
		return nil
	}
	return &hooks.Action{Command: h.Command, URL: h.HTTP, Timeout: time.Duration(h.Timeout)}
}

// checkRouter looks for what would go wrong at a switch.
func (j *job) checkRouter(ctx context.Context) ([]migrate.Finding, error) {
	kind := router.Kind(j.playbook.Router.Type)
	if kind == router.KindHTTP {
		return j.checkDoor(ctx), nil
	}
	if j.copyOnly || j.playbook.Until == string(migrate.Following) || kind != router.KindPgBouncer {
		return nil, nil
	}
	r, err := j.pgbouncer(nil)
	if err != nil {
		return nil, err
	}
	return r.Check(ctx, migrate.Stall(j.settings(false))), nil
}
