package gateway

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// talk sends messages on a raw connection that is logged in, and returns every byte of the answer up to
// the wanted number of ReadyForQuery.
func talk(t *testing.T, conn net.Conn, ready int, msgs ...pgproto3.FrontendMessage) []byte {
	t.Helper()
	var out []byte
	for _, m := range msgs {
		out = appendMessage(out, m)
	}
	if _, err := conn.Write(out); err != nil {
		t.Fatal(err)
	}
	return answers(t, conn, ready)
}

func answers(t *testing.T, conn net.Conn, ready int) []byte {
	t.Helper()
	var got []byte
	for ready > 0 {
		head := make([]byte, headerLen)
		if _, err := readFull(conn, head); err != nil {
			t.Fatalf("%v after %q", err, got)
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := readFull(conn, body); err != nil {
			t.Fatal(err)
		}
		got = append(append(got, head...), body...)
		if head[0] == msgReady {
			ready--
		}
	}
	return got
}

func readFull(conn net.Conn, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = conn.Read(p[n:])
		n += m
	}
	return n, err
}

// login opens a raw session.
func login(t *testing.T, addr net.Addr, database string) net.Conn {
	t.Helper()
	conn := raw(t, addr)
	if _, err := conn.Write(hello("postgres", "database", database, "application_name", "raw")); err != nil {
		t.Fatal(err)
	}
	answers(t, conn, 1)
	return conn
}

