package link

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/sync/snapshot"
)

// newTwoPhase is a faulty pair with the tables of link_test, whose source sends transactions of more
// than 64 kB before they are prepared.
func newTwoPhase(t *testing.T, from *pgtest.Database) *faulty {
	t.Helper()
	f := newFaulty(t, from, pgtest.DB(t), tables, rows)
	from.Exec(t, "ALTER DATABASE "+from.Name+" SET logical_decoding_work_mem = '64kB'")
	return f
}

// prepare prepares a transaction of at least n rows, half of which it takes back; gids are the
// cluster's, so each has the database's name in it.
func (f *faulty) prepare(t *testing.T, name string, n int) (gid string) {
	t.Helper()
	gid = f.from.Name + "/" + name
	first := f.from.Int(t, `SELECT coalesce(max(id), 0) + 1 FROM public.account`) + 100_000
	f.from.Exec(t, fmt.Sprintf(`BEGIN;
		INSERT INTO public.account SELECT i, 1, repeat('p', 100) FROM generate_series(%[1]d, %[2]d) i;
		SAVEPOINT a;
		INSERT INTO public.account SELECT -i, 1, repeat('p', 100) FROM generate_series(%[1]d, %[2]d) i;
		DELETE FROM public.entry;
		ROLLBACK TO a;
		UPDATE public.account SET balance = 7 WHERE id = 17;
		PREPARE TRANSACTION '%[3]s'`, first, first+int64(n), gid))
	return gid
}

// A journal is a log that a test reads while it is written.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

func (j *journal) has(words ...string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(j.text.String()) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			return true
		}
	}
	return false
}

// TestPreparedBeforeSlot: a slot waits for the transactions that are open when it is made, prepared ones
// too, and says for whom; what they did is then in the copy, once.
//
// It fails when TellAwaited is not started or looks at another session's locks.
func TestPreparedBeforeSlot(t *testing.T) {
	t.Parallel()
	f := newTwoPhase(t, pgtest.DB(t))
	back, forth := f.prepare(t, "back", 10), ""
	f.from.Exec(t, "BEGIN; DELETE FROM public.account WHERE id = 18; PREPARE TRANSACTION '"+f.from.Name+"/forth'")
	forth = f.from.Name + "/forth"
	session := f.from.Conn(t)
	if _, err := session.Exec(t.Context(), "BEGIN; UPDATE public.account SET balance = 0 WHERE id = 19"); err != nil {
		t.Fatal(err)
	}

	f.open(t)
	var log journal
	f.link.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	loaded := make(chan error, 1)
	go func() { // ends with Load
		_, err := f.link.Load(context.WithoutCancel(t.Context()), LoadConfig{})
		loaded <- err
	}()
	const waiting = "waiting for a transaction that began before the slot"
	// Which is waited for first is the server's choice.
	ended := map[string]bool{}
	for range 3 {
		pgtest.Eventually(t, "word of whom the slot waits for", func() bool {
			for who, sql := range map[string]string{
				"gid=" + back: "ROLLBACK PREPARED '" + back + "'", "gid=" + forth: "COMMIT PREPARED '" + forth + "'",
				fmt.Sprintf("pid=%d", session.PgConn().PID()): "",
			} {
				if ended[who] || !log.has(waiting, who+" ", "role="+f.from.User(), "age=") {
					continue
				}
				ended[who] = true
				if sql != "" {
					f.from.Exec(t, sql)
				} else if _, err := session.Exec(t.Context(), "COMMIT"); err != nil {
					t.Error(err)
				}
				return true
			}
			return false
		})
	}
	must(t, <-loaded)
	stop := run(t, f.link)
	f.equal(t)
	stop()
	if n := f.to.Int(t, `SELECT count(*) FROM public.account WHERE id = 18 OR id = 19 AND balance <> 0`); n != 0 {
		t.Errorf("%d rows are as before the transactions that the slot waited for", n)
	}
}

