package apply

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

// formTexts are texts of each form: those that PostgreSQL writes, besides what SQL makes by chance, and
// those that must be left to the server, because it reads them in another way, or refuses them.
var formTexts = []struct {
	form         form
	base, random string
	texts, left  []string
}{
	{asBool, "boolean", "i % 2 = 0", []string{"t", "f"}, []string{"", "true", "T", "1", "ff"}},
	{
		asInt2, "smallint", "(random() * 65535 - 32768)::int",
		[]string{"0", "-1", "32767", "-32768", "007"},
		[]string{"", "-", "+1", " 1", "1 ", "32768", "-32769", "1.0", "1e2", "0x1", "1_0", "99999999999999999999"},
	},
	{asInt4, "integer", "(random() * 4294967295 - 2147483648)::bigint", []string{"0", "2147483647", "-2147483648"}, []string{"2147483648", "-2147483649", "--1"}},
	{
		asInt8, "bigint", "(random() * 1e18)::bigint * (1 - i % 2 * 2)",
		[]string{"0", "9223372036854775807", "-9223372036854775808", "999999999999999999", "-1000000000000000000"},
		[]string{"9223372036854775808", "-9223372036854775809", "+9223372036854775807", "1000000000000000000_", "-"},
	},
	{
		asFloat4, "real", "(random() * 10 ^ (i % 70 - 35))::float4",
		[]string{"0", "-0", "1e-45", "3.4028235e+38", "Infinity", "-Infinity", "0.1"},
		[]string{"", "NaN", "1e39", "1e-60", "0x1p3", "inf", "-", ".", "e", "1e", "1_0", " 1"},
	},
	{
		asFloat8, "double precision", "random() * 10 ^ (i % 600 - 300)",
		[]string{"0", "-0", "5e-324", "1.7976931348623157e+308", "Infinity", "-Infinity", "123456789.125"},
		[]string{"", "NaN", "1e309", "1e-400", "0x10", "nan", "+", "1e+", "1 "},
	},
	{
		asNumeric, "numeric", "(random() * 10 ^ (i % 40) - 10 ^ (i % 20))::numeric(60, 20) * 10 ^ ((i % 9) * 3)::numeric",
		[]string{"0", "0.00", "-0.0001", "1", "10000", "100000000", "1.10", "9999.9999", "-12345678901234567890.1234567890", "0.00001", "123400000000", "1000000000000.0000000000001", "10000.00010000"},
		[]string{"", "-", ".", "1.", ".5", "1e5", "NaN", "Infinity", "1..2", "+1", " 1", "--1"},
	},
	{
		asUUID, "uuid", "md5(i::text)::uuid",
		[]string{"00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"},
		[]string{"", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1}", "a0eebc999-c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc999c0b4ef8bb6d6bb9bd380a11", "g0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"},
	},
	{
		asDate, "date", "date '0001-01-01' + (i * 2521) % 2000000",
		[]string{"2000-02-29", "1900-02-28", "0001-01-01", "1999-12-31", "12345-06-07", "5874896-12-31", "infinity", "-infinity"},
		[]string{"", "2026-02-29", "1900-02-29", "2026-13-01", "2026-00-01", "2026-01-00", "0044-03-15 BC", "2026-1-1", "01/02/2026", "0000-01-01", "5874898-01-01", "today", "20261121"},
	},
	{
		asTimestamp, "timestamp without time zone", "timestamp '0001-01-01' + i * interval '1 day 1 hour 1.000003 second' * (i % 700)",
		[]string{"2026-11-21 13:37:06", "2026-11-21 13:37:06.1", "2026-11-21 23:59:59.999999", "0001-01-01 00:00:00", "294275-12-31 23:59:59.999999", "infinity", "-infinity", "1999-12-31 23:59:59.000001"},
		[]string{"", "2026-11-21", "2026-11-21 24:00:00", "2026-11-21 13:60:00", "2026-11-21 13:37:60", "2026-11-21 13:37", "2026-11-21T13:37:06", "2026-11-21 13:37:06.", "2026-11-21 13:37:06.1234567", "2026-11-21 13:37:06+00", "0044-03-15 00:00:00 BC", "294277-01-01 00:00:00", "2026-02-30 00:00:00"},
	},
	{
		asTimestampTZ, "timestamp with time zone", "timestamptz '0001-01-01' + i * interval '1 day 1 hour 1.000003 second' * (i % 700)",
		[]string{"2026-11-21 13:37:06+00", "2026-11-21 13:37:06.25+00", "0001-01-01 00:00:00+00", "infinity", "-infinity"},
		[]string{"", "2026-11-21 13:37:06", "2026-11-21 13:37:06+01", "2026-11-21 13:37:06+00:00", "2026-11-21 13:37:06-00", "0044-03-15 00:00:00+00 BC", "2026-11-21 13:37:06Z"},
	},
}