// What a client says in the raw protocol is answered byte for byte as without a gateway, whether or not
// transactions are pooled: pipelines with errors in the middle, portals that are read in parts, COPY both
// ways, function calls, notices, parameter status, large values.
func TestProtocolByteForByte(t *testing.T) {
	t.Parallel()
	q := func(sql string) pgproto3.FrontendMessage { return &pgproto3.Query{String: sql} }
	parse := func(name, sql string) pgproto3.FrontendMessage { return &pgproto3.Parse{Name: name, Query: sql} }
	bind := func(portal, name string, args ...string) pgproto3.FrontendMessage {
		b := &pgproto3.Bind{DestinationPortal: portal, PreparedStatement: name}
		for _, a := range args {
			b.Parameters = append(b.Parameters, []byte(a))
		}
		return b
	}
	exec := func(portal string, rows uint32) pgproto3.FrontendMessage {
		return &pgproto3.Execute{Portal: portal, MaxRows: rows}
	}
	sync := &pgproto3.Sync{}
	script := []struct {
		what  string
		ready int
		msgs  []pgproto3.FrontendMessage
	}{
		{"two statements", 1, []pgproto3.FrontendMessage{q("SELECT 1; SELECT 'a', NULL")}},
		{"nothing", 1, []pgproto3.FrontendMessage{q("")}},
		{"an error", 1, []pgproto3.FrontendMessage{q("SELECT 1/0")}},
		{"pipelined queries", 3, []pgproto3.FrontendMessage{q("SELECT 1"), q("SELEC"), q("SELECT 3")}},
		{"a notice", 1, []pgproto3.FrontendMessage{q("DO $$BEGIN RAISE NOTICE 'ho' USING detail = 'd'; RAISE WARNING 'hi'; END$$")}},
		{"prepare", 1, []pgproto3.FrontendMessage{parse("s", "SELECT $1::int + 1"), &pgproto3.Describe{ObjectType: 'S', Name: "s"}, sync}},
		{"use it twice", 2, []pgproto3.FrontendMessage{
			bind("", "s", "1"), exec("", 0), sync, bind("", "s", "2"), &pgproto3.Describe{ObjectType: 'P'}, exec("", 0), sync,
		}},
		{"an error in a pipeline", 2, []pgproto3.FrontendMessage{
			bind("", "s", "x"), exec("", 0), parse("skipped", "SELECT 1"), bind("", "s", "3"), exec("", 0), sync, bind("", "s", "4"), exec("", 0), sync,
		}},
		{"what was skipped is not there", 1, []pgproto3.FrontendMessage{bind("", "skipped"), sync}},
		{"a portal in parts", 1, []pgproto3.FrontendMessage{
			parse("", "SELECT generate_series(1, 5)"), bind("p", ""), exec("p", 2), &pgproto3.Flush{}, exec("p", 2), exec("p", 0), &pgproto3.Close{ObjectType: 'P', Name: "p"}, sync,
		}},
		{"a block with an error", 4, []pgproto3.FrontendMessage{q("BEGIN"), q("SELECT nothing"), q("SELECT 1"), q("ROLLBACK")}},
		{"close", 1, []pgproto3.FrontendMessage{&pgproto3.Close{ObjectType: 'S', Name: "s"}, &pgproto3.Close{ObjectType: 'S', Name: "never"}, sync}},
		{"two names for one text", 1, []pgproto3.FrontendMessage{
			parse("u1", "SELECT 9"), parse("u2", "SELECT 9"), bind("", "u2"), exec("", 0),
			&pgproto3.Close{ObjectType: 'S', Name: "u1"}, &pgproto3.Close{ObjectType: 'S', Name: "u2"}, sync,
		}},
		{"copy out", 1, []pgproto3.FrontendMessage{q("COPY (SELECT generate_series(1, 3)) TO STDOUT")}},
		{"copy in", 1, []pgproto3.FrontendMessage{
			q("BEGIN; CREATE TEMP TABLE c (a int) ON COMMIT DROP; COPY c FROM STDIN; SELECT count(*) FROM c; ROLLBACK"),
			&pgproto3.CopyData{Data: []byte("1\n2\n")}, &pgproto3.CopyData{Data: []byte("3\n")}, &pgproto3.CopyDone{},
		}},
		{"copy that fails", 2, []pgproto3.FrontendMessage{
			q("COPY here FROM STDIN"), &pgproto3.CopyData{Data: []byte("a\n")}, &pgproto3.CopyFail{Message: "changed my mind"}, q("SELECT 'after'"),
		}},
		{"extended copy with a Sync too early", 1, []pgproto3.FrontendMessage{
			parse("", "COPY here FROM STDIN"), bind("", ""), exec("", 0), sync, &pgproto3.CopyData{Data: []byte("z\n")}, &pgproto3.CopyDone{}, sync,
		}},
		{"and the session is whole after it", 1, []pgproto3.FrontendMessage{parse("t", "SELECT 1"), bind("", "t"), exec("", 0), &pgproto3.Close{ObjectType: 'S', Name: "t"}, sync}},
		{"a function call", 1, []pgproto3.FrontendMessage{ // int8inc
			&pgproto3.FunctionCall{Function: 1219, Arguments: [][]byte{[]byte("41")}, ArgFormatCodes: []uint16{0}},
		}},
		{"a large value", 1, []pgproto3.FrontendMessage{q("SELECT '" + strings.Repeat("y", 1<<20) + "'")}},
		{"a large parameter", 1, []pgproto3.FrontendMessage{parse("", "SELECT length($1::text)"), bind("", "", strings.Repeat("z", 1<<20)), exec("", 0), sync}},
	}
	for _, pooling := range []Pooling{SessionPooling, TransactionPooling} {
		t.Run(string(pooling), func(t *testing.T) {
			t.Parallel()
			b := start(t, func(c *Config) {
				if c.Pooling = pooling; pooling == TransactionPooling {
					c.MaxServers = 1
				}
			})
			db := b.dbs[source]
			direct := login(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: db.Port()}, db.DSN.Database())
			through := login(t, b.Addr(), db.DSN.Database())
			other := login(t, b.Addr(), db.DSN.Database())
			for _, step := range script {
				// Where transactions are pooled this takes the statements off the one server session.
				talk(t, other, 1, &pgproto3.Query{String: "SET work_mem = '5MB'"})
				want := talk(t, direct, step.ready, step.msgs...)
				got := talk(t, through, step.ready, step.msgs...)
				if !bytes.Equal(got, want) {
					t.Errorf("%s:\n got %q\nwant %q", step.what, cut(got), cut(want))
				}
			}
			// Byte by byte, as a slow client sends.
			for _, c := range appendMessage(nil, &pgproto3.Query{String: "SELECT 'slow'"}) {
				if _, err := through.Write([]byte{c}); err != nil {
					t.Fatal(err)
				}
			}
			if got := answers(t, through, 1); !bytes.Contains(got, []byte("slow")) {
				t.Errorf("byte by byte: %q", got)
			}
		})
	}
}

func cut(b []byte) []byte { return b[:min(len(b), 600)] }

// Notifications reach a session that only waits, and parameter changes are reported.
func TestNotifications(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	listener := b.client(t, b.Addr(), "")
	run(t, listener, "LISTEN news")
	b.dbs[source].Exec(t, "NOTIFY news, 'from outside'")
	n, err := listener.WaitForNotification(t.Context())
	if err != nil || n.Payload != "from outside" {
		t.Errorf("got %+v, %v", n, err)
	}
	run(t, listener, "SET TimeZone = 'Asia/Tokyo'")
	if got := listener.PgConn().ParameterStatus("TimeZone"); got != "Asia/Tokyo" {
		t.Errorf("TimeZone: got %q", got)
	}
}

