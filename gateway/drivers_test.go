package gateway

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq" //nolint:depguard // that it works is what is tested
)

// A driver that was written without a thought of gateways, behind database/sql with its pool of
// connections: queries of both protocols, prepared statements, COPY, errors, cancelled queries and
// notifications, while ownership goes to and fro, with and without pooling of transactions.
func TestLibPQ(t *testing.T) {
	t.Parallel()
	for _, pooling := range []Pooling{SessionPooling, TransactionPooling} {
		t.Run(string(pooling), func(t *testing.T) {
			t.Parallel()
			b := start(t, func(c *Config) { c.Pooling = pooling })
			for _, db := range b.dbs {
				db.Exec(t, "CREATE TABLE c (id int PRIMARY KEY, v text)")
			}
			db, err := sql.Open("postgres", b.url(b.Addr(), ""))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			db.SetMaxOpenConns(4)
			mixed, err := db.PrepareContext(t.Context(), "SELECT name || $1::text FROM here")
			if err != nil {
				t.Fatal(err)
			}
			defer mixed.Close()
			var wg sync.WaitGroup
			until := time.Now().Add(time.Second)
			for i := range 4 {
				wg.Go(func() {
					for n := 0; time.Now().Before(until); n++ {
						if err := libpqRound(t.Context(), db, mixed, i*1_000_000+n); err != nil {
							t.Errorf("client %d, round %d: %v", i, n, err)
							return
						}
					}
				})
			}
			for flips := 1; time.Now().Before(until); flips++ {
				b.shift(t, []Backend{source, target}[flips%2], b.lastEpoch()+1)
				<-time.After(50 * time.Millisecond)
			}
			wg.Wait()
			short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if _, err := db.ExecContext(short, "SELECT pg_sleep(60)"); err == nil {
				t.Error("a cancelled query: no error")
			}
			if pooling == SessionPooling {
				notified(t, b)
			}
		})
	}
}

// libpqRound does a little of everything; id is used once.
func libpqRound(ctx context.Context, db *sql.DB, mixed *sql.Stmt, id int) error {
	var got string
	if err := mixed.QueryRowContext(ctx, "!").Scan(&got); err != nil || !strings.HasSuffix(got, "!") {
		return fmt.Errorf("prepared: %q, %w", got, err)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing to undo
	in, err := tx.PrepareContext(ctx, `COPY c (id, v) FROM STDIN`)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if _, err := in.ExecContext(ctx, id, "copied"); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if _, err := in.ExecContext(ctx); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if err := in.Close(); err != nil { //nolint:sqlclosecheck // its error is wanted
		return fmt.Errorf("copy: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	var pe *pq.Error
	if _, err := db.ExecContext(ctx, "SELECT 1 / $1::int", 0); !errors.As(err, &pe) || pe.Code != "22012" {
		return fmt.Errorf("division by zero: %w", err)
	}
	return nil
}

// notified has a notification come to a driver that waits for nothing else.
func notified(t *testing.T, b *bench) {
	t.Helper()
	l := pq.NewListener(b.url(b.Addr(), ""), 10*time.Millisecond, time.Second, nil)
	defer l.Close()
	if err := l.Listen("news"); err != nil {
		t.Fatal(err)
	}
	for _, db := range b.dbs {
		db.Exec(t, "NOTIFY news, 'hello'")
	}
	select {
	case n := <-l.Notify:
		if n == nil || n.Extra != "hello" {
			t.Errorf("got %+v", n)
		}
	case <-time.After(20 * time.Second):
		t.Error("no notification came")
	}
}

// Node's pg, where somebody has installed it (testdata/node/README.md): the same in another language.
func TestNode(t *testing.T) {
	t.Parallel()
	modules, err := filepath.Abs(filepath.Join("testdata", "node", "node_modules", "pg"))
	if err != nil {
		t.Fatal(err)
	}
	if found, _ := filepath.Glob(modules); len(found) == 0 {
		t.Skip("pg of node is not installed: npm ci in testdata/node")
	}
	for _, pooling := range []Pooling{SessionPooling, TransactionPooling} {
		b := start(t, func(c *Config) { c.Pooling = pooling })
		out, err := exec.CommandContext(t.Context(), "node", filepath.Join("testdata", "node", "run.mjs"), b.url(b.Addr(), "")).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != "ok" {
			t.Errorf("%s: %v\n%s", pooling, err, out)
		}
	}
}
