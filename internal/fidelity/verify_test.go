package fidelity

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
	"github.com/ficus-migrate/ficus/verify"
)

// The exact verification tells every value from every other one that has another text: a proof that
// says "equal" of what differs would make all other tests here worthless.
func TestVerificationSeesEveryValue(t *testing.T) {
	t.Parallel()
	from, to := pgtest.DB(t), pgtest.DB(t)
	want := map[string]int64{}
	for _, k := range kinds() {
		if k.since > from.Major {
			continue
		}
		samples := k.samples(from.Major)
		var left, right strings.Builder
		for _, b := range []*strings.Builder{&left, &right} {
			fmt.Fprintf(b, "%s;\nCREATE TABLE v_%s (id int PRIMARY KEY, v %s, big text, n int);\n", k.setup, k.name, k.typ())
		}
		for i, s := range samples {
			fmt.Fprintf(&left, "INSERT INTO v_%s VALUES (%d, %s);\n", k.name, i, s.sql)
			fmt.Fprintf(&right, "INSERT INTO v_%s VALUES (%d, %s);\n", k.name, i, samples[(i+1)%len(samples)].sql)
		}
		from.Exec(t, left.String())
		to.Exec(t, right.String())
		// What PostgreSQL itself prints the same is the same.
		want["v_"+k.name] = from.Int(t, fmt.Sprintf(`SELECT count(*) FROM v_%s AS a JOIN v_%[1]s AS b ON b.id = (a.id + 1) %% %d
			WHERE ROW(a.v)::text COLLATE "C" <> ROW(b.v)::text`, k.name, len(samples)))
	}
	tables, err := inspect.Tables(t.Context(), from.Conn(t), inspect.Filter{})
	must(t, err)
	mappings, err := transform.Compile(tables, nil, nil)
	must(t, err)
	report, err := verify.Run(t.Context(), verify.Config{Source: from.DSN, Target: to.DSN, Mappings: mappings})
	must(t, err)
	for _, tr := range report.Tables {
		if tr.Changed != want[tr.Table.Name] || tr.Differences != tr.Changed {
			t.Errorf("%s: %d changed rows of %d differences, want %d", tr.Table.Display(), tr.Changed, tr.Differences, want[tr.Table.Name])
		}
	}
}
