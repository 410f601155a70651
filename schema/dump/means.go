package dump

import (
	"cmp"
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
)

const (
	// leastShared is how large a table is whose indexes want memory and cores: PostgreSQL's own
	// min_parallel_table_scan_size.
	leastShared = 8 << 20
	// All builds together may use the cacheShare-th part of effective_cache_size, which says best how
	// much memory the server's machine has: administrators set it to half of that or more.
	cacheShare = 4
	// mostMemory is how much one build may use. Sorts that do not fit gain little by more.
	mostMemory = 1 << 30
)

// means is what the target has for building indexes, and what its settings give to one build.
type means struct {
	sessions int   // at a time
	memory   int64 // for all
	cores    int   // 0 when that is not known
	usual    share
}

// A share is what one session may use. The zero value is what its settings say.
type share struct {
	memory  int64 // maintenance_work_mem, in bytes
	workers int   // max_parallel_maintenance_workers
}

// readMeans asks the target. So many sessions were asked for, 0 for as many as are useful.
func readMeans(ctx context.Context, conn *pgx.Conn, sessions int) (m means, err error) {
	cores, err := pg.Cores(ctx, conn)
	if err != nil {
		return means{}, err
	}
	if pg.Local(conn) {
		m.cores = cores
	}
	m.sessions = cmp.Or(sessions, max(cores, 2))
	err = conn.QueryRow(ctx, `SELECT
	pg_catalog.pg_size_bytes(pg_catalog.current_setting('effective_cache_size')) / $1,
	pg_catalog.pg_size_bytes(pg_catalog.current_setting('maintenance_work_mem')),
	pg_catalog.current_setting('max_parallel_maintenance_workers')::int`, cacheShare).Scan(&m.memory, &m.usual.memory, &m.usual.workers)
	if err != nil {
		return means{}, fmt.Errorf("read how much memory and how many workers a build may use: %w", err)
	}
	return m, nil
}

// among divides the means among n builds. None gets less memory than the settings give it, or more
// workers than they do: those stand for what the administrator wants. Where the number of cores is
// known no more processes run than there are, since every further one only costs.
func (m means) among(n int) share {
	s := m.usual
	s.memory = max(s.memory, min(m.memory/int64(n), mostMemory))
	if m.cores > 0 {
		s.workers = min(s.workers, max(m.cores/n-1, 0))
	}
	return s
}

// set gives a session its share.
func (s share) set(ctx context.Context, conn *pgx.Conn) error {
	return execute(ctx, conn, fmt.Sprintf("SET maintenance_work_mem = '%dkB'; SET max_parallel_maintenance_workers = %d", s.memory>>10, s.workers))
}
