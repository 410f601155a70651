package pgserver

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
)

// FreePort returns a port of 127.0.0.1 that nobody listens on. It lies below the range that kernels
// give to outgoing connections, so that a server which is stopped for a moment finds it still free.
func FreePort(ctx context.Context) (int, error) {
	const low, high, attempts = 12000, 32000, 100
	var lc net.ListenConfig
	for range attempts {
		port := low + rand.IntN(high-low)
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("no free port on 127.0.0.1")
}
