package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Pooling says for how long a client has a server session of its own.
type Pooling string

// The kinds of pooling.
const (
	SessionPooling     Pooling = "session"     // as long as it is connected; everything works as without a gateway
	TransactionPooling Pooling = "transaction" // for one transaction; what a session keeps beyond that is lost
)

// maxMade is how many prepared statements a shared server session keeps.
const maxMade = 200

// A poolKey says which clients may have the same server session one after the other.
type poolKey struct {
	backend      Backend
	user, params string
	door         door
}

// A shared is a server session that clients take turns with.
type shared struct {
	*server
	key   poolKey
	out   window
	made  map[string]int // prepared statements, and when each was used last
	uses  int            // counts for made
	dirty bool           // a client may have left something behind
	said  byte           // type of the last message that the server began
	since time.Time      // it is idle

	cancels sync.WaitGroup // cancel requests under way: they must not hit the next client
}

// A pool keeps the shared server sessions that nobody uses.
type pool struct {
	g  *Gateway
	mu struct {
		sync.Mutex
		idle map[poolKey][]*shared // the one used last at the end
		open map[Backend]int       // idle or not
	}
}

func newPool(g *Gateway) *pool {
	p := &pool{g: g}
	p.mu.idle = map[poolKey][]*shared{}
	p.mu.open = map[Backend]int{}
	return p
}

func keyOf(to Backend, who *identity) poolKey {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(who.params)) {
		fmt.Fprintf(&b, "%s\x00%s\x00", name, who.params[name])
	}
	return poolKey{backend: to, user: who.user, params: b.String(), door: who.door}
}

// take lends a server session to a client. It waits for its turn when as many as there may be are lent.
func (p *pool) take(ctx context.Context, to Backend, who *identity) (*shared, error) {
	free, err := p.g.limits.place(ctx, to)
	if err != nil {
		return nil, err
	}
	key := keyOf(to, who)
	for {
		s, extra := p.pick(key)
		if extra != nil { // to stay within the limit
			extra.bye()
		}
		if s == nil {
			break
		}
		if healthy(s.conn) {
			s.free = free
			return s, nil
		}
		p.discard(s)
	}
	srv, err := p.g.connectNow(ctx, to, who, nil)
	if err != nil {
		p.count(to, -1)
		free()
		return nil, err
	}
	srv.free = free
	return &shared{server: srv, key: key, out: newWindow(serverWindow), made: map[string]int{}}, nil
}

// first shows a client who comes in a server session, so that it is known to the server, and what the
// server reports of itself is known to the client.
func (p *pool) first(ctx context.Context, to Backend, who *identity, _ func(context.Context, *pgconn.PgConn) error) (*server, error) {
	s, err := p.take(ctx, to, who)
	if err != nil {
		return nil, err
	}
	shown := &server{backend: to, pgc: s.pgc, params: s.params}
	p.give(ctx, s)
	return shown, nil
}

// pick takes an idle session off the pool. When there is none it counts one that the caller is to open,
// and returns another client's if that would be one too many.
func (p *pool) pick(key poolKey) (found, extra *shared) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if list := p.mu.idle[key]; len(list) > 0 {
		p.mu.idle[key] = list[:len(list)-1]
		return list[len(list)-1], nil
	}
	p.mu.open[key.backend]++
	if n := p.g.cfg.MaxServers; n == 0 || p.mu.open[key.backend] <= n {
		return nil, nil
	}
	for k, list := range p.mu.idle {
		if k.backend == key.backend && len(list) > 0 && (extra == nil || list[0].since.Before(extra.since)) {
			extra = list[0]
		}
	}
	if extra != nil {
		p.mu.idle[extra.key] = slices.Clone(p.mu.idle[extra.key][1:])
		p.mu.open[key.backend]--
	}
	return nil, extra
}

func (p *pool) count(b Backend, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.open[b] += n
}

// give takes a server session back, at a border. What the client may have left behind is discarded.
func (p *pool) give(ctx context.Context, s *shared) {
	s.cancels.Wait()
	if s.dirty {
		if _, err := s.exchange(appendMessage(nil, &pgproto3.Query{String: "DISCARD ALL"}), p.g.cfg.MoveTimeout, func([][]byte) {}); err != nil {
			p.g.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "server session could not be made clean", slog.Any("err", logged(err)))
			p.discard(s)
			return
		}
		clear(s.made)
		s.dirty = false
	}
	if p.g.stopping.Load() {
		p.discard(s)
		return
	}
	s.since = time.Now()
	p.mu.Lock()
	p.mu.idle[s.key] = append(p.mu.idle[s.key], s)
	p.mu.Unlock()
	s.free()
}

// discard ends a server session that was lent, or picked.
func (p *pool) discard(s *shared) {
	p.count(s.key.backend, -1)
	s.bye()
}

// sweep ends sessions that were idle for long, and those of a backend to which nobody is led any more.
func (p *pool) sweep(now time.Time) {
	r := p.g.route.Load()
	var old []*shared
	p.mu.Lock()
	for k, list := range p.mu.idle {
		keep := list[:0]
		for _, s := range list {
			if now.Sub(s.since) > p.g.cfg.ServerIdle || k.door == readWrite && k.backend != r.owner {
				old = append(old, s)
				p.mu.open[k.backend]--
			} else {
				keep = append(keep, s)
			}
		}
		clear(list[len(keep):])
		if p.mu.idle[k] = keep; len(keep) == 0 {
			delete(p.mu.idle, k)
		}
	}
	p.mu.Unlock()
	for _, s := range old {
		s.bye()
	}
}

// keep sweeps until ctx ends.
func (p *pool) keep(ctx context.Context) error {
	tick := time.NewTicker(min(p.g.cfg.ServerIdle, 10*time.Second))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case now := <-tick.C:
			p.sweep(now)
		}
	}
}

// close ends every idle session.
func (p *pool) close() { p.sweep(time.Now().Add(2 * p.g.cfg.ServerIdle)) }

// healthy reports whether an idle connection is open and silent: a server that ended the session has
// said so, or closed.
func healthy(conn net.Conn) bool {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	c, ok := conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var silent bool
	err = raw.Read(func(fd uintptr) bool {
		var one [1]byte
		_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		silent = errors.Is(err, syscall.EAGAIN)
		return true
	})
	return err == nil && silent
}
