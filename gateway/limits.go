package gateway

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// limits keep one user, or all of them, from taking every connection.
type limits struct {
	perUser int                             // 0: no limit
	servers map[Backend]*semaphore.Weighted // nil: no limit; first come, first served
	wait    time.Duration                   // for a place among servers

	mu struct {
		sync.Mutex
		users map[string]int // clients by user, those at 0 left out
	}
}

func newLimits(cfg *Config) *limits {
	l := &limits{perUser: cfg.MaxPerUser, wait: cfg.ServerWait}
	l.mu.users = map[string]int{}
	if cfg.MaxServers > 0 {
		l.servers = map[Backend]*semaphore.Weighted{}
		for b := range cfg.Backends {
			l.servers[b] = semaphore.NewWeighted(int64(cfg.MaxServers))
		}
	}
	return l
}

// enter counts a client of that user, who has proved who it is, in.
func (l *limits) enter(user string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.perUser > 0 && l.mu.users[user] >= l.perUser {
		return &refusal{fatal: true, code: "53300", message: fmt.Sprintf("too many connections for role %q", user)}
	}
	l.mu.users[user]++
	return nil
}

func (l *limits) leave(user string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.users[user]--; l.mu.users[user] == 0 {
		delete(l.mu.users, user)
	}
}

// place waits for one of the server sessions that a backend may have. free gives it back; it may be
// called more than once.
func (l *limits) place(ctx context.Context, b Backend) (free func(), err error) {
	sem := l.servers[b]
	if sem == nil {
		return func() {}, nil
	}
	within, cancel := context.WithTimeout(ctx, l.wait)
	defer cancel()
	if err := sem.Acquire(within, 1); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &refusal{
			fatal: true, code: "53300", message: fmt.Sprintf("no connection to the %s database became free within %s", b, l.wait),
			hint: "Nothing was executed. Try again; or raise the gateway's limit of server sessions.",
		}
	}
	return sync.OnceFunc(func() { sem.Release(1) }), nil
}
