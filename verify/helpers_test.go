package verify

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

func TestMain(m *testing.M) { pgtest.Main(m, pgtest.CheckLeaks()) }

// pair makes a source and a target with the same content.
func pair(t testing.TB, sql string) (src, dst *pgtest.Database) {
	t.Helper()
	src, dst = pgtest.DB(t), pgtest.DB(t)
	src.Exec(t, sql)
	dst.Exec(t, sql)
	return src, dst
}

// mappings maps every table of src, with rules.
func mappings(t testing.TB, src *pgtest.Database, rules map[string]transform.Rule) []transform.Mapping {
	t.Helper()
	conn := src.Conn(t)
	tables, err := inspect.Tables(t.Context(), conn, inspect.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	maps, err := transform.Compile(tables, rules, func(name schema.Name, expr string) (schema.Type, error) {
		return inspect.Describe(t.Context(), conn, name, expr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return maps
}

// config compares all tables of src.
func config(t testing.TB, src, dst *pgtest.Database) Config {
	t.Helper()
	return Config{Source: src.DSN, Target: dst.DSN, Mappings: mappings(t, src, nil)}
}

func run(t testing.TB, cfg Config) *Report {
	t.Helper()
	return runWith(t, cfg, MethodRecord, MethodText, MethodSHA256)
}

// runWith compares everything by the first method that works.
func runWith(t testing.TB, cfg Config, methods ...Method) *Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	s, err := open(ctx, cfg, methods)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var r *Report
	if cfg.Keys != nil {
		r, err = s.Delta(ctx, cfg.Keys)
	} else {
		r, err = s.Exact(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// table returns the report of one table of schema public.
func (r *Report) table(t testing.TB, name string) TableReport {
	t.Helper()
	for _, tr := range r.Tables {
		if tr.Table.Name == name {
			return tr
		}
	}
	t.Fatalf("no table %q in the report", name)
	return TableReport{}
}

// summary is "missing extra changed [samples]", the samples in order of their text.
func summary(tr TableReport) string {
	samples := make([]string, len(tr.Samples))
	for i, s := range tr.Samples {
		samples[i] = fmt.Sprintf("%s %s %v", s.Kind, s.Key, s.Columns)
	}
	slices.Sort(samples)
	return fmt.Sprintf("%d %d %d %v", tr.Missing, tr.Extra, tr.Changed, samples)
}
