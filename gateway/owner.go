package gateway

import (
	"cmp"
	"context"
	"log/slog"
	"time"
)

// An Ownership is what the databases themselves say about who owns the data.
type Ownership struct {
	Owner Backend // "": no database has heard of a migration, so whoever owned before still does
	Epoch int64
	Open  bool // the owner lets writes through; false in the middle of a change of owner
}

// Lost says that whoever held the clients at that epoch is gone. From then on the gateway asks the
// databases how it ended ([Config.Ask]), until they know, or HoldTimeout gives each client its answer.
func (g *Gateway) Lost(epoch int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.hold != nil && g.mu.epoch == epoch {
		g.mu.orphan = true
	}
}

// watchOwner asks the databases who owns, again and again: a gateway that nobody tells anything, or
// that missed a word, finds its way all the same.
func (g *Gateway) watchOwner(ctx context.Context) error {
	tick := time.NewTicker(g.cfg.AskEvery)
	defer tick.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		orphan := g.orphan()
		o, err := g.askOwner(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			g.believe(ctx, o, orphan)
		case !failing:
			g.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "databases do not say who owns, will ask again", slog.Any("err", err))
		}
		failing = err != nil
	}
}

func (g *Gateway) askOwner(ctx context.Context) (Ownership, error) {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.MoveTimeout)
	defer cancel()
	g.count.asks.Add(1)
	return g.cfg.Ask(ctx)
}

// orphan returns the hold whose orchestrator is gone, nil for none.
func (g *Gateway) orphan() *hold {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.mu.orphan {
		return nil
	}
	return g.mu.hold
}

// believe follows what the databases say, unless somebody who is alive is about to decide. A hold
// whose orchestrator is gone ends in both ways: at the new owner when the new epoch was committed, at
// the old one when its gate is open. While no gate is open nobody could write, so clients wait on.
// orphan is the hold that had lost its orchestrator when the databases were asked: an answer that is
// older than that says nothing about its end.
func (g *Gateway) believe(ctx context.Context, o Ownership, orphan *hold) {
	g.mu.Lock()
	epoch, hold := g.mu.epoch, g.mu.hold
	g.mu.Unlock()
	owner := g.route.Load().owner
	o.Owner = cmp.Or(o.Owner, owner)
	switch {
	case !o.Open || hold != orphan:
		return
	case hold == nil && (o.Epoch < epoch || o.Epoch == epoch && o.Owner == owner):
		return
	}
	g.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "nobody said who owns, the databases did",
		slog.String("owner", string(o.Owner)), slog.Int64("epoch", o.Epoch))
	if err := g.Release(ctx, o.Owner, max(o.Epoch, epoch)); err != nil { // somebody else decided meanwhile
		g.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "the databases' answer came too late", slog.Any("err", err))
	}
}
