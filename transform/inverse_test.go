package transform_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

func TestInverse(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		rule  transform.Rule
		query string
		lossy []string
	}{
		"nothing": {query: `SELECT "id", "name", "eMail", "age", "note" FROM "public"."users"`},
		"renames": {
			rule:  transform.Rule{To: "shop.c", Columns: map[string]string{"cid": "id", "email": `"eMail"`}},
			query: `SELECT "cid" AS "id", "name", "email" AS "eMail", "age", "note" FROM "shop"."c"`,
		},
		"dropped with default, or nullable": {
			rule:  transform.Rule{Drop: []string{"age", "note"}},
			query: `SELECT "id", "name", "eMail" FROM "public"."users"`,
		},
		"dropped, must not be null": {
			rule:  transform.Rule{Drop: []string{"name", "initial"}},
			lossy: []string{`column "name" is dropped, must not be null and has no default`},
		},
		"computed with inverse": {
			rule: transform.Rule{
				Columns: map[string]string{"label": "upper(name)"}, Drop: []string{"name", "initial"},
				Inverse: map[string]string{"name": "lower(label)"},
			},
			query: `SELECT "id", "eMail", "age", "note", (lower(label)) AS "name" FROM "public"."users"`,
		},
		"inverse that is a column": {
			rule: transform.Rule{
				Columns: map[string]string{"label": "upper(name)"}, Drop: []string{"name", "initial"},
				Inverse: map[string]string{"name": "label"},
			},
			query: `SELECT "id", "label" AS "name", "eMail", "age", "note" FROM "public"."users"`,
		},
		"computed without inverse": {
			rule:  transform.Rule{Columns: map[string]string{"age": "age * 12"}},
			lossy: []string{`column "age" went into "age", which has no inverse`},
		},
		"computed extra column": {
			rule:  transform.Rule{Columns: map[string]string{"age_months": "age * 12"}},
			query: `SELECT "id", "name", "eMail", "age", "note" FROM "public"."users"`,
		},
		"replaced by a constant": {
			rule:  transform.Rule{Columns: map[string]string{"note": "'x'::text"}},
			query: `SELECT "id", "name", "eMail", "age" FROM "public"."users"`,
		},
		"computed way back beside a dropped column": {
			rule: transform.Rule{
				Columns: map[string]string{"age": "age * 12"}, Drop: []string{"note"},
				Inverse: map[string]string{"age": "age / 12"},
			},
			lossy: []string{`column "note" is dropped, and rows computed on the way back would lose its value`},
		},
		"several reasons": {
			rule: transform.Rule{Where: "age > 17", Columns: map[string]string{"label": "name || note"}, Drop: []string{"name", "note", "initial"}},
			lossy: []string{
				"a condition leaves rows behind that the target does not know",
				`column "name" went into "label", which has no inverse`,
				`column "note" went into "label", which has no inverse`,
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inv, err := compileUsers(t, tt.rule).Inverse()
			if lossy, ok := errors.AsType[*transform.LossyError](err); ok {
				if !errors.Is(err, transform.ErrLossy) || lossy.Table != users().Name {
					t.Errorf("error %v: not ErrLossy, or of another table", err)
				}
				if diff := cmp.Diff(tt.lossy, lossy.Reasons); diff != "" {
					t.Errorf("reasons (-want +got):\n%s", diff)
				}
				return
			}
			if err != nil || tt.lossy != nil {
				t.Fatalf("got error %v, want reasons %q", err, tt.lossy)
			}
			if diff := cmp.Diff(tt.query, inv.Query()); diff != "" {
				t.Errorf("query (-want +got):\n%s", diff)
			}
			if inv.Target != users().Name || len(inv.Key) != 1 || inv.Key[0].Target != "id" {
				t.Errorf("target %v, key %v; want the source's", inv.Target, inv.Key)
			}
		})
	}
}

func TestInverseRoundTrip(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	db.Exec(t, usersDDL)
	db.Exec(t, `INSERT INTO users (name, "eMail", age, note) SELECT 'u' || i, i || '@x.org', i, repeat('n', i) FROM generate_series(1, 20) i`)
	ms, err := transform.Compile([]schema.Table{users()}, map[string]transform.Rule{"users": {
		To:      "shop.customers",
		Columns: map[string]string{"cid": "id", "months": "age * 12"},
		Drop:    []string{"age"},
		Inverse: map[string]string{"age": "months / 12"},
	}}, describeIn(t, db))
	if err != nil {
		t.Fatal(err)
	}
	inv, err := ms[0].Inverse()
	if err != nil {
		t.Fatal(err)
	}
	before := db.Strings(t, "SELECT * FROM users ORDER BY id")
	db.Exec(t, transform.CreateTable(&ms[0]))
	db.Exec(t, "INSERT INTO shop.customers ("+schema.QuoteIdents(ms[0].TargetColumns())+") "+ms[0].Query())
	db.Exec(t, "TRUNCATE users")
	db.Exec(t, "INSERT INTO users ("+schema.QuoteIdents(inv.TargetColumns())+") OVERRIDING SYSTEM VALUE "+inv.Query())
	if diff := cmp.Diff(before, db.Strings(t, "SELECT * FROM users ORDER BY id")); diff != "" {
		t.Errorf("rows after going there and back (-want +got):\n%s", diff)
	}
}
