package verify

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/schema"
)

var update = flag.Bool("update", false, "rewrite golden files")

// Every block is in exactly one chunk, those beyond the table's present end included.
func TestChunksCoverEveryBlock(t *testing.T) {
	t.Parallel()
	n := &node{version: 150000}
	for _, l := range []layout{{}, {blocks: 1, rows: 5000}, {blocks: 16, rows: 2000}, {blocks: 17, rows: 2000}, {blocks: 1000, rows: 100_000}, {blocks: 999, rows: 99_999_999}, {blocks: 5, rows: 1 << 40}} {
		chunks := l.chunks(n, 1000)
		if len(chunks) == 1 && chunks[0] == "true" {
			continue
		}
		next := int64(0)
		for i, c := range chunks {
			var from, to int64
			last := i == len(chunks)-1
			format := "ctid >= '(%d,0)' AND ctid < '(%d,0)'"
			if last {
				format = "ctid >= '(%d,0)'"
			}
			args := []any{&from, &to}
			if last {
				args = args[:1]
			}
			if _, err := fmt.Sscanf(c, format, args...); err != nil {
				t.Fatalf("%+v: chunk %q: %v", l, c, err)
			}
			if from != next {
				t.Errorf("%+v: chunk %q begins at %d, want %d", l, c, from, next)
			}
			next = to
		}
	}
	if got := (layout{blocks: 1000, rows: 1 << 30}).chunks(&node{version: 130000}, 10); !cmp.Equal(got, []string{"true"}) {
		t.Errorf("PostgreSQL 13: got %q", got)
	}
}

func TestBucketMask(t *testing.T) {
	t.Parallel()
	for rows, want := range map[int64]int64{0: 0, 511: 0, 512: 1, 768: 3, 1024: 3, 1025: 3, 1 << 20: 4095, 1 << 40: maxBuckets - 1} {
		if got := bucketMask(rows); got != want {
			t.Errorf("bucketMask(%d) = %d, want %d", rows, got, want)
		}
	}
}

