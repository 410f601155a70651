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

// ErrRetired is how Run ends after [Hall.HandOver], once every client has left.
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

// HandOver stops accepting clients and returns where each database stands and the open doors, by name,
// for another process to accept clients there: nobody who knocks meanwhile is turned away. The clients that
// are here stay until they leave, at most RetireTimeout, and follow Hold and Release as before.
func (h *Hall) HandOver(ctx context.Context) (map[string]Position, map[string]*os.File, error) {
	positions := map[string]Position{}
	for name, g := range h.gateways {
		g.mu.Lock()
		held := g.mu.hold != nil || g.route.Load().draining
		positions[name] = g.positionLocked()
		g.mu.Unlock()
		if held {
			return nil, nil, ErrHeld
		}
	}
	listeners, err := h.give()
	if err != nil {
		return nil, nil, err
	}
	files := map[string]*os.File{}
	for d, ln := range listeners {
		f, err := ln.File()
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			h.keep()
			return nil, nil, fmt.Errorf("hand over the %s door: %w", d, err)
		}
		files[string(d)] = f
	}
	close(h.retired)
	for _, ln := range listeners {
		_ = ln.Close()
	}
	h.cfg.Log.LogAttrs(ctx, slog.LevelInfo, "doors handed over", slog.Int("clients", h.clients()))
	return positions, files, nil
}

// give returns the doors to whoever hands them over, once.
func (h *Hall) give() (map[door]*net.TCPListener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.handed {
		return nil, ErrRetired
	}
	h.mu.handed = true
	return h.mu.listeners, nil
}

// keep takes give back.
func (h *Hall) keep() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.handed = false
}

// retire waits until the last client has left.
func (h *Hall) retire(ctx context.Context) error {
	timer := time.NewTimer(h.cfg.RetireTimeout)
	defer timer.Stop()
	for h.clients() > 0 {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			return ErrRetired
		case <-h.left:
		}
	}
	return ErrRetired
}

// listen opens a door, or takes over one that is open.
func (h *Hall) listen(ctx context.Context, d door, addr string) (*net.TCPListener, error) {
	var ln net.Listener
	var err error
	if f := h.cfg.Doors[string(d)]; f != nil {
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

// Position returns where the gateway stands.
func (g *Gateway) Position() Position {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.positionLocked()
}

func (g *Gateway) positionLocked() Position {
	r := g.route.Load()
	return Position{Owner: r.owner, Epoch: g.mu.epoch, Answered: g.mu.answered, Percent: r.percent}
}
