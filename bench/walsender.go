package main

import (
	"context"
	"strings"

	"github.com/ficus-migrate/ficus/bench/lab"
)

// walsender reads the same changes and throws them away: no follower can be faster than that.
type walsender struct{ *ground }

func (w *walsender) about() Contender {
	c := Contender{Name: "walsender alone", Limit: true, Settings: "pg_recvlogical into /dev/null, pgoutput " + strings.Join(w.options(), ", ")}
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
