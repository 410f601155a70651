package transform

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestIdentifiers(t *testing.T) {
	t.Parallel()
	tests := map[string][]string{
		``:                                   nil,
		`a + users.B`:                        {"a", "b", "users"},
		`lower ( "eMail" ) || "q""x"`:        {"eMail", `q"x`},
		`'a' || 'it''s b'`:                   nil,
		`E'a\'b' || c || x'ff' || B'1'`:      {"c"},
		`1.E'x' || 1e5 + 2.5`:                nil,
		`$$ a $$ || $t$ b $$ $t$ || c`:       {"c"},
		"a -- b\n + c /* d */":               {"a", "c"},
		`größe + 名前`:                         {"größe", "名前"},
		`open'`:                              {"open"},
		`"open`:                              {"open"},
		`$1 + $`:                             nil,
		`CASE WHEN f(x) THEN y$1 ELSE 0 END`: {"case", "else", "end", "then", "when", "x", "y$1"},
	}
	for sql, want := range tests {
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(identifiers(sql)))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", sql, diff)
		}
	}
}

func FuzzWords(f *testing.F) {
	f.Add(`E'a\'b' || "q""x" -- c`)
	f.Fuzz(func(_ *testing.T, sql string) {
		words(sql)
		bareIdentifier(sql)
		_, _ = parseName(sql, "public")
	})
}
