package link

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// historyTables returns the tables, of every shape.
func historyTables() string {
	columns := make([]string, len(kinds))
	for i, k := range kinds {
		columns[i] = fmt.Sprintf("k%d %s", i, k.typ)
	}
	return tablesSQL + "\nCREATE TABLE kinds (id int PRIMARY KEY, " + strings.Join(columns, ", ") + ");"
}

const tablesSQL = `
CREATE TABLE marker (id int PRIMARY KEY);
CREATE TABLE keyed (id int PRIMARY KEY, u text UNIQUE, big text, n int); ALTER TABLE keyed ALTER big SET STORAGE EXTERNAL;
CREATE TABLE pairs (a int, b text, v numeric, PRIMARY KEY (b, a));
CREATE TABLE bag (a int, b text);
CREATE TABLE heap (a int, b text); -- grows large, and so is only inserted into: a row without key is searched for
CREATE TABLE loose (a int, b text, big text); ALTER TABLE loose REPLICA IDENTITY FULL; ALTER TABLE loose ALTER big SET STORAGE EXTERNAL;
CREATE TABLE swap (id int PRIMARY KEY DEFERRABLE, v int);
CREATE TABLE ident (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v + 1) STORED);
CREATE TABLE part (id int, at int, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (5);
CREATE TABLE part_b PARTITION OF part DEFAULT;
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE byindex (x int, y text NOT NULL, z text); CREATE UNIQUE INDEX byindex_y ON byindex (y); ALTER TABLE byindex REPLICA IDENTITY USING INDEX byindex_y;
CREATE TABLE booked (room int, during int4range, PRIMARY KEY (room, during), EXCLUDE USING gist (during WITH &&));
CREATE TABLE many_1 (id int PRIMARY KEY, v text); CREATE TABLE many_2 (id int PRIMARY KEY, v text);
CREATE TABLE many_3 (id int PRIMARY KEY, v text); CREATE TABLE many_4 (id int PRIMARY KEY, v text);
CREATE TYPE mood AS ENUM ('calm', 'cross'); CREATE TYPE spot AS (x int, y text); CREATE DOMAIN small AS int CHECK (VALUE < 1000000);`

const historyRows = `
INSERT INTO keyed SELECT i, 'u' || i, repeat(md5(i::text), 100), i FROM generate_series(1, 30) i;
INSERT INTO pairs SELECT i % 5, 'b' || i, i FROM generate_series(1, 30) i;
INSERT INTO bag SELECT i % 3, 'x' FROM generate_series(1, 100) i;
INSERT INTO loose SELECT i % 3, NULLIF('y' || i % 4, 'y0'), repeat('z', i % 2 * 3000) FROM generate_series(1, 50) i;
INSERT INTO swap SELECT i, i FROM generate_series(1, 30) i;
INSERT INTO ident (v) SELECT i FROM generate_series(1, 10) i;
INSERT INTO part SELECT i, i % 10, 'p' FROM generate_series(1, 200) i;
INSERT INTO parent SELECT generate_series(1, 20); INSERT INTO child SELECT i, 1 + i % 20 FROM generate_series(1, 40) i;
INSERT INTO byindex SELECT i, 'y' || i, 'z' FROM generate_series(1, 20) i;
INSERT INTO booked SELECT i % 3, int4range(i * 10, i * 10 + 10) FROM generate_series(1, 20) i;
INSERT INTO many_1 SELECT i, repeat('m', 50) FROM generate_series(1, 1500) i;
INSERT INTO kinds (id) SELECT generate_series(1, 10);`

