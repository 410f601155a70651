package gateway

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// sessionsOf lists the server sessions of the gateway's clients in a database.
const sessionsOf = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'ahead' ORDER BY pid"

// A session that works gets a server session on the backend to come, takes it when it moves, with the state that it has then, and
// gives it back when nothing comes. One that does nothing gets none.
//
// It fails when a session moves to what was made ahead whatever its state has become meanwhile, when a move makes another server
// session all the same, and when nobody tells idle sessions that nothing comes.
func TestExpect(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	there := func() []string { return b.dbs[target].Strings(t, sessionsOf) }
	const named = "&application_name=ahead"
	same, changed, idle := b.client(t, b.Addr(), named), b.client(t, b.Addr(), named), b.client(t, b.Addr(), named)
	for _, conn := range []*pgx.Conn{same, changed, idle} {
		run(t, conn, "SET TimeZone = 'Asia/Tokyo'")
		if _, err := conn.PgConn().Prepare(t.Context(), "named", "SELECT name FROM here WHERE $1 > 0", nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := same.PgConn().Prepare(t.Context(), "", "SELECT 'unnamed', $1::int4", nil); err != nil {
		t.Fatal(err)
	}

	expect := func(owner Backend) {
		t.Helper()
		if err := b.Expect(t.Context(), owner); err != nil {
			t.Fatal(err)
		}
	}
	expect(target)
	res := same.PgConn().ExecPrepared(t.Context(), "", [][]byte{[]byte("5")}, nil, nil).Read() // it is there still
	if res.Err != nil || string(res.Rows[0][0]) != "unnamed" {
		t.Fatalf("unnamed statement: %v", res.Err)
	}
	run(t, changed, "SELECT 1")
	if got := there(); len(got) != 2 {
		t.Fatalf("%d sessions are ahead, want those of the two clients that did something", len(got))
	}

	expect(source)
	pgtest.Eventually(t, "the sessions to be closed again, with nobody doing anything", func() bool { return len(there()) == 0 })

	expect(target)
	run(t, same, "SELECT 1")
	ahead := there()
	run(t, changed, "SELECT 1")
	run(t, changed, "SET TimeZone = 'Europe/Rome'")
	b.shift(t, target, 2)
	if pid := one[string](t, same, "SELECT pg_backend_pid()::text"); len(ahead) != 1 || pid != ahead[0] {
		t.Errorf("moved to session %s, want the one made ahead: %v", pid, ahead)
	}
	for conn, zone := range map[*pgx.Conn]string{same: "Asia/Tokyo", changed: "Europe/Rome", idle: "Asia/Tokyo"} {
		if got := one[string](t, conn, "SELECT current_setting('TimeZone')"); got != zone || conn.PgConn().ParameterStatus("TimeZone") != zone {
			t.Errorf("time zone: got %s, told %s, want %s", got, conn.PgConn().ParameterStatus("TimeZone"), zone)
		}
		res := conn.PgConn().ExecPrepared(t.Context(), "named", [][]byte{[]byte("5")}, nil, nil).Read()
		if res.Err != nil || string(res.Rows[0][0]) != "target" {
			t.Errorf("named statement: %v, %q", res.Err, res.Rows)
		}
	}
	if n := len(there()); n != 3 {
		t.Errorf("%d sessions on the target, want one for each client", n)
	}
	if got := b.Stats(); got.Moved != 3 || got.Ended != 0 {
		t.Errorf("stats: got %+v, want 3 moved, 0 ended", got)
	}
}

// What is expected and does not come is forgotten.
//
// It fails when sessions that were made ahead stay until somebody says something.
func TestExpectIsForgotten(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) { c.ExpectTimeout = 300 * time.Millisecond })
	conn := b.client(t, b.Addr(), "&application_name=ahead")
	pgtest.Eventually(t, "a session to be made ahead", func() bool {
		if err := b.Expect(t.Context(), target); err != nil {
			t.Fatal(err)
		}
		run(t, conn, "SELECT 1")
		return len(b.dbs[target].Strings(t, sessionsOf)) == 1
	})
	pgtest.Eventually(t, "it to be closed, with nobody saying anything", func() bool { return len(b.dbs[target].Strings(t, sessionsOf)) == 0 })
}

// Who cannot get ready goes on.
//
// It fails when what goes wrong ahead of a move is told to the client.
func TestExpectDoesNoHarm(t *testing.T) {
	t.Parallel()
	nowhere, err := pg.Parse("postgres://postgres@127.0.0.1:1/x?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	lost := start(t, func(c *Config) { c.Backends[target] = nowhere })
	b := start(t, nil)
	keeps := b.client(t, b.Addr(), "")
	run(t, keeps, "CREATE TEMP TABLE x (a int)")
	for g, conn := range map[*bench]*pgx.Conn{lost: lost.client(t, lost.Addr(), ""), b: keeps} {
		if err := g.Expect(t.Context(), target); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.PgConn().Prepare(t.Context(), "", "SELECT name FROM here", nil); err != nil {
			t.Fatal(err)
		}
		if res := conn.PgConn().ExecPrepared(t.Context(), "", nil, nil, nil).Read(); res.Err != nil || string(res.Rows[0][0]) != "source" {
			t.Errorf("got %q, %v", res.Rows, res.Err)
		}
		if got := g.Stats(); got.Ended != 0 || got.Moved != 0 {
			t.Errorf("stats: %+v", got)
		}
	}
	if err := b.Expect(t.Context(), "elsewhere"); err == nil {
		t.Error("a backend that is not known is expected")
	}
}
