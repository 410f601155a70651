package gates

import (
	"strings"
	"testing"
	"time"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
)

// looked wants a brake to give a reason that contains a text, or none for "".
func looked(t *testing.T, b migrate.Brake, want string) {
	t.Helper()
	why, err := b.Look(t.Context())
	if err != nil {
		why = err.Error()
	}
	if (why == "") != (want == "") || !strings.Contains(why, want) {
		t.Errorf("brake %s: %q, want %q", b.Name(), why, want)
	}
}

// TestBrakes: sessions that run statements count, idle ones and our own do not; a query decides by its first
// column and gives the reason in its second; servers without standbys have no lag.
func TestBrakes(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	servers := Servers{migrate.Source: db.DSN, migrate.Target: db.DSN}
	db.Conn(t) // idle
	looked(t, Load(servers, 1000), "")
	looked(t, Query("batch", db.DSN, `SELECT true, 'nothing runs'`), "")
	looked(t, Query("batch", db.DSN, `SELECT false, 'the nightly job'`), "its query says the nightly job")
	looked(t, Query("batch", db.DSN, `SELECT 1`), "not a boolean")
	looked(t, Replicas(servers, time.Second), "")

	busy := db.Conn(t)
	done := make(chan error, 1)
	go func() {
		_, err := busy.Exec(t.Context(), `SELECT pg_sleep(600)`)
		done <- err
	}()
	pgtest.Eventually(t, "the statement to run", func() bool {
		return db.Int(t, `SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active' AND datname = current_database()`) == 1
	})
	looked(t, Load(servers, 0), "sessions run statements on the source, at most 0")
	db.Exec(t, `SELECT pg_cancel_backend($1)`, busy.PgConn().PID())
	if err := <-done; pg.Code(err) != "57014" {
		t.Errorf("the statement ended with %v", err)
	}
}