// kinds holds a column of every type with values that are easily spoiled on the way.
var kinds = []struct{ typ, values string }{
	{"bool", "true|false"},
	{"smallint", "-32768|7"},
	{"bigint", "9223372036854775807|-1"},
	{"numeric", "'NaN'|-0.00|1e-20|12345678901234567890.12345"},
	{"numeric(10,2)", "-0.01|99999999.99"},
	{"real", "'-0'|'Infinity'|1e-40|0.1"},
	{"double precision", "'NaN'|'-Infinity'|'-0'|0.1|1e300"},
	{"money", "'12.34'|'-0.01'"},
	{"char(5)", "''|'a'|'ab  '"},
	{"varchar(20)", "''|'it''s \\ \"q\"'|E'tab\\t\\nline'"},
	{"bytea", `''|'\x00ff5c27'|decode(repeat('00', 3000), 'hex')`},
	{"date", "'infinity'|'0044-03-15 BC'|'2024-02-29'"},
	{"time", "'24:00'|'00:00:00.000001'"},
	{"timetz", "'23:59:59.999999+14'|'00:00-12'"},
	{"timestamp", "'-infinity'|'0001-01-01 BC'|'294276-12-31 23:59:59.999999'"},
	{"timestamptz", "'infinity'|'2024-03-31 02:30+02'|'1900-01-01'"},
	{"interval", "'-1 year 2 mons -3 days 04:05:06.000007'|'0'|'178000000 years'"},
	{"uuid", "'00000000-0000-0000-0000-000000000000'|'ffffffff-ffff-4fff-bfff-ffffffffffff'"},
	{"inet", "'10.1.2.3/8'|'::1'"},
	{"cidr", "'10.0.0.0/8'|'2001:db8::/32'"},
	{"macaddr", "'08:00:2b:01:02:03'"},
	{"macaddr8", "'08:00:2b:01:02:03:04:05'"},
	{"json", `'{"a" : 1, "a":null}'|'"x"'`},
	{"jsonb", `'{"b": [1.10, null], "a": "\u00e9"}'|'null'|'[]'`},
	{"text[]", `'{}'|'{a,NULL,"NULL",""}'|'[0:1][2:2]={{"x,y"},{"\"\\"}}'`},
	{"int[]", "'{}'|'{1,NULL,-3}'|'{{1,2},{3,4}}'"},
	{"int4range", "'empty'|'[1,5)'|'(,)'"},
	{"tstzrange", "'[2024-01-01,)'|'empty'"},
	{"bit(5)", "B'10101'"},
	{"varbit", "B''|B'1'|B'0101010101'"},
	{"point", "'(1.5,-0)'|'(NaN,Infinity)'"},
	{"box", "'((2,2),(0,0))'"},
	{"polygon", "'((0,0),(1,1),(2,0))'"},
	{"tsvector", "''|'''it''s'':1A,2B cat:3'"},
	{"tsquery", "'a & !b & c:*A'"},
	{"pg_lsn", "'0/0FFFFFFF'|'FFFFFFFF/FFFFFFFF'"},
	{"oid", "0|4294967295"},
	{"xid", "'4294967295'"},
	{"name", "'a name'|''"},
	{`"char"`, "'x'|''"},
	{"mood", "'calm'|'cross'"},
	{"mood[]", "'{calm,cross}'|'{}'"},
	{"spot", "'(1,\"a, b\")'|'(,)'|ROW(NULL, '')"},
	{"spot[]", `'{"(1,x)",NULL}'`},
	{"small", "-5|999999"},
	{"text", "''|'Zoë 🌳'|repeat('text', 2000)"},
}

// A session writes; depth is how many savepoints its transaction has, -1 without one.
type session struct {
	conn  *pgx.Conn
	depth int
}

// steps lets sessions do n things.
func (h *history) steps(t *testing.T, n int) {
	t.Helper()
	for range n {
		s := h.sessions[h.w.IntN(len(h.sessions))]
		if s.depth < 0 && h.prepared > 0 && h.w.IntN(6) == 0 {
			h.endPrepared(t, h.w.IntN(3) > 0)
			continue
		}
		if s.depth < 0 {
			h.exec(t, s, "BEGIN", 0)
		}
		switch c := h.w.IntN(40); {
		case c < 8:
			h.exec(t, s, "COMMIT", -1)
		case c < 10:
			h.exec(t, s, "ROLLBACK", -1)
		case c == 10:
			h.prepare(t, s)
		case c < 15:
			h.exec(t, s, fmt.Sprintf("SAVEPOINT s%d", s.depth+1), s.depth+1)
		case c < 17 && s.depth > 0:
			to := 1 + h.w.IntN(s.depth)
			h.exec(t, s, fmt.Sprintf("ROLLBACK TO s%d", to), to)
		case c == 17 && s.depth > 0:
			to := 1 + h.w.IntN(s.depth)
			h.exec(t, s, fmt.Sprintf("RELEASE s%d", to), to-1)
		default:
			h.exec(t, s, h.statement(), s.depth)
		}
	}
}

// prepare leaves a transaction to be ended by anybody, one at a time: a slot cannot be made meanwhile.
func (h *history) prepare(t *testing.T, s *session) {
	t.Helper()
	if h.prepared > 0 {
		h.exec(t, s, "COMMIT", -1)
		return
	}
	h.exec(t, s, "PREPARE TRANSACTION '"+h.from.Name+"'", -1)
	h.prepared = int(h.from.Int(t, `SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()`))
}

func (h *history) endPrepared(t *testing.T, commit bool) {
	t.Helper()
	end := "ROLLBACK PREPARED '"
	if commit {
		end = "COMMIT PREPARED '"
		h.commits++
	}
	h.prepared = 0
	h.from.Exec(t, end+h.from.Name+"'")
}

