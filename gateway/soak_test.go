package gateway

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// TestSoak lets clients write, each transaction once and under a number of its own, while ownership goes
// to and fro, foretold each time: none fails, none is lost, none is there twice. FICUS_GATEWAY_SOAK says for how long, with
// 200 clients and a switch every 10 s (make gateway-soak); without it a short form runs.
func TestSoak(t *testing.T) { //nolint:tparallel // one after the other: each is a load of its own
	t.Parallel()
	clients, every, lasts := 8, 100*time.Millisecond, 1500*time.Millisecond
	if long := os.Getenv("FICUS_GATEWAY_SOAK"); long != "" {
		var err error
		if lasts, err = time.ParseDuration(long); err != nil {
			t.Fatal(err)
		}
		clients, every, lasts = 200, 10*time.Second, lasts/2
	}
	for _, pooling := range []Pooling{SessionPooling, TransactionPooling} {
		t.Run(string(pooling), func(t *testing.T) { soak(t, pooling, clients, every, lasts) })
	}
}

func soak(t *testing.T, pooling Pooling, clients int, every, lasts time.Duration) {
	t.Helper()
	b := start(t, func(c *Config) { c.Pooling = pooling })
	if clients > 50 { // more than the shared cluster takes, while sessions move
		cluster := pgtest.NewCluster(t, pgtest.Setting("max_connections", fmt.Sprint(2*clients+20)))
		_ = b.stop()
		dbs := map[Backend]*pgtest.Database{source: cluster.DB(t), target: cluster.DB(t)}
		b = start(t, func(c *Config) {
			c.Pooling = pooling
			for name, db := range dbs {
				c.Backends[name] = db.DSN
			}
		})
		b.dbs = dbs
	}
	for _, db := range b.dbs {
		db.Exec(t, "CREATE TABLE written (client int, n int); CREATE INDEX ON written (client, n)")
	}
	conns := make([]*pgx.Conn, clients)
	for i := range conns {
		conns[i] = b.client(t, b.Addr(), "")
	}
	until := make(chan struct{})
	time.AfterFunc(lasts, func() { close(until) })
	wrote := make([]int, clients)
	var wg sync.WaitGroup
	for i, conn := range conns {
		wg.Go(func() { wrote[i] = write(t, until, conn, i) })
	}
	tick := time.NewTicker(every / 2)
	defer tick.Stop()
	flips := 0
	for half, running := 0, true; running; half++ {
		to := []Backend{source, target}[(flips+1)%2]
		select {
		case <-until:
			running = false
		case <-tick.C:
			if half%2 == 0 {
				if err := b.Expect(t.Context(), to); err != nil {
					t.Error(err)
				}
				continue
			}
			flips++
			b.shift(t, to, b.lastEpoch()+1)
		}
	}
	wg.Wait()
	total := int64(0)
	for _, n := range wrote {
		total += int64(n)
	}
	var rows, distinct int64
	for _, db := range b.dbs {
		rows += db.Int(t, "SELECT count(*) FROM written")
		distinct += db.Int(t, "SELECT count(*) FROM (SELECT DISTINCT client, n FROM written) d")
	}
	if rows != total || distinct != total || total == 0 || b.Stats().Refused+b.Stats().Ended != 0 {
		t.Errorf("%d transactions, %d rows, %d of them different; %+v", total, rows, distinct, b.Stats())
	}
	t.Logf("%s: %d transactions of %d clients over %d switches, last stalls %+v", pooling, total, clients, flips, b.Stalls())
}

// write writes in three ways by turns until it is told to stop, and returns how often.
func write(t *testing.T, until <-chan struct{}, conn *pgx.Conn, client int) (n int) {
	t.Helper()
	for ; ; n++ {
		select {
		case <-until:
			return n
		default:
		}
		var err error
		switch n % 3 {
		case 0:
			_, err = conn.Exec(t.Context(), "INSERT INTO written VALUES ($1, $2)", client, n)
		case 1:
			_, err = conn.PgConn().Exec(t.Context(), fmt.Sprintf("INSERT INTO written VALUES (%d, %d)", client, n)).ReadAll()
		case 2:
			err = pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
				if _, err := tx.Exec(t.Context(), "SELECT count(*) FROM written WHERE client = $1 AND n = $2", client, n); err != nil {
					return err
				}
				_, err := tx.Exec(t.Context(), "INSERT INTO written VALUES ($1, $2)", client, n)
				return err
			})
		}
		if err != nil {
			t.Errorf("client %d, transaction %d: %v", client, n, err)
			return n
		}
	}
}

// TestManyClients tells the memory of an idle session, and lets a few busy clients work among very many
// idle ones. FICUS_TEST_LONG: 5,000 idle and 500 busy.
//
// It runs alone: what others allocate meanwhile would be counted.
func TestManyClients(t *testing.T) {
	idle, busy := 200, 10
	if os.Getenv("FICUS_TEST_LONG") != "" {
		idle, busy = 5000, 500
	}
	for pooling, n := range map[Pooling]int{SessionPooling: 50, TransactionPooling: idle} {
		t.Run(string(pooling), func(t *testing.T) {
			b := start(t, func(c *Config) { c.Pooling = pooling })
			database := b.dbs[source].DSN.Database()
			before := memory()
			conns := make([]net.Conn, n)
			for i := range conns {
				conns[i] = login(t, b.Addr(), database)
				_ = conns[i].SetDeadline(time.Time{})
			}
			t.Logf("%s: %d idle clients, %d bytes of the gateway for each, their own side included", pooling, n, (memory()-before)/uint64(n))
			if pooling == SessionPooling {
				return
			}
			var wg sync.WaitGroup
			for range busy {
				conn := b.client(t, b.Addr(), "")
				wg.Go(func() {
					for range 20 {
						if _, err := conn.Exec(t.Context(), "SELECT name FROM here"); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.shift(t, target, 2)
			for i := 0; i < n; i += 10 { // idle ones find the new owner
				_ = conns[i].SetDeadline(time.Now().Add(20 * time.Second))
				if got := string(talk(t, conns[i], 1, &pgproto3.Query{String: "SELECT name FROM here"})); !strings.Contains(got, "target") {
					t.Fatalf("client %d: %q", i, got)
				}
			}
		})
	}
}

func memory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