// merge against a plain comparison of multisets, for random small streams.
func TestMerge(t *testing.T) {
	t.Parallel()
	str := func(s string) []*string { return []*string{&s} }
	e := func(keyHash int64, key string, hash, n int64) entry { return entry{keyHash, str(key), hash, n} }
	for _, tt := range []struct {
		name     string
		src, dst []entry
		want     string
	}{
		{"both empty", nil, nil, "0 0 0"},
		{"source empty", nil, []entry{e(1, "a", 1, 1)}, "0 1 0"},
		{"target empty", []entry{e(1, "a", 1, 1), e(2, "b", 1, 2)}, nil, "3 0 0"},
		{"last row missing", []entry{e(1, "a", 1, 1), e(2, "b", 1, 1)}, []entry{e(1, "a", 1, 1)}, "1 0 0"},
		{"last row extra", []entry{e(1, "a", 1, 1)}, []entry{e(1, "a", 1, 1), e(2, "b", 1, 1)}, "0 1 0"},
		{"hashes of keys collide", []entry{e(1, "a", 1, 1), e(1, "c", 1, 1)}, []entry{e(1, "b", 1, 1), e(1, "c", 1, 1)}, "1 1 0"},
		{"changed", []entry{e(1, "a", 1, 1)}, []entry{e(1, "a", 2, 1)}, "0 0 1"},
		{"several of one key", []entry{e(1, "a", 1, 1)}, []entry{e(1, "a", 1, 1), e(1, "a", 2, 1), e(1, "a", 3, 2)}, "0 3 0"},
		{"several of one key, none equal", []entry{e(1, "a", 1, 2)}, []entry{e(1, "a", 2, 1), e(1, "a", 3, 2)}, "0 1 2"},
		{"null key last", []entry{{1, str("z"), 1, 1}, {1, []*string{nil}, 1, 1}}, []entry{{1, []*string{nil}, 1, 1}}, "1 0 0"},
	} {
		f := findings{keyed: true, limit: 3}
		f.merge(stream(tt.src), stream(tt.dst))
		if got := fmt.Sprintf("%d %d %d", f.missing, f.extra, f.changed); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

func stream(entries []entry) <-chan entry {
	c := make(chan entry, len(entries))
	for _, e := range entries {
		c <- e
	}
	close(c)
	return c
}

func TestReportText(t *testing.T) {
	t.Parallel()
	value := "12"
	name := schema.Name{Schema: "public", Name: "users"}
	r := &Report{
		Kind: Exact, LSN: 0x16B374D848, At: time.Date(2024, 2, 29, 3, 0, 0, 0, time.UTC), SameInstant: true,
		Source: Database{DSN: "app@old:5432/shop", Version: 130023}, Target: Database{DSN: "app@new:5432/shop", Version: 180004}, Seed: 7,
		Tables: []TableReport{
			{Table: schema.Name{Schema: "public", Name: "orders"}, Target: schema.Name{Schema: "public", Name: "orders"}, Method: MethodText, Rows: 120, TargetRows: 120},
			{
				Table: name, Target: schema.Name{Schema: "shop", Name: "Customers"}, Method: MethodText, Rows: 10, TargetRows: 9,
				Differences: 2, Missing: 1, Changed: 1,
				Samples: []Difference{
					{Kind: Missing, Key: "id=5", SourceSQL: "SELECT 1", TargetSQL: "SELECT 2"},
					{
						Kind: Changed, Key: "id=7", Columns: []string{"age", "name"}, Values: []Value{{"age", &value, nil}},
						SourceSQL: "SELECT 3", TargetSQL: "SELECT 4",
					},
				},
			},
		},
		Uncovered: []string{"public.log: it has no key, and about 900000 rows are more than 200000"}, Paused: 3400 * time.Microsecond,
	}
	r.finish(time.Now())
	r.Elapsed = 1500 * time.Millisecond
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/report.txt", text.Bytes())
	js, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/report.json", append(js, '\n'))

	r.SameInstant, r.Kind, r.Keys, r.Differences = false, Delta, 3, 0
	text.Reset()
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"note: the source was written to", "equal as far as covered (3 keys, 2 tables, 130 rows, 1.5s, applying paused for 3.4ms)"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// sealed is a report as it is kept.
func sealed(t *testing.T, previous string) *Report {
	t.Helper()
	value := "<script>alert(1)</script>"
	name := schema.Name{Schema: "public", Name: "users"}
	r := &Report{
		Kind: Exact, LSN: 1, SameInstant: true, Source: Database{DSN: "old", Version: 150018, Settings: map[string]string{"TimeZone": "UTC"}},
		Target: Database{DSN: "new", Version: 180000}, Rows: 9007199254740993, Differences: 1,
		Tables: []TableReport{
			{Table: name, Target: name, Rows: 1, Differences: 1, Changed: 1, Samples: []Difference{{Kind: Changed, Key: "id=1", Values: []Value{{"v", &value, nil}}, SourceSQL: "SELECT 1"}}},
			{Table: name, Target: name, Rows: 9007199254740993},
		},
	}
	if err := r.Seal(previous); err != nil {
		t.Fatal(err)
	}
	return r
}

// A sealed report can be laid out anew, but not altered anywhere, in JSON or in its page. Catches: a
// chain that skips a table or the head, or that leaves out the report before.
func TestSeal(t *testing.T) {
	t.Parallel()
	r := sealed(t, "before")
	var js, html bytes.Buffer
	if err := r.WriteJSON(&js); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteHTML(&html); err != nil {
		t.Fatal(err)
	}
	embedded, err := Embedded(html.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{js.Bytes(), embedded} {
		digest, previous, err := CheckSeal(data)
		if err != nil || digest != r.Digest || previous != "before" {
			t.Errorf("got %s after %s, error %v, want %s", digest, previous, err, r.Digest)
		}
		for _, change := range [][2]string{
			{`"id=1"`, `"id=2"`},
			{"9007199254740993", "9007199254740992"},
			{`"before"`, `"other"`},
			{`"changed"`, `"missing"`},
			{`"UTC"`, `"GMT"`},
			{`"old"`, `"older"`},
		} {
			altered := bytes.Replace(data, []byte(change[0]), []byte(change[1]), 1)
			if bytes.Equal(altered, data) {
				t.Fatalf("%s is not in the report", change[0])
			}
			if _, _, err := CheckSeal(altered); !errors.Is(err, ErrAltered) {
				t.Errorf("%s for %s: got %v", change[1], change[0], err)
			}
		}
	}
	if other := sealed(t, ""); other.Digest == r.Digest {
		t.Error("the digest does not depend on the report before")
	}
	if strings.Contains(html.String(), "<script>alert") {
		t.Error("a value became part of the page")
	}
	if _, _, err := CheckSeal([]byte(`{"tables": [], "digest": "x"}`)); !errors.Is(err, ErrAltered) {
		t.Errorf("a made-up digest: %v", err)
	}
}

// What may be movement, and what was left out, is not equal; a sequence that is behind and a
// definition that matters are different.
func TestVerdict(t *testing.T) {
	t.Parallel()
	rows := func(standing int64) []TableReport { return []TableReport{{Differences: 2, Standing: standing}} }
	for _, tt := range []struct {
		name string
		r    Report
		want Verdict
	}{
		{"nothing", Report{SameInstant: true}, Equal},
		{"not at one instant", Report{}, Equal},
		{"rows", Report{SameInstant: true, Differences: 1, Tables: rows(0)}, Different},
		{"rows that may be moving", Report{Differences: 1, Tables: rows(0)}, Unknown},
		{"rows that stood still", Report{Differences: 1, Tables: rows(1)}, Different},
		{"uncovered", Report{SameInstant: true, Uncovered: []string{"a"}}, Unknown},
		{"uncovered and different", Report{SameInstant: true, Differences: 1, Uncovered: []string{"a"}}, Different},
		{"definition that matters", Report{SameInstant: true, Definitions: []DefinitionDifference{{Matters: true}}}, Different},
		{"definition that does not", Report{SameInstant: true, Definitions: []DefinitionDifference{{}}}, Equal},
		{"sequence behind", Report{SameInstant: true, Sequences: []SequenceReport{{}}}, Different},
		{"sequence of a follower behind", Report{SameInstant: true, Following: true, Sequences: []SequenceReport{{}}}, Equal},
		{"sequence ahead", Report{SameInstant: true, Sequences: []SequenceReport{{Ahead: true}}}, Equal},
	} {
		if got := tt.r.Verdict(); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
