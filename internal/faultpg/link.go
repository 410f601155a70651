package faultpg

import (
	"context"
	"net"
	"sync"
)

// A link is one client's connection, and what leads on from it to the server.
type link struct {
	client net.Conn
	ctx    context.Context //nolint:containedctx // the life of the connection, which this is
	cancel context.CancelFunc
	frozen bool // guarded by the proxy's mutex

	mu     sync.Mutex
	server net.Conn // nil until connected
	closed bool
}

func newLink(client net.Conn) *link {
	l := &link{client: client}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// join adds the server's side; false: the client's has been closed meanwhile, and this one is now.
func (l *link) join(server net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = server.Close()
		return false
	}
	l.server = server
	return true
}

// close ends both sides; abort resets them. Only the first call counts.
func (l *link) close(abort bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	l.cancel()
	for _, conn := range []net.Conn{l.client, l.server} {
		if conn == nil {
			continue
		}
		if tcp, ok := conn.(*net.TCPConn); ok && abort {
			_ = tcp.SetLinger(0) // a reset instead of a goodbye
		}
		_ = conn.Close()
	}
}
