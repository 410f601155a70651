package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/ficus-migrate/ficus/buffer"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/gateway/httpdoor"
	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/playbooks"
)

// commandsName names the bucket with a migration's commands. It outlives the migration: what a data server
// has not answered is there for the next one of that name.
func commandsName(migration string) string { return "commands/" + migration }

// wireDoor makes the HTTP door of router.type http. The databases say who owns, as they do to the gateway.
func (e *engine) wireDoor(ctx context.Context, cfg engineConfig) error {
	h := e.job.playbook.Router.HTTP
	if h == nil {
		return nil
	}
	owner, epoch, err := e.owner(ctx)
	if err != nil {
		return err
	}
	c := doorConfig(h, cfg.Store.Bucket(commandsName(e.job.playbook.Name)))
	c.Owner, c.Epoch, c.Log = httpdoor.Backend(owner), epoch, cfg.Log.With(slog.String("part", "http"))
	if e.door, err = httpdoor.New(c); err != nil {
		return &statusError{exitUsage, hint.Wrap(err, "mend router.http in the playbook")}
	}
	return nil
}

// doorConfig is a playbook's door in its own terms. Zero values mean the same defaults.
func doorConfig(h *playbooks.HTTPDoor, commands *eventstore.Bucket) httpdoor.Config {
	c := httpdoor.Config{
		Listen: h.Listen, TLSCert: h.TLSCert, TLSKey: h.TLSKey,
		Servers: map[httpdoor.Backend]string{
			httpdoor.Backend(migrate.Source): h.Source, httpdoor.Backend(migrate.Target): h.Target,
		},
		Sticky: h.Sticky, HoldTimeout: time.Duration(h.HoldWait),
	}
	for _, r := range h.Routes {
		route := httpdoor.Route{Match: r.Match, Kind: httpdoor.Kind(r.Kind), Shadow: r.Shadow, Ignore: r.Ignore}
		if r.Reads != nil {
			if route.Reads = *r.Reads; route.Reads == 0 {
				route.Reads = -1
			}
		}
		c.Routes = append(c.Routes, route)
	}
	k := h.Commands
	if k == nil {
		return c
	}
	c.Commands = httpdoor.Commands{
		Path: k.Path, Tokens: k.Tokens, Types: map[string]httpdoor.CommandType{},
		Log: buffer.CommandsConfig{
			Bucket: commands, MaxCommands: k.MaxCommands, MaxBytes: int64(k.MaxBytes), MaxPayload: int(k.MaxPayload), Parallel: k.Parallel,
			Timeout: time.Duration(k.Timeout), Attempts: k.Attempts, GiveUp: time.Duration(k.GiveUp), Keep: time.Duration(k.Keep),
			OnDead: buffer.OnDead(k.OnDead),
		},
	}
	for name, t := range k.Types {
		c.Commands.Types[name] = httpdoor.CommandType{
			httpdoor.Backend(migrate.Source): httpdoor.Call(t.Source), httpdoor.Backend(migrate.Target): httpdoor.Call(t.Target),
		}
	}
	return c
}

// A front stands before the databases for as long as its migration runs.
type front interface {
	Run(ctx context.Context) error
	Listening() <-chan struct{}
}

// front returns the gateway or the HTTP door of this process, nil without one.
func (e *engine) front() front {
	switch {
	case e.gateway != nil:
		return e.gateway
	case e.door != nil:
		return e.door
	}
	return nil
}

// A doorAdapter is the HTTP door as the workflow wants it.
type doorAdapter struct{ d *httpdoor.Door }

// Reads implements [migrate.Router].
func (r doorAdapter) Reads(ctx context.Context, percent int) error { return r.d.Reads(ctx, percent) }

// Hold implements [migrate.Router].
func (r doorAdapter) Hold(ctx context.Context, epoch int64) error { return r.d.Hold(ctx, epoch) }

// Release implements [migrate.Router].
func (r doorAdapter) Release(ctx context.Context, owner migrate.Side, epoch int64) error {
	return r.d.Release(ctx, httpdoor.Backend(owner), epoch)
}

// Stalls implements [migrate.Router].
func (r doorAdapter) Stalls() migrate.StallStats { return migrate.StallStats(r.d.Stalls()) }

// checkDoor looks for mistakes in the door's configuration, and whether somebody is at home where it leads.
func (j *job) checkDoor(ctx context.Context) []migrate.Finding {
	h := j.playbook.Router.HTTP
	c := doorConfig(h, nil)
	c.Owner = httpdoor.Backend(migrate.Source)
	if err := httpdoor.Check(c); err != nil {
		return []migrate.Finding{{Severity: migrate.SeverityError, Check: "http-door", Object: "router.http", Message: err.Error(), Fix: hint.Of(err)}}
	}
	var found []migrate.Finding
	for _, side := range []migrate.Side{migrate.Source, migrate.Target} {
		if err := reach(ctx, c.Servers[httpdoor.Backend(side)]); err != nil {
			found = append(found, migrate.Finding{
				Severity: migrate.SeverityWarning, Check: "http-door", Object: "router.http." + string(side),
				Message: fmt.Sprintf("the data server over the %s cannot be reached: %v", side, err), Fix: "start it before clients are sent to the door",
			})
		}
	}
	return found
}

// reach opens a connection to a data server, and closes it again.
func reach(ctx context.Context, address string) error {
	u, err := httpdoor.ParseServer(address)
	if err != nil {
		return err
	}
	port := u.Port()
	if port == "" {
		port = u.Scheme
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return err
	}
	return conn.Close()
}
