package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ficus-migrate/ficus/bench/lab"
)

// ficusFollower is "ficus follow", which copied, was stopped by a signal, and is started again.
type ficusFollower struct {
	*ground
	link *lab.Ficus
}

func (f *ficusFollower) about() Contender {
	return Contender{Name: ficusName, Settings: "ficus follow, defaults; copied and stopped before, then started again"}
}

func (f *ficusFollower) database() string { return f.work.name + "_ficus" }

func (f *ficusFollower) copied(ctx context.Context) error {
	db := f.database()
	if err := errors.Join(f.Target.Drop(ctx, db), f.Target.Create(ctx, db, "")); err != nil {
		return err
	}
	f.link = &lab.Ficus{Program: f.ficus, Name: f.work.name, Source: f.Source.URL(f.source), Target: f.Target.URL(db)}
	if err := f.link.Copied(ctx, f.Lab); err != nil {
		return err
	}
	return f.Target.Exec(ctx, db, "VACUUM ANALYZE")
}

func (f *ficusFollower) run(ctx context.Context, _ int) (Run, error) {
	if err := f.warm(ctx, f.database()); err != nil {
		return Run{}, err
	}
	clock, began := f.Clock(), time.Now()
	p, err := f.link.Follow(ctx, f.Lab)
	if err != nil {
		return Run{}, err
	}
	reading, err := f.arrived(ctx, f.link.Slot(), f.database(), p.Ended())
	elapsed, usage := clock.Stop()
	usage.Program = p.CPU()
	peak := p.PeakRSS()
	if err := errors.Join(err, p.Stop()); err != nil {
		return Run{}, err
	}
	return measured(elapsed, usage, peak, Metric{"start", "s", reading.Sub(began).Seconds()}), f.Same(ctx, f.held, f.database())
}

func (f *ficusFollower) discard(ctx context.Context, _ int) error {
	return errors.Join(f.link.Remove(ctx), f.Target.Drop(ctx, f.database()))
}

// nativeFollower is PostgreSQL's own subscription.
type nativeFollower struct {
	*ground
	streaming bool
}

func (n *nativeFollower) about() Contender {
	name := "native"
	if n.streaming {
		name = "native, streaming"
	}
	return Contender{Name: name, Settings: "CREATE SUBSCRIPTION ... WITH (" + n.options() + "), wal_retrieve_retry_interval 50ms"}
}

// options are those that make it fastest; synchronous_commit = off is its default.
func (n *nativeFollower) options() string {
	if n.Target.Install().Major < 14 || n.Source.Install().Major < 14 {
		return "synchronous_commit = off"
	}
	return fmt.Sprintf("binary = true, streaming = %t, synchronous_commit = off", n.streaming)
}

// database names the database, the subscription and its slot.
func (n *nativeFollower) database() string {
	if n.streaming {
		return n.work.name + "_streaming"
	}
	return n.work.name + "_native"
}

func (n *nativeFollower) copied(ctx context.Context) error {
	db := n.database()
	if err := errors.Join(n.Target.Drop(ctx, db), n.Target.Create(ctx, db, n.template)); err != nil {
		return err
	}
	return n.Target.Exec(ctx, db, fmt.Sprintf("CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION bench WITH (create_slot = false, copy_data = false, enabled = false, slot_name = '%s', %s)",
		db, n.Source.URL(n.source), db, n.options()))
}

func (n *nativeFollower) run(ctx context.Context, _ int) (Run, error) {
	db := n.database()
	if err := errors.Join(n.copySlot(ctx, db), n.warm(ctx, db)); err != nil {
		return Run{}, err
	}
	clock, began := n.Clock(), time.Now()
	if err := n.Target.Exec(ctx, db, "ALTER SUBSCRIPTION "+db+" ENABLE"); err != nil {
		return Run{}, err
	}
	reading, err := n.arrived(ctx, db, db, nil)
	elapsed, usage := clock.Stop()
	if err != nil {
		return Run{}, err
	}
	return measured(elapsed, usage, 0, Metric{"start", "s", reading.Sub(began).Seconds()}), n.Same(ctx, n.held, db)
}

func (n *nativeFollower) discard(ctx context.Context, _ int) error {
	db := n.database()
	return errors.Join(
		n.Target.Exec(ctx, db, "ALTER SUBSCRIPTION "+db+" DISABLE", "ALTER SUBSCRIPTION "+db+" SET (slot_name = NONE)", "DROP SUBSCRIPTION "+db),
		n.Source.DropSlot(ctx, db), n.Target.Drop(ctx, db))
}

// walsender reads the same changes and throws them away: no follower can be faster than that.
type walsender struct{ *ground }

func (w *walsender) about() Contender {
	c := Contender{Name: "walsender alone", Limit: true, Settings: "pg_recvlogical into /dev/null, pgoutput " + w.settings()}
	if w.tools.pgRecvlogical == "" {
		c.Missing = "pg_recvlogical is not installed"
	}
	return c
}

func (w *walsender) options() []string {
	if w.Source.Install().Major < 14 {
		return []string{"proto_version=1", "publication_names=bench"}
	}
	options := []string{"proto_version=2", "publication_names=bench", "binary=true"}
	if w.work.streams {
		options = append(options, "streaming=on")
	}
	return options
}

func (w *walsender) settings() (s string) {
	for i, o := range w.options() {
		if i > 0 {
			s += ", "
		}
		s += o
	}
	return s
}

func (w *walsender) slotName() string { return w.work.name + "_walsender" }

func (w *walsender) run(ctx context.Context, _ int) (Run, error) {
	if err := w.copySlot(ctx, w.slotName()); err != nil {
		return Run{}, err
	}
	args := []string{"--start", "--no-loop", "--slot", w.slotName(), "--endpos", w.end, "--file", "/dev/null", "--dbname", w.Source.URL(w.source)}
	for _, o := range w.options() {
		args = append(args, "--option", o)
	}
	clock := w.Clock()
	_, cpu, err := lab.Run(ctx, w.tools.pgRecvlogical, args...)
	elapsed, usage := clock.Stop()
	usage.Program = cpu
	return measured(elapsed, usage, 0), err
}

func (w *walsender) discard(ctx context.Context, _ int) error {
	return w.Source.DropSlot(ctx, w.slotName())
}
