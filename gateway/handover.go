package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"
)

// ErrRetired is how Run ends after [Gateway.HandOver], once every client has left.
var ErrRetired = errors.New("another process has taken the doors over")

// ErrHeld refuses to hand over while clients are held: the queue and its order cannot move.
var ErrHeld = errors.New("clients are held")

// A Position is what a gateway that takes over must know of the one before.
type Position struct {
	Owner    Backend `json:"owner"`
	Epoch    int64   `json:"epoch"`
	Answered bool    `json:"answered"` // by a Release: a Hold of that epoch comes too late
	Percent  int     `json:"percent"`  // of the reads
}

// HandOver stops accepting clients and returns the open doors, by name, for another process to accept
// them: nobody who knocks meanwhile is turned away. The clients that are here stay until they leave,
// at most RetireTimeout, and follow Hold and Release as before.
func (g *Gateway) HandOver(ctx context.Context) (Position, map[string]*os.File, error) {
	g.mu.Lock()
	if g.mu.hold != nil || g.route.Load().draining {
		g.mu.Unlock()
		return Position{}, nil, ErrHeld
	}
	p := g.positionLocked()
	listeners := g.mu.listeners
	g.mu.Unlock()

	files := map[string]*os.File{}
	for d, ln := range listeners {
		f, err := ln.File()
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			return Position{}, nil, fmt.Errorf("hand over the %s door: %w", d, err)
		}
		files[string(d)] = f
	}
	g.retiring.Store(true)
	for _, ln := range listeners {
		_ = ln.Close()
	}
	g.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "doors handed over", slog.Int("clients", g.Stats().Clients))
	return p, files, nil
}

// retire waits until the last client has left.
func (g *Gateway) retire(ctx context.Context) error {
	timer := time.NewTimer(g.cfg.RetireTimeout)
	defer timer.Stop()
	for g.Stats().Clients > 0 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			return ErrRetired
		case <-g.left:
		}
	}
	return ErrRetired
}

// listen opens a door, or takes over one that is open.
func (g *Gateway) listen(ctx context.Context, d door, addr string) (*net.TCPListener, error) {
	var ln net.Listener
	var err error
	if f := g.cfg.Doors[string(d)]; f != nil {
		ln, err = net.FileListener(f)
		_ = f.Close()
	} else {
		var lc net.ListenConfig
		ln, err = lc.Listen(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, err
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		_ = ln.Close()
		return nil, fmt.Errorf("%s is not a TCP address", ln.Addr())
	}
	return tcp, nil
}

// Position returns where the gateway stands, and whether it has handed its doors over.
func (g *Gateway) Position() (p Position, retiring bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.positionLocked(), g.retiring.Load()
}

func (g *Gateway) positionLocked() Position {
	r := g.route.Load()
	return Position{Owner: r.owner, Epoch: g.mu.epoch, Answered: g.mu.answered, Percent: r.percent}
}
