package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ficus-migrate/ficus/bench/lab"
)

// A follower keeps a database in step with the source of a ground.
type follower interface {
	about() Contender
	database() string // of the target
	slot() string     // that it reads, of the source
	// copied brings it to where it holds the source's rows and stands still.
	copied(ctx context.Context) error
	// begin lets it follow.
	begin(ctx context.Context) (*session, error)
	// discard removes all of it, when it does not follow.
	discard(ctx context.Context) error
}

// A session is a follower that follows.
type session struct {
	ended <-chan struct{}      // closed when it follows no more; nil where that is not known
	cpu   func() time.Duration // of the program; 0 where that is a server
	peak  func() int64         // most memory of the program; 0 where that is a server
	stop  func(context.Context) error
}

// ficusFollower is "ficus follow", which copied, was stopped by a signal, and is started again.
type ficusFollower struct {
	*ground
	workers int // that apply; 0: the default
	link    *lab.Ficus
}

func (f *ficusFollower) about() Contender {
	return Contender{Name: ficusName, Settings: "ficus follow, defaults; copied and stopped before, then started again"}
}

func (f *ficusFollower) database() string { return f.work.name + "_ficus" }

func (f *ficusFollower) slot() string { return "ficus_" + f.work.name + "_forward" }

func (f *ficusFollower) copied(ctx context.Context) error {
	db := f.database()
	if err := errors.Join(f.Target.Drop(ctx, db), f.Target.Create(ctx, db, "")); err != nil {
		return err
	}
	f.link = &lab.Ficus{Program: f.ficus, Name: f.work.name, Source: f.url(f.Source, f.source), Target: f.url(f.Target, db), Workers: f.workers}
	if err := f.link.Copied(ctx, f.Lab); err != nil {
		return err
	}
	return f.Target.Exec(ctx, db, "VACUUM ANALYZE")
}

func (f *ficusFollower) begin(ctx context.Context) (*session, error) {
	p, err := f.link.Follow(ctx, f.Lab)
	if err != nil {
		return nil, err
	}
	return &session{ended: p.Ended(), cpu: p.CPU, peak: p.PeakRSS, stop: func(context.Context) error { return p.Stop() }}, nil
}

func (f *ficusFollower) discard(ctx context.Context) error {
	return errors.Join(f.link.Remove(ctx), f.Target.Drop(ctx, f.database()))
}

// nativeFollower is PostgreSQL's own subscription.
type nativeFollower struct {
	*ground
	streaming string // "off", "on", "parallel"
	commits   string // synchronous_commit of the target's worker, "off" or "on"
}

// natives returns one for each way to treat large transactions, where there are any and the servers
// know more than one.
func natives(g *ground) []follower {
	list := []follower{&nativeFollower{g, "off", "off"}}
	older := min(g.Source.Install().Major, g.Target.Install().Major)
	if g.work.streams && older >= 14 {
		list = append(list, &nativeFollower{g, "on", "off"})
	}
	if g.work.streams && older >= 16 {
		list = append(list, &nativeFollower{g, "parallel", "off"})
	}
	return list
}

func (n *nativeFollower) about() Contender {
	name := "native"
	if n.streaming != "off" {
		name += ", streaming " + n.streaming
	}
	if n.commits != "off" {
		name += ", synchronous_commit " + n.commits
	}
	return Contender{Name: name, Settings: "CREATE SUBSCRIPTION ... WITH (" + n.options() + "), wal_retrieve_retry_interval 50ms"}
}

// options are those that make it fastest, its own default for commits among them; Ficus commits as "on" does.
func (n *nativeFollower) options() string {
	if n.Target.Install().Major < 14 || n.Source.Install().Major < 14 {
		return "synchronous_commit = " + n.commits
	}
	return fmt.Sprintf("binary = true, streaming = %s, synchronous_commit = %s", n.streaming, n.commits)
}

// database names the database and the subscription.
func (n *nativeFollower) database() string {
	return n.work.name + "_native_" + n.streaming + "_" + n.commits
}

func (n *nativeFollower) slot() string { return n.database() }

func (n *nativeFollower) copied(ctx context.Context) error {
	db := n.database()
	if err := errors.Join(n.copySlot(ctx, n.slot()), n.Target.Drop(ctx, db), n.Target.Create(ctx, db, n.template)); err != nil {
		return err
	}
	return n.Target.Exec(ctx, db, fmt.Sprintf("CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION bench WITH (create_slot = false, copy_data = false, enabled = false, slot_name = '%s', %s)",
		db, n.url(n.Source, n.source), n.slot(), n.options()))
}

func (n *nativeFollower) begin(ctx context.Context) (*session, error) {
	db := n.database()
	if err := n.Target.Exec(ctx, db, "ALTER SUBSCRIPTION "+db+" ENABLE"); err != nil {
		return nil, err
	}
	return &session{
		cpu: func() time.Duration { return 0 }, peak: func() int64 { return 0 },
		stop: func(ctx context.Context) error { return n.Target.Exec(ctx, db, "ALTER SUBSCRIPTION "+db+" DISABLE") },
	}, nil
}

func (n *nativeFollower) discard(ctx context.Context) error {
	db := n.database()
	return errors.Join(
		n.Target.Exec(ctx, db, "ALTER SUBSCRIPTION "+db+" SET (slot_name = NONE)", "DROP SUBSCRIPTION "+db),
		n.Source.DropSlot(ctx, n.slot()), n.Target.Drop(ctx, db))
}
