package change_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// corpus is where the recordings are; the packer of sync/source is fuzzed with them as well.
const corpus = "testdata/fuzz/FuzzDecode"

// alike is how many messages of one kind in a row are kept: one block of a large transaction holds
// hundreds, which teach a fuzzer nothing.
const alike = 4

// large holds transactions that the server sends before they commit (protocol 2): with subtransactions
// that abort, and one that aborts as a whole.
var large = []string{
	`BEGIN; INSERT INTO big SELECT i, 'one' FROM generate_series(1000, 1999) i; SAVEPOINT a; INSERT INTO big SELECT i, 'two' FROM generate_series(2000, 2999) i;
		ROLLBACK TO a; INSERT INTO big SELECT i, 'three' FROM generate_series(3000, 3999) i; TRUNCATE pair; COMMIT`,
	`BEGIN; DELETE FROM big WHERE id >= 1000; ALTER TABLE big ADD more int; UPDATE big SET more = 1; ROLLBACK`,
	`BEGIN; UPDATE big SET v = v || id WHERE id >= 1000; SELECT pg_logical_emit_message(true, 'ficus', 'large'); COMMIT`,
	`BEGIN; DELETE FROM big WHERE id >= 3500; PREPARE TRANSACTION 'corpus of %s'; COMMIT PREPARED 'corpus of %s'`,
}

// TestCorpus decodes the recorded streams. With -update it first records them: what pgoutput of each
// version on this machine sends, under protocol 1 and, with large transactions streamed, 2.
func TestCorpus(t *testing.T) {
	t.Parallel()
	for major := 13; *update && major <= 18; major++ {
		if db := pgtest.DB(t, pgtest.Version(major)); db.Major == major { // which is on this machine
			recordCorpus(t, db, major)
		}
	}
	files, err := filepath.Glob(corpus + "/pg*")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d recordings, %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, quoted, _ := strings.Cut(string(text), "[]byte(")
		chunk, err := strconv.Unquote(strings.TrimSuffix(strings.TrimSpace(quoted), ")"))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		streamed := strings.HasSuffix(file, "_2") // the packer takes these apart
		dec, msgs := change.NewDecoder(), 0
		for rest := []byte(chunk); len(rest) > 0; msgs++ {
			var msg []byte
			if msg, rest, err = change.NextFrame(rest); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if _, err := dec.Decode(msg); err != nil && !streamed {
				t.Fatalf("%s: message %d: %x: %v", file, msgs, msg, err)
			}
		}
		if msgs < 20 {
			t.Errorf("%s: %d messages are no recording", file, msgs)
		}
	}
}

func recordCorpus(t *testing.T, db *pgtest.Database, major int) {
	t.Helper()
	db.Exec(t, history+`CREATE TABLE big (id int PRIMARY KEY, v text)`)
	options := map[string]string{"1": `'proto_version', '1'`}
	if major >= 14 {
		options["1"] += `, 'messages', 'true', 'binary', 'true'`
		options["2"] = `'proto_version', '2', 'messages', 'true', 'streaming', 'on'`
	}
	for proto := range options {
		db.Exec(t, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", "corpus_"+proto+"_"+db.Name)
	}
	conn := db.Conn(t)
	for _, sql := range append(append([]string{}, transactions...), large...) {
		if strings.Contains(sql, "pg_logical_emit_message") && major < 14 {
			sql = "SELECT" // without the option the server does not send it
		}
		for one := range strings.SplitSeq(strings.ReplaceAll(sql, "%s", db.Name), ";") {
			if _, err := conn.Exec(t.Context(), one); err != nil {
				t.Fatalf("%s: %v", one, err)
			}
		}
	}
	if _, err := conn.Exec(t.Context(), `SET logical_decoding_work_mem = '64kB'`); err != nil {
		t.Fatal(err)
	}
	for proto, option := range options {
		rows, err := conn.Query(t.Context(), `SELECT data FROM pg_logical_slot_get_binary_changes('corpus_`+proto+`_`+db.Name+`', NULL, NULL,
			'publication_names', 'everything', `+option+`)`)
		if err != nil {
			t.Fatal(err)
		}
		msgs, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
		if err != nil {
			t.Fatal(err)
		}
		writeCorpus(t, fmt.Sprintf("%s/pg%d_protocol_%s", corpus, major, proto), msgs)
	}
}

// writeCorpus writes messages as one input of a fuzz target, without most of those that are alike.
func writeCorpus(t *testing.T, file string, msgs [][]byte) {
	t.Helper()
	var chunk []byte
	run := 0
	for i, msg := range msgs {
		if run++; i > 0 && msg[0] != msgs[i-1][0] {
			run = 0
		}
		if run < alike && len(msg) < 4096 {
			chunk = change.AppendFrame(chunk, msg)
		}
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	text := "go test fuzz v1\n[]byte(" + strconv.Quote(string(chunk)) + ")\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
