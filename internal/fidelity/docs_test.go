package fidelity

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/verify"
)

const (
	docs  = "../../docs/fidelity.md"
	begin = "<!-- types: written by go test ./internal/fidelity -run TestTypes -update -->\n"
	end   = "<!-- end of types -->\n"
)

// checkDocs compares the table of types in docs/fidelity.md with what a run saw.
func checkDocs(t *testing.T, p *pair, report *verify.Report) {
	t.Helper()
	old, err := os.ReadFile(docs)
	must(t, err)
	before, rest, ok := strings.Cut(string(old), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no place for the table of types", docs)
	}
	text := before + begin + typeTable(p, report) + end + after
	if *update {
		must(t, os.WriteFile(docs, []byte(text), 0o644))
		return
	}
	if diff := cmp.Diff(string(old), text); diff != "" {
		t.Errorf("%s is not what the test sees; -update writes it anew (-file +seen):\n%s", docs, diff)
	}
}

// typeTable returns a row for each kind: what was moved, how, and found by what.
func typeTable(p *pair, report *verify.Report) string {
	methods := map[string]verify.Method{}
	for _, tr := range report.Tables {
		methods[tr.Table.Name] = tr.Method
	}
	var b strings.Builder
	b.WriteString("| type | from version | values tried | copied as | as a key | without key | row hash |\n|---|---|---|---|---|---|---|\n")
	for _, k := range kinds() {
		table := "v_" + k.name
		since, key := "13", "no order"
		if k.since > 0 {
			since = fmt.Sprint(k.since)
		}
		if k.key {
			key = "yes"
		}
		values := len(k.values)
		for _, more := range k.later {
			values += len(more)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %d | %s | %s | yes | %s |\n", k.typ(), since, values, p.formats[table], key, methods[table])
	}
	return b.String()
}
