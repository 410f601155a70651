package snapshot

import (
	"cmp"
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
)

// Limits of what is chosen. A chunk is what an interrupted copy loses at most, and what a target
// can store frozen: seconds of work.
const (
	leastWorkers = 2
	leastChunk   = 128 << 20
	mostChunk    = 1 << 30
)

// A Sizing is how the work of a copy is divided.
type Sizing struct {
	Workers    int   // chunks at a time
	ChunkBytes int64 // of a table, TOAST included
}

// Size fills in what a sizing leaves open, for tables of these sizes. cores is how many each server
// may use, of that which has fewer.
//
// Two cores are kept busy by one COPY, since one server reads while the other writes: cutting a table
// smaller for two workers gains nothing, and loses that a table of one chunk is stored frozen and in
// the order that it had. For more workers no chunk is more than half of what falls to one of them, so
// that all have work until the end.
func (s Sizing) Size(cores int, tables []int64) Sizing {
	s.Workers = cmp.Or(s.Workers, max(cores, leastWorkers))
	if s.ChunkBytes != 0 {
		return s
	}
	s.ChunkBytes = mostChunk
	if s.Workers > leastWorkers {
		var sum int64
		for _, bytes := range tables {
			sum += bytes
		}
		s.ChunkBytes = min(max(sum/int64(2*s.Workers), leastChunk), mostChunk)
	}
	return s
}

// Cores returns how many cores the server that has fewer may use; see [pg.Cores].
func Cores(ctx context.Context, source, target *pgx.Conn) (int, error) {
	src, err := pg.Cores(ctx, source)
	if err != nil {
		return 0, fmt.Errorf("source: %w", err)
	}
	dst, err := pg.Cores(ctx, target)
	if err != nil {
		return 0, fmt.Errorf("target: %w", err)
	}
	return min(src, dst), nil
}

// size settles what the configuration leaves open.
func (c *copier) size(cores int, sources []source) {
	var tables []int64
	for i := range sources {
		for _, p := range sources[i].pieces {
			tables = append(tables, p.bytes)
		}
	}
	s := Sizing{c.cfg.Workers, c.cfg.ChunkBytes}.Size(cores, tables)
	c.cfg.Workers, c.cfg.ChunkBytes = s.Workers, s.ChunkBytes
}
