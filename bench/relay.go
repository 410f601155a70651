package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"

	"github.com/ficus-migrate/ficus/internal/pg"
)

// A relay hands bytes on between clients and a server. It is what a Go program in the middle costs that
// does nothing.
type relay struct {
	url      string
	server   string // address
	listener net.Listener
	running  sync.WaitGroup
}

// relayBuffer is what it reads at once.
const relayBuffer = 32 << 10

func newRelay(ctx context.Context, server pg.DSN) (*relay, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{
		listener: listener, server: net.JoinHostPort(server.Host(), strconv.Itoa(int(server.Port()))),
		url: fmt.Sprintf("postgresql://%s@%s/%s?sslmode=disable", server.User(), listener.Addr(), server.Database()),
	}
	r.running.Go(func() { r.accept(context.WithoutCancel(ctx)) }) // until close
	return r, nil
}

// close takes no more clients, and waits for those that are there.
func (r *relay) close() error {
	err := r.listener.Close()
	r.running.Wait()
	return err
}

func (r *relay) accept(ctx context.Context) {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		server, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.server)
		if err != nil {
			_ = client.Close()
			continue
		}
		r.running.Go(func() { hand(server, client) })
		r.running.Go(func() { hand(client, server) })
	}
}

// hand copies one way, and ends both ways when that has an end. It hides that both are sockets: the
// kernel would move the bytes by itself otherwise.
func hand(to, from net.Conn) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, relayBuffer)) // the clients tell what went wrong
	_, _ = to.Close(), from.Close()
}
