package link

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ficus-migrate/ficus/internal/faultpg"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/source"
)

// befall lets something happen to the link, or nothing.
func (h *history) befall(t *testing.T) {
	t.Helper()
	proxy, name := h.source, "source"
	if h.r.IntN(2) == 0 {
		proxy, name = h.target, "target"
	}
	n := h.r.Int64N(20_000)
	switch h.r.IntN(22) {
	case 0:
		name += " cut"
		proxy.Cut()
	case 1:
		name += " reset"
		proxy.ResetAfter(faultpg.ToClient, n)
	case 2:
		name += " reset (sending)"
		proxy.ResetAfter(faultpg.ToServer, n)
	case 3:
		name = "restart"
		h.stop(t)
		h.close(t)
		h.open(t)
		h.follow(t)
	case 4:
		name += " stalls"
		proxy.Stall(faultpg.Direction(h.r.IntN(2)))
	case 5:
		name += " refuses"
		proxy.Refuse(true)
		proxy.Reset()
	case 6, 7:
		name = "flow"
		h.flow()
	case 8:
		name = "sessions ended"
		h.from.Exec(t, endSessions)
		h.to.Exec(t, endSessions)
	case 9, 10:
		name = "" // crash tells
		h.crash(t, "crash", func() { h.stop(t) })
		h.follow(t)
	case 11:
		if h.Ack != source.AckApplied || !h.lose(t) {
			return
		}
		name = "directory lost"
	case 12:
		name = "copied again"
		h.resync(t)
	case 13, 14:
		name = "" // mend tells
		h.alter(t)
	case 15, 16, 17:
		if !h.Own {
			return
		}
		name += " server crashed"
		h.restart(t, name == "target server crashed")
	default:
		return
	}
	if name != "" {
		h.log = append(h.log, name)
	}
}

const endSessions = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'ficus%' AND application_name <> 'ficus/test' AND datname = current_database()`

// crash is what kill -9 and a power cut do: at one instant nothing more reaches a server, and what the
// disk has lost is decided by chance. What still runs then is ended by end, unseen by anybody, and a
// new process opens what is left.
func (h *history) crash(t *testing.T, name string, end func()) {
	t.Helper()
	for _, p := range []*faultpg.Proxy{h.source, h.target} {
		p.Refuse(true)
		p.Reset()
	}
	after := h.disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: h.r.IntN(101), RNG: rand.New(rand.NewPCG(h.r.Uint64(), 0))})
	end()
	h.close(t)
	h.disk = after
	h.flow()
	h.open(t)
	h.log = append(h.log, name)
}

// lose takes the data directory away. Without progress at the target there is nothing to go on from.
func (h *history) lose(t *testing.T) bool {
	t.Helper()
	if h.link.Applied() == 0 {
		return false
	}
	h.flow()
	h.stop(t)
	h.close(t)
	h.disk = vfs.NewCrashableMem()
	h.open(t)
	must(t, h.link.Adopt(t.Context(), 0))
	h.follow(t)
	return true
}

// quiet is a storage engine's log that nobody reads.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(string, ...any) {}

// resync copies tables again while the writers go on.
func (h *history) resync(t *testing.T) {
	t.Helper()
	h.flow()
	h.stop(t)
	if h.altered != nil {
		h.follow(t)
		return
	}
	var tables []schema.Name
	for _, i := range h.r.Perm(len(h.mappings))[:1+h.r.IntN(3)] {
		tables = append(tables, h.mappings[i].Source.Name)
	}
	h.copy(t, func(ctx context.Context) error {
		_, err := h.link.Resync(ctx, tables, h.Load)
		return err
	}, 15)
	h.follow(t)
}

// alter changes a table of the source in a way that the link does not follow by itself.
func (h *history) alter(t *testing.T) {
	t.Helper()
	if h.altered != nil {
		return
	}
	h.commit(t)
	h.columns++
	sql := fmt.Sprintf("ALTER TABLE public.%s ADD c%d int DEFAULT %[2]d", []string{"keyed", "loose", "part", "many_1", "booked", "bag"}[h.r.IntN(6)], h.columns)
	if h.r.IntN(4) == 0 {
		sql = "ALTER TABLE public.swap ALTER v TYPE bigint"
	}
	h.from.Exec(t, sql)
	h.altered = append(h.altered, sql)
}

// restart crashes one of the history's own servers.
func (h *history) restart(t *testing.T, target bool) {
	t.Helper()
	if target {
		h.servers[1].Kill(t)
		h.servers[1].Start(t)
		return
	}
	h.servers[0].Kill(t)
	h.servers[0].Start(t)
	h.connect(t)
}

// openSpills counts the transactions in a closed store that have no end; see the layout in eventstore.
func openSpills(disk *vfs.MemFS, stream string) (n int, err error) {
	db, err := pebble.Open("/data/events", &pebble.Options{FS: disk, ReadOnly: true, Logger: quiet{}})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	open := append([]byte{'s', byte(len(stream))}, stream+"o"...)
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: open, UpperBound: append(slices.Clip(open), 0xff)})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	return n, it.Error()
}
