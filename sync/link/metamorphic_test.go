package link

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/faultpg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/sync/source"
)

var (
	histories = flag.Int("histories", 0, "how many random histories to run (default 3, or 50 with FICUS_TEST_LONG)")
	seed      = flag.Uint64("seed", 0, "run the one history of this seed")
)

const historyTables = `
CREATE TABLE keyed (id int PRIMARY KEY, u text UNIQUE, big text, n int); ALTER TABLE keyed ALTER big SET STORAGE EXTERNAL;
CREATE TABLE pairs (a int, b text, v numeric, PRIMARY KEY (b, a));
CREATE TABLE bag (a int, b text);
CREATE TABLE heap (a int, b text); -- grows large, and so is only inserted into: a row without key is searched for
CREATE TABLE loose (a int, b text); ALTER TABLE loose REPLICA IDENTITY FULL;
CREATE TABLE swap (id int PRIMARY KEY DEFERRABLE, v int);
CREATE TABLE ident (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v + 1) STORED);
CREATE TABLE part (id int, at int, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (5);
CREATE TABLE part_b PARTITION OF part DEFAULT;
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE many_1 (id int PRIMARY KEY, v text); CREATE TABLE many_2 (id int PRIMARY KEY, v text);
CREATE TABLE many_3 (id int PRIMARY KEY, v text); CREATE TABLE many_4 (id int PRIMARY KEY, v text);`

const historyRows = `
INSERT INTO keyed SELECT i, 'u' || i, repeat(md5(i::text), 100), i FROM generate_series(1, 30) i;
INSERT INTO pairs SELECT i % 5, 'b' || i, i FROM generate_series(1, 30) i;
INSERT INTO bag SELECT i % 3, 'x' FROM generate_series(1, 300) i;
INSERT INTO loose SELECT i % 3, NULLIF('y' || i % 4, 'y0') FROM generate_series(1, 100) i;
INSERT INTO swap SELECT i, i FROM generate_series(1, 30) i;
INSERT INTO ident (v) SELECT i FROM generate_series(1, 10) i;
INSERT INTO part SELECT i, i % 10, 'p' FROM generate_series(1, 500) i;
INSERT INTO parent SELECT generate_series(1, 20); INSERT INTO child SELECT i, 1 + i % 20 FROM generate_series(1, 40) i;
INSERT INTO many_1 SELECT i, 'm' FROM generate_series(1, 3000) i;`

// A history is what one seed makes happen: sessions that write, and what befalls the link.
type history struct {
	*faulty
	r        *rand.Rand
	sessions []*session
	// truncate lets tables be truncated: not before the copy is done. A copy that comes after a
	// TRUNCATE that its snapshot does not see finds nothing (PostgreSQL manual, "Caveats" of MVCC),
	// and a slot made while one is open cannot always be decoded ("could not map filenode").
	truncate bool
	commits  int
	log      []string // of what befell
}

// A session writes; depth is how many savepoints its transaction has, -1 without one.
type session struct {
	conn  *pgx.Conn
	depth int
}

// TestMetamorphic lets random histories run on a source while a link copies it, follows it, is ended
// and made again, over a network that breaks. In the end both databases hold the same rows, whatever
// the settings were. A seed makes the same choices again, but not the same timing.
func TestMetamorphic(t *testing.T) {
	t.Parallel()
	n, first := *histories, uint64(1)
	switch {
	case *seed != 0:
		n, first = 1, *seed
	case n == 0 && long():
		n = 50
	case n == 0:
		n = 3
	}
	if n > 3 {
		first = max(first, uint64(time.Now().Unix()))
		if *seed != 0 {
			first = *seed
		}
	}
	for s := first; s < first+uint64(n); s++ {
		t.Run(fmt.Sprint("seed ", s), func(t *testing.T) {
			t.Parallel()
			metamorphic(t, s)
		})
	}
}

func metamorphic(t *testing.T, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	h := &history{r: r, faulty: newFaulty(t, pgtest.DB(t), pgtest.DB(t), historyTables, historyRows)}
	if r.IntN(2) == 0 {
		h.ack = source.AckApplied
	}
	load := LoadConfig{Workers: 1 + r.IntN(3), ChunkBytes: []int64{8 << 10, 64 << 10, 0}[r.IntN(3)]}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("again: go test ./sync/link -run TestMetamorphic -seed %d\nack %s, load %+v, %s",
				seed, h.ack, load, strings.Join(h.log, ", "))
		}
	})
	for range 2 + r.IntN(3) {
		conn, err := h.from.DSN.Connect(t.Context(), "test", func(c *pgx.ConnConfig) {
			c.RuntimeParams["search_path"] = "public"
			c.RuntimeParams["lock_timeout"] = "50ms" // sessions of one goroutine must not wait for each other
		})
		must(t, err)
		defer conn.Close(context.WithoutCancel(t.Context()))
		h.sessions = append(h.sessions, &session{conn, -1})
	}
	h.steps(t, 50) // the slot may begin in the middle of these transactions

	h.open(t)
	loaded := make(chan error, 1)
	go func() {
		_, err := h.link.Load(t.Context(), load)
		loaded <- err
	}()
	for done := false; !done; {
		h.steps(t, 1)
		select {
		case err := <-loaded:
			must(t, err)
			done = true
		default:
		}
	}
	h.truncate = true
	stop := run(t, h.link)
	for range 30 {
		h.steps(t, 20)
		stop = h.befall(t, stop)
	}
	for _, s := range h.sessions {
		h.exec(t, s, "COMMIT", -1)
	}
	h.source.Flow()
	h.target.Flow()
	h.equal(t)
	stop()
	if h.commits < 20 {
		t.Errorf("%d commits are no history", h.commits)
	}
}