// commit ends every transaction.
func (h *history) commit(t *testing.T) {
	t.Helper()
	for _, s := range h.sessions {
		h.exec(t, s, "COMMIT", -1)
	}
	if h.prepared > 0 {
		h.endPrepared(t, true)
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
	if s.depth > 0 && sql != "COMMIT" && !strings.HasPrefix(sql, "ROLLBACK") && !strings.HasPrefix(sql, "PREPARE") {
		back, depth = fmt.Sprintf("ROLLBACK TO s%d", s.depth), s.depth
	}
	if _, err := s.conn.Exec(t.Context(), back); err != nil {
		t.Fatalf("%s after %s: %v", back, sql, err)
	}
	s.depth = depth
}

// value returns one for a column of kinds.
func (h *history) value(k int) string {
	values := strings.Split(kinds[k].values, "|")
	if n := h.w.IntN(len(values) + 1); n < len(values) {
		return values[n]
	}
	return "NULL"
}

// statement returns one statement. Keys come from small ranges, so that the same rows and unique
// values are hit again and again.
func (h *history) statement() string {
	r := h.w
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
		func() string { return fmt.Sprintf("INSERT INTO loose VALUES (%d, %s, %s)", n(3), value(), value()) },
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
			return fmt.Sprintf("INSERT INTO part VALUES (%d, %d, %s) ON CONFLICT DO NOTHING", 200+n(99), n(9), value())
		},
		func() string { return fmt.Sprintf("UPDATE part SET at = (at + 3) %% 10 WHERE id = %d", n(200)) }, // to another partition
		func() string { return fmt.Sprintf("DELETE FROM part WHERE id BETWEEN %d AND %d", n(200), n(200)) },
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
			return fmt.Sprintf("INSERT INTO many_%d VALUES (%d, %s) ON CONFLICT (id) DO UPDATE SET v = excluded.v", n(4), n(3000), value())
		},
		func() string {
			return fmt.Sprintf("UPDATE byindex SET y = y || 'a', z = %s WHERE x = %d", value(), n(20))
		},
		func() string { return fmt.Sprintf("UPDATE byindex SET x = x + 1 WHERE x <> %d", n(20)) },
		func() string {
			return fmt.Sprintf("DELETE FROM byindex WHERE x = %d; INSERT INTO byindex VALUES (%d, 'new%d', NULL)", n(20), n(20), n(20))
		},
		func() string { // ranges move, where nothing may overlap
			return fmt.Sprintf("DELETE FROM booked WHERE during && int4range(%[1]d, %[2]d); INSERT INTO booked VALUES (%[3]d, int4range(%[1]d, %[2]d))", n(100), 100+n(100), n(3))
		},
		func() string {
			k := r.IntN(len(kinds))
			return fmt.Sprintf("UPDATE kinds SET k%d = %s WHERE id %% 3 = %d", k, h.value(k), n(3)-1)
		},
		func() string {
			var columns, values []string
			for k := range kinds {
				columns, values = append(columns, fmt.Sprint("k", k)), append(values, h.value(k))
			}
			return fmt.Sprintf("INSERT INTO kinds (id, %s) VALUES (%d, %s) ON CONFLICT DO NOTHING", strings.Join(columns, ", "), n(100), strings.Join(values, ", "))
		},
		func() string { // DDL that means nothing to the rows
			if r.IntN(6) > 0 {
				return "SELECT"
			}
			return []string{"CREATE INDEX ON keyed (n)", "ALTER TABLE pairs ALTER v SET STATISTICS 10", "COMMENT ON TABLE bag IS 'x'"}[r.IntN(3)]
		},
		func() string { return fmt.Sprintf("DELETE FROM kinds WHERE id %% 10 = %d", n(9)) },
		func() string { // large: more than logical_decoding_work_mem, than a batch, than what is held in memory of one transaction
			rows := []int{300, 500, 2000, 15_000}[r.IntN(4)]
			if r.IntN(3) > 0 {
				return "SELECT"
			}
			if h.MaxRows > 0 && h.MaxRows < 200 { // a batch takes as long as a thousand of its rows
				rows = min(rows, 20*h.MaxRows)
			}
			return fmt.Sprintf("INSERT INTO heap SELECT %d, repeat('large', 20) FROM generate_series(1, %d)", n(9), rows)
		},
		func() string {
			return fmt.Sprintf("INSERT INTO many_4 SELECT i, 'range' FROM generate_series(%d, %d) i ON CONFLICT DO NOTHING; UPDATE many_4 SET v = v || '+' WHERE id %% 3 = 0", n(500), 500+n(100))
		},
		func() string {
			if !h.truncate || r.IntN(4) > 0 {
				return "SELECT"
			}
			return []string{
				"TRUNCATE loose, keyed", "TRUNCATE part", "TRUNCATE ident RESTART IDENTITY", "TRUNCATE parent CASCADE", "TRUNCATE many_1, many_2, bag", "TRUNCATE kinds, booked",
			}[r.IntN(6)]
		},
	}
	return all[r.IntN(len(all))]()
}
