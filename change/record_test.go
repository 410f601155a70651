package change_test

import (
	"encoding/hex"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// history is what the recorded streams hold: every message of the protocol, every form of a row.
const history = `
CREATE TYPE mood AS ENUM ('calm', 'cross');
CREATE TABLE keyed (id int PRIMARY KEY, name varchar(40), feels mood, big text, made timestamptz);
ALTER TABLE keyed ALTER big SET STORAGE EXTERNAL;
CREATE TABLE "Whole Row" (a int, b text);
ALTER TABLE "Whole Row" REPLICA IDENTITY FULL;
CREATE TABLE pair (x int NOT NULL, y text NOT NULL, z numeric(10,2), UNIQUE (x, y));
CREATE UNIQUE INDEX pair_xy ON pair (x, y);
ALTER TABLE pair REPLICA IDENTITY USING INDEX pair_xy;
CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (0) TO (100);
CREATE PUBLICATION everything FOR ALL TABLES WITH (publish_via_partition_root = true);
`

var transactions = []string{
	`INSERT INTO keyed VALUES (1, 'Zoë ''quoted''', 'calm', repeat('x', 2100), '2024-02-29 12:00:00+00'), (2, NULL, NULL, '', 'infinity')`,
	`UPDATE keyed SET name = 'unchanged toast' WHERE id = 1`,
	`UPDATE keyed SET id = 3 WHERE id = 2`,
	`DELETE FROM keyed WHERE id = 3`,
	`INSERT INTO "Whole Row" VALUES (1, 'one'), (1, 'one'), (NULL, NULL); UPDATE "Whole Row" SET b = 'two' WHERE a = 1; DELETE FROM "Whole Row" WHERE a IS NULL`,
	`INSERT INTO pair VALUES (1, 'a', 1.50); UPDATE pair SET y = 'b'; DELETE FROM pair`,
	`INSERT INTO part VALUES (7, 'through the root')`,
	`ALTER TABLE keyed ADD extra int; UPDATE keyed SET extra = 5`,
	`SELECT pg_logical_emit_message(true, 'ficus', 'hello')`,
	`TRUNCATE keyed, pair RESTART IDENTITY CASCADE; TRUNCATE part`,
}

// volatile is what differs from run to run: positions, transaction numbers, times, OIDs of types made here.
var volatile = regexp.MustCompile(`(commit|end|xid|at)=\S+( \d\d:\S+)?|type=\d{5,}|elsewhere_\w+`)

// TestRecord runs history on a PostgreSQL server and decodes its stream, which must come out as in the
// golden files. With -update it also writes the stream into testdata.
func TestRecord(t *testing.T) {
	t.Parallel()
	for name, binary := range map[string]string{"text": "false", "binary": "true"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			msgs := record(t, binary)
			if *update {
				var out strings.Builder
				out.WriteString("# pgoutput, protocol 1, " + name + "; one message a line. Written by TestRecord -update.\n")
				for _, msg := range msgs {
					out.WriteString(hex.EncodeToString(msg) + "\n")
				}
				if err := os.WriteFile("testdata/"+name+".hex", []byte(out.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			var got strings.Builder
			dec := change.NewDecoder()
			for _, msg := range msgs {
				m, err := dec.Decode(msg)
				if err != nil {
					t.Fatalf("%x: %v", msg, err)
				}
				got.WriteString(render(m))
			}
			if *update {
				return // TestDecoderGolden writes the decoded form
			}
			want, err := os.ReadFile("testdata/" + name + ".txt")
			if err != nil {
				t.Fatal(err)
			}
			mask := func(s string) string { return volatile.ReplaceAllString(s, "$1=*") }
			if diff := cmp.Diff(mask(string(want)), mask(got.String())); diff != "" {
				t.Errorf("decoded (-golden +this server):\n%s", diff)
			}
		})
	}
}

func record(t *testing.T, binary string) [][]byte {
	t.Helper()
	db := pgtest.DB(t)
	db.Exec(t, history)
	slot := "record_" + db.Name
	db.Exec(t, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot)
	for _, sql := range transactions {
		db.Exec(t, sql)
	}
	fromElsewhere(t, db)
	rows, err := db.Conn(t).Query(t.Context(), `SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', 'everything', 'messages', 'true', 'binary', $2)`, slot, binary)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		t.Fatal(err)
	}
	return msgs
}

// fromElsewhere commits a transaction that a replication origin has brought. Origins belong to the
// whole cluster, so their names differ from test to test.
func fromElsewhere(t *testing.T, db *pgtest.Database) {
	t.Helper()
	conn := db.Conn(t)
	for _, sql := range []string{
		"SELECT pg_replication_origin_create('elsewhere_' || current_database())",
		"SELECT pg_replication_origin_session_setup('elsewhere_' || current_database())",
		"INSERT INTO part VALUES (8, 'from elsewhere')",
		"SELECT pg_replication_origin_session_reset()",
		"SELECT pg_replication_origin_drop('elsewhere_' || current_database())",
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
}