// psqlScripts are in the style of PostgreSQL's own regression tests: what psql prints is the same
// through the gateway and without it.
var psqlScripts = map[string]string{
	"types": `SELECT 1::int2, 2::int8, 3.5::numeric, 'NaN'::float8, 'infinity'::date, '{1,NULL,3}'::int[], row(1,'a,b'), '\xdeadbeef'::bytea;
SELECT NULL AS "null", '' AS empty, E'a\nb' AS lines, interval '1 year 2 days', jsonb '{"a": [1, 2]}', 'ä'::text;`,
	"errors": `SELECT 1/0;
SELECT * FROM missing_table;
SELECT 'x'::int;
\errverbose
INSERT INTO here SELECT name FROM here WHERE 1 / length(name) > 5;
DO $$BEGIN RAISE EXCEPTION 'own' USING errcode = 'XX001', detail = 'some detail', hint = 'some hint'; END$$;
SELECT 'still here';`,
	"transactions": `BEGIN;
SAVEPOINT a;
SELECT nope;
ROLLBACK TO a;
SELECT 1 AS after_rollback;
RELEASE a;
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
SHOW transaction_isolation;
CREATE TABLE no (a int);
ROLLBACK;
COMMIT;`,
	"cursors": `BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT generate_series(1, 10);
FETCH 3 FROM c;
FETCH BACKWARD 1 FROM c;
MOVE 5 IN c;
FETCH ALL FROM c;
CLOSE c;
COMMIT;
\set FETCH_COUNT 3
SELECT generate_series(1, 10);`,
	"copy": `CREATE TEMP TABLE p (a int, b text);
COPY p FROM STDIN;
1	one
2	\N
3	th\tree
\.
COPY p TO STDOUT WITH (FORMAT csv, HEADER);
\copy p (a) FROM STDIN
x
\.
\copy (SELECT * FROM p ORDER BY a) TO STDOUT`,
	"backslash": `\d here
\dt
\dn
\conninfo_not_known
SELECT 5 AS a, 'x' AS b \gdesc
SELECT 1 AS x \gset
\echo :x
SELECT 1 \; SELECT 2;
\x on
SELECT 1 AS a, 2 AS b;`,
	"notices": `SET client_min_messages = debug1;
DO $$BEGIN RAISE NOTICE 'n %', 1; RAISE WARNING 'w'; RAISE INFO 'i'; RAISE DEBUG 'd'; END$$;
DROP TABLE IF EXISTS not_there;
LISTEN ch;
NOTIFY ch;
UNLISTEN *;
SET client_encoding = 'LATIN1';
SHOW client_encoding;
PREPARE x(int) AS SELECT $1 * 2;
EXECUTE x(21);
DEALLOCATE x;`,
}

func TestPsqlScripts(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	psql := func(url, script string) string {
		cmd := exec.CommandContext(t.Context(), "psql", "-X", "-a", "-f", "-", url)
		cmd.Stdin = strings.NewReader(script)
		cmd.Env = append(os.Environ(), "PGSSLMODE=disable")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("psql: %v", err)
		}
		text := regexp.MustCompile(`(PID|LOCATION:.*line|postgresql?://\S+)[ :=]*\d*`).ReplaceAllString(string(out), "$1")
		return regexp.MustCompile(`server process with PID\s*\d*`).ReplaceAllString(text, "server process")
	}
	for what, script := range psqlScripts {
		want := psql(fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", b.dbs[source].Port(), b.dbs[source].DSN.Database()), script)
		if got := psql(b.url(b.Addr(), ""), script); got != want {
			t.Errorf("%s:\n got %s\nwant %s", what, got, want)
		}
	}
}

// Clients that say little for long are cut off while they introduce themselves, take nothing from others,
// and a flood of wrong passwords leaves nothing behind. FICUS_TEST_LONG: 10,000 of them.
func TestSlowAndWrong(t *testing.T) {
	t.Parallel()
	b := start(t, func(c *Config) {
		c.StartupTimeout, c.Users = 500*time.Millisecond, usersFile(t, `"postgres" "right"`)
	})
	var slow []net.Conn
	for range 50 {
		conn := raw(t, b.Addr())
		if _, err := conn.Write(hello("postgres")[:9]); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, conn)
	}
	wrong := 200
	if os.Getenv("FICUS_TEST_LONG") != "" {
		wrong = 10_000
	}
	bad := strings.Replace(b.url(b.Addr(), ""), "postgres@", "postgres:wrong@", 1)
	good := strings.Replace(b.url(b.Addr(), ""), "postgres@", "postgres:right@", 1)
	for range wrong {
		_, err := pgconn.Connect(t.Context(), bad)
		wantCode(t, err, "28P01")
	}
	for _, conn := range slow {
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("a slow client got an answer")
		}
	}
	conn, err := pgconn.Connect(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close(context.WithoutCancel(t.Context()))
	pgtest.Eventually(t, "all have left", func() bool { return b.Stats().Clients == 0 })
	b.limits.mu.Lock()
	defer b.limits.mu.Unlock()
	if n := len(b.limits.mu.users); n != 0 {
		t.Errorf("%d users are still counted", n)
	}
}
