package pgtest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// shared holds the clusters that the tests of this binary share, by major version.
var shared pool //nolint:gochecknoglobals // TestMain and the tests have nothing else in common

// stopTimeout bounds the shutdown of one cluster; it becomes an immediate one afterwards.
const stopTimeout = 10 * time.Second

// A MainOption adjusts Main.
type MainOption func(*mainConfig)

type mainConfig struct {
	leaks     bool
	leaksOpts []goleak.Option
}

// CheckLeaks makes Main fail when goroutines are left after the tests.
func CheckLeaks(opts ...goleak.Option) MainOption {
	return func(c *mainConfig) { c.leaks, c.leaksOpts = true, opts }
}

// Main runs the tests, stops the shared clusters and ends the process. Call it from TestMain.
func Main(m *testing.M, opts ...MainOption) {
	var cfg mainConfig
	for _, o := range opts {
		o(&cfg)
	}
	code := m.Run()
	shared.stop()
	if cfg.leaks && code == 0 {
		if err := goleak.Find(cfg.leaksOpts...); err != nil {
			fmt.Fprintf(os.Stderr, "goroutines left after the tests: %v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}

// A pool starts each cluster once.
type pool struct {
	mu       sync.Mutex // guards the map, not the starting
	clusters map[int]*slot
}

type slot struct {
	once   sync.Once
	server server
	err    error
}

// get returns the shared cluster of a major version, 0 for the default one.
func (p *pool) get(major int) (server, error) {
	major, err := resolve(major)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	if p.clusters == nil {
		p.clusters = map[int]*slot{}
	}
	s := p.clusters[major]
	if s == nil {
		s = &slot{}
		p.clusters[major] = s
	}
	p.mu.Unlock()
	s.once.Do(func() { s.server, s.err = startServer(options{major: major, settings: sharedSettings()}) })
	return s.server, s.err
}

func (p *pool) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.clusters {
		s.once.Do(func() {})
		if s.server == nil || s.err != nil { // a server that did not start is a nil of its type
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		if err := s.server.Stop(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "pgtest: %v\n", err)
		}
		cancel()
	}
	p.clusters = nil
}