// befall lets something happen to the link, or nothing.
func (h *history) befall(t *testing.T, stop func()) func() {
	t.Helper()
	proxy, name := h.source, "source"
	if h.r.IntN(2) == 0 {
		proxy, name = h.target, "target"
	}
	what := h.r.IntN(12)
	switch what {
	case 0:
		name += " cut"
		proxy.Cut()
	case 1:
		name += " reset"
		proxy.ResetAfter(faultpg.ToClient, h.r.Int64N(20_000))
	case 2:
		name += " reset (sending)"
		proxy.ResetAfter(faultpg.ToServer, h.r.Int64N(20_000))
	case 3:
		name = "restart"
		stop()
		h.close(t)
		h.open(t)
		stop = run(t, h.link)
	case 4:
		name += " stalls"
		proxy.Stall(faultpg.Direction(h.r.IntN(2)))
	case 5:
		name = "flow"
		h.source.Flow()
		h.target.Flow()
	case 6:
		if h.ack != source.AckApplied || h.r.IntN(3) > 0 {
			return stop
		}
		name = "directory lost"
		h.source.Flow()
		h.target.Flow()
		pgtest.Eventually(t, "progress to go on from", func() bool { return h.link.Applied() > 0 })
		stop()
		h.close(t)
		h.dir = t.TempDir()
		h.open(t)
		must(t, h.link.Adopt(t.Context(), 0))
		stop = run(t, h.link)
	default:
		return stop
	}
	h.log = append(h.log, name)
	return stop
}

// steps lets sessions do n things.
func (h *history) steps(t *testing.T, n int) {
	t.Helper()
	for range n {
		s := h.sessions[h.r.IntN(len(h.sessions))]
		if s.depth < 0 {
			h.exec(t, s, "BEGIN", 0)
		}
		switch c := h.r.IntN(20); {
		case c < 4:
			h.exec(t, s, "COMMIT", -1)
		case c == 4:
			h.exec(t, s, "ROLLBACK", -1)
		case c < 7:
			h.exec(t, s, fmt.Sprintf("SAVEPOINT s%d", s.depth+1), s.depth+1)
		case c == 7 && s.depth > 0:
			to := 1 + h.r.IntN(s.depth)
			h.exec(t, s, fmt.Sprintf("ROLLBACK TO s%d", to), to)
		default:
			h.exec(t, s, h.statement(), s.depth)
		}
	}
}

// exec runs one statement. What the database refuses (a lock, a duplicate) takes the transaction
// back to its last savepoint, or altogether.
func (h *history) exec(t *testing.T, s *session, sql string, depth int) {
	t.Helper()
	_, err := s.conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
	if err == nil {
		if sql == "COMMIT" && s.depth >= 0 {
			h.commits++
		}
		s.depth = depth
		return
	}
	if s.conn.IsClosed() {
		t.Fatalf("%s: %v", sql, err)
	}
	back, depth := "ROLLBACK", -1
	if s.depth > 0 && sql != "COMMIT" && !strings.HasPrefix(sql, "ROLLBACK") {
		back, depth = fmt.Sprintf("ROLLBACK TO s%d", s.depth), s.depth
	}
	if _, err := s.conn.Exec(t.Context(), back); err != nil {
		t.Fatalf("%s after %s: %v", back, sql, err)
	}
	s.depth = depth
}