// TestPreparedMeanwhile: a transaction that is prepared while the copy runs comes when it is committed,
// whole and once, and not at all when it is rolled back.
func TestPreparedMeanwhile(t *testing.T) {
	t.Parallel()
	f := newTwoPhase(t, pgtest.DB(t))
	f.open(t)
	var gids []string
	var once sync.Once
	_, err := f.link.Load(t.Context(), LoadConfig{Progress: func(snapshot.Table) {
		once.Do(func() { // the slot is there, and the rows are not copied yet, or not all
			gids = append(gids, f.prepare(t, "small", 10))
			f.from.Exec(t, "BEGIN; DELETE FROM public.account WHERE id = 5; INSERT INTO public.account SELECT i, 2, repeat('p', 100) FROM generate_series(200001, 204000) i; PREPARE TRANSACTION '"+f.from.Name+"/large'")
			f.from.Exec(t, "BEGIN; DELETE FROM public.account WHERE id = 6; INSERT INTO public.account SELECT i, 2, repeat('p', 100) FROM generate_series(300001, 304000) i; PREPARE TRANSACTION '"+f.from.Name+"/never'")
			gids = append(gids, f.from.Name+"/large", f.from.Name+"/never")
		})
	}})
	must(t, err)
	if len(gids) != 3 {
		t.Fatal("nothing was prepared while the copy ran")
	}
	stop := run(t, f.link)
	f.from.Exec(t, "UPDATE public.account SET balance = balance + 1 WHERE id < 4 OR id = 4000")
	f.settle(t)
	if n := f.to.Int(t, `SELECT count(*) FROM public.account WHERE id > 100000 OR balance = 7`); n != 0 {
		t.Errorf("%d rows of prepared transactions are at the target", n)
	}
	f.from.Exec(t, "COMMIT PREPARED '"+gids[1]+"'")
	f.from.Exec(t, "ROLLBACK PREPARED '"+gids[2]+"'")
	f.from.Exec(t, "COMMIT PREPARED '"+gids[0]+"'")
	f.equal(t)
	stop()
	if n := f.to.Int(t, `SELECT count(*) FROM public.account WHERE id > 100000`); n != 4011 {
		t.Errorf("%d rows of prepared transactions are at the target, want 4011", n)
	}
}

// TestPreparedOverRestarts: transactions are prepared while the link follows, and end after the link and
// the source were restarted, the source by a crash.
//
// It fails when what was streamed of them survives the connection, or positions are acknowledged past
// which the server would not send them again.
func TestPreparedOverRestarts(t *testing.T) {
	t.Parallel()
	cluster := pgtest.NewCluster(t)
	f := newTwoPhase(t, cluster.DB(t))
	f.load(t)
	stop := run(t, f.link)
	large := f.prepare(t, "large", 5000)
	f.from.Exec(t, "BEGIN; TRUNCATE public.entry; INSERT INTO public.event SELECT i, 3 FROM generate_series(10001, 15000) i; PREPARE TRANSACTION '"+f.from.Name+"/never'")
	f.settle(t)
	pgtest.Eventually(t, "the server to have sent what is prepared", func() bool {
		return f.from.Int(t, `SELECT coalesce(sum(stream_txns), 0) FROM pg_stat_replication_slots`) >= 2
	})
	stop()
	f.close(t)
	f.open(t)
	stop = run(t, f.link)
	f.from.Exec(t, "UPDATE public.account SET balance = balance + 1 WHERE id = 1")
	f.settle(t)

	cluster.Kill(t)
	cluster.Start(t)
	f.settle(t)
	if n := f.to.Int(t, `SELECT count(*) FROM public.account WHERE id > 100000`); n != 0 {
		t.Errorf("%d rows of a prepared transaction are at the target", n)
	}
	f.from.Exec(t, "COMMIT PREPARED '"+large+"'")
	f.from.Exec(t, "ROLLBACK PREPARED '"+f.from.Name+"/never'")
	f.equal(t)
	stop()
	if n := f.to.Int(t, `SELECT count(*) FROM public.account WHERE id > 100000`); n != 5001 {
		t.Errorf("%d rows of the prepared transaction are at the target, want 5001", n)
	}
}
