package pg

import (
	"context"
	"fmt"
	"net"
	"runtime"

	"github.com/jackc/pgx/v5"
)

// The number of cores that a server elsewhere is taken to have lies between these.
const (
	leastCores = 2
	mostCores  = 16
)

// Cores returns how many cores the server of a session may keep busy for us, as far as one can tell
// from here. On this machine they are those of this process. Elsewhere nobody says; what comes
// nearest is max_parallel_workers, which is raised where there are many cores: half of it, so 4 where
// the setting was left alone.
func Cores(ctx context.Context, conn *pgx.Conn) (int, error) {
	if Local(conn) {
		return runtime.GOMAXPROCS(0), nil
	}
	var workers int
	if err := conn.QueryRow(ctx, `SELECT current_setting('max_parallel_workers')::int`).Scan(&workers); err != nil {
		return 0, fmt.Errorf("read max_parallel_workers: %w", err)
	}
	return min(max(workers/2, leastCores), mostCores), nil
}

// Local reports whether the server of a session runs on this machine: it is reached by a socket file
// or has the address that we have.
func Local(conn *pgx.Conn) bool {
	c := conn.PgConn().Conn()
	ours, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return true
	}
	theirs, ok := c.RemoteAddr().(*net.TCPAddr)
	return ok && theirs.IP.Equal(ours.IP)
}