// TestFormsReadAsText: what is sent in the binary form is to every server what its text is: the same
// bytes, and the same text again. What must be left to the server has no form.
//
// It fails when a group of a numeric is shifted or its weight is off, when a day that is not is taken, when an
// end of a range is one too far, or when a number too small for its type becomes zero.
func TestFormsReadAsText(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 15, 18} {
		db := pgtest.DB(t, pgtest.Version(major))
		if db.Major != major { // not on this machine
			continue
		}
		conn, err := db.DSN.Connect(t.Context(), "test")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range formTexts {
			if got := formOf(c.base); got != c.form {
				t.Errorf("form of %s: %s, want %s", c.base, got, c.form)
			}
			compareForm(t, conn, fmt.Sprintf("version %d, %s", major, c.form), c.form, append(randomTexts(t, conn, c.base, c.random), c.texts...))
			for _, text := range c.left {
				if _, ok := c.form.append(nil, []byte(text)); ok {
					t.Errorf("%s: %q has a binary form", c.form, text)
				}
			}
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// randomTexts returns values as the server writes them, those of this era: others have no form.
func randomTexts(t *testing.T, conn *pgx.Conn, base, sql string) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), "SELECT v FROM (SELECT format('%s', ("+sql+")::"+base+") AS v FROM generate_series(1, 2000) i) s WHERE v NOT LIKE '% BC'")
	if err != nil {
		t.Fatal(err)
	}
	texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(texts) < 1000 {
		t.Fatalf("%s: %d texts, %v", sql, len(texts), err)
	}
	return texts
}

// compareForm lets the server read the same values in both forms.
func compareForm(t *testing.T, conn *pgx.Conn, what string, f form, texts []string) {
	t.Helper()
	rows := make([]imagePair, len(texts)+1) // the last one is NULL
	for i := range rows {
		rows[i].row = []change.Value{{}}
		if i < len(texts) {
			rows[i].row[0] = change.Value{Kind: change.Text, Data: []byte(texts[i])}
		}
	}
	typed, ok := appendTyped(nil, arg{form: f}, rows)
	if !ok {
		for _, text := range texts {
			if _, ok := f.append(nil, []byte(text)); !ok {
				t.Errorf("%s: %q has no binary form", what, text)
			}
		}
		return
	}
	plain := textArrays([]arg{{}}, rows)[0]
	name, _ := f.typ()
	result := conn.PgConn().ExecParams(t.Context(), fmt.Sprintf(`SELECT a, b::pg_catalog.%[1]s, b, a::text, b::pg_catalog.%[1]s::text FROM unnest($1::pg_catalog.%[1]s[], $2::text[]) AS u(a, b)`, name),
		[][]byte{typed, plain}, nil, []int16{pgx.BinaryFormatCode}, []int16{pgx.BinaryFormatCode}).Read()
	if result.Err != nil {
		t.Fatalf("%s: %v", what, result.Err)
	}
	if len(result.Rows) != len(rows) {
		t.Fatalf("%s: %d values came back of %d", what, len(result.Rows), len(rows))
	}
	for _, r := range result.Rows {
		if !bytes.Equal(r[0], r[1]) || (r[0] == nil) != (r[2] == nil) || !bytes.Equal(r[3], r[4]) {
			t.Errorf("%s: %q is %x, %s; its binary form was read as %x, %s", what, r[2], r[1], r[4], r[0], r[3])
		}
	}
}

// FuzzForm encodes any text: a value has its length before it, and what has no form leaves nothing that is
// taken for a value.
//
// It fails when a form looks behind the end of its text.
func FuzzForm(f *testing.F) {
	for _, c := range formTexts {
		for _, text := range append(c.texts, c.left...) {
			f.Add(uint8(c.form), []byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, text []byte) {
		fm := form(kind % uint8(asTimestampTZ+1))
		b, ok := fm.append([]byte("before"), text)
		if !ok {
			return
		}
		if !bytes.HasPrefix(b, []byte("before")) || int(binary.BigEndian.Uint32(b[6:])) != len(b)-10 {
			t.Fatalf("%s of %q: %x", fm, text, b)
		}
	})
}

// BenchmarkForm encodes one value.
func BenchmarkForm(b *testing.B) {
	for _, c := range formTexts {
		b.Run(c.form.String(), func(b *testing.B) {
			text, buf := []byte(c.texts[len(c.texts)-1]), make([]byte, 0, 64)
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := c.form.append(buf, text); !ok {
					b.Fatal(c.form)
				}
			}
		})
	}
}