// statement returns one statement. Keys come from small ranges, so that the same rows and unique
// values are hit again and again.
func (h *history) statement() string {
	r := h.r
	n := func(most int) int { return 1 + r.IntN(most) }
	value := func() string {
		return []string{"NULL", "''", "'v'", fmt.Sprintf("repeat(md5('%d'), 200)", n(99)), fmt.Sprintf("'%d'", n(9))}[r.IntN(5)]
	}
	all := []func() string{
		func() string {
			return fmt.Sprintf("INSERT INTO keyed VALUES (%d, 'u%d', %s, %d) ON CONFLICT DO NOTHING", n(60), n(60), value(), n(9))
		},
		func() string {
			return fmt.Sprintf("UPDATE keyed SET n = n + 1 WHERE id BETWEEN %d AND %d", n(60), n(60))
		},
		func() string { return fmt.Sprintf("UPDATE keyed SET big = %s WHERE id = %d", value(), n(60)) },
		func() string { return fmt.Sprintf("UPDATE keyed SET id = id + %d WHERE id = %d", n(60), n(60)) },
		func() string { // a unique value moves to another row
			k := n(60)
			return fmt.Sprintf("UPDATE keyed SET u = NULL WHERE id = %d; UPDATE keyed SET u = 'moved' WHERE id = %d AND NOT EXISTS (SELECT FROM keyed WHERE u = 'moved'); UPDATE keyed SET u = 'u%d' WHERE id = %d", k, k, n(60), n(60))
		},
		func() string { // delete and insert again under the same key
			k := n(60)
			return fmt.Sprintf("DELETE FROM keyed WHERE id = %d; INSERT INTO keyed VALUES (%d, 'again%d', %s, 1)", k, k, k, value())
		},
		func() string { // two keys change places
			a, b := n(60), n(60)
			return fmt.Sprintf("UPDATE keyed SET id = -1 WHERE id = %d; UPDATE keyed SET id = %d WHERE id = %d; UPDATE keyed SET id = %d WHERE id = -1", a, a, b, b)
		},
		func() string { return fmt.Sprintf("DELETE FROM keyed WHERE id = %d", n(60)) },
		func() string {
			return fmt.Sprintf("INSERT INTO pairs VALUES (%d, 'b%d', %d) ON CONFLICT (a, b) DO UPDATE SET v = pairs.v + 0.5", n(5), n(30), n(9))
		},
		func() string { return fmt.Sprintf("UPDATE pairs SET a = a + 10 WHERE b = 'b%d' AND a < 50", n(30)) },
		func() string {
			return fmt.Sprintf("INSERT INTO bag SELECT %d, %s FROM generate_series(1, %d)", n(3), value(), n(4))
		},
		func() string {
			return fmt.Sprintf("DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = %d LIMIT %d)", n(3), n(3))
		},
		func() string {
			return fmt.Sprintf("UPDATE bag SET b = %s WHERE ctid = (SELECT max(ctid) FROM bag)", value())
		},
		func() string { return fmt.Sprintf("INSERT INTO loose VALUES (%d, %s)", n(3), value()) },
		func() string {
			return fmt.Sprintf("UPDATE loose SET b = %s WHERE ctid = (SELECT min(ctid) FROM loose WHERE a = %d)", value(), n(3))
		},
		func() string {
			return fmt.Sprintf("DELETE FROM loose WHERE ctid = (SELECT min(ctid) FROM loose WHERE a = %d)", n(3))
		},
		func() string { return "UPDATE swap SET id = 31 - id" },
		func() string {
			a := n(29)
			return fmt.Sprintf("UPDATE swap SET id = %d - id, v = v + 1 WHERE id IN (%d, %d)", 2*a+1, a, a+1)
		},
		func() string { return fmt.Sprintf("INSERT INTO ident (v) SELECT generate_series(1, %d)", n(5)) },
		func() string { return fmt.Sprintf("UPDATE ident SET v = v * 2 %% 1000 WHERE id %% 7 = %d", n(7)) },
		func() string {
			return fmt.Sprintf("INSERT INTO part VALUES (%d, %d, %s) ON CONFLICT DO NOTHING", 500+n(99), n(9), value())
		},
		func() string { return fmt.Sprintf("UPDATE part SET at = (at + 3) %% 10 WHERE id = %d", n(500)) }, // to another partition
		func() string { return fmt.Sprintf("DELETE FROM part WHERE id BETWEEN %d AND %d", n(500), n(500)) },
		func() string { return fmt.Sprintf("UPDATE parent SET id = id + 100 WHERE id = %d", n(20)) },
		func() string {
			return fmt.Sprintf("DELETE FROM parent WHERE id IN (%d, %d); INSERT INTO parent VALUES (%d) ON CONFLICT DO NOTHING", n(20), 100+n(20), n(20))
		},
		func() string {
			return fmt.Sprintf("INSERT INTO child VALUES (%d, (SELECT min(id) FROM parent))", 40+n(200))
		},
		func() string {
			return fmt.Sprintf("INSERT INTO many_%d SELECT max(id) + 1, %s FROM many_1", 2+n(2), value())
		},
		func() string {
			return fmt.Sprintf("INSERT INTO many_%d VALUES (%d, %s) ON CONFLICT (id) DO UPDATE SET v = excluded.v", n(4), n(5000), value())
		},
		func() string { // larger than a batch and than what is held in memory of one transaction
			if r.IntN(10) > 0 {
				return "SELECT"
			}
			return "INSERT INTO heap SELECT 9, repeat('large', 20) FROM generate_series(1, 15000)"
		},
		func() string {
			if !h.truncate || r.IntN(4) > 0 {
				return "SELECT"
			}
			return []string{
				"TRUNCATE loose, keyed", "TRUNCATE part", "TRUNCATE ident RESTART IDENTITY", "TRUNCATE parent CASCADE", "TRUNCATE many_1, many_2, bag",
			}[r.IntN(5)]
		},
	}
	return all[r.IntN(len(all))]()
}
