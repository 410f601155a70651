package schema_test

import (
	"testing"

	"github.com/ficus-migrate/ficus/schema"
)

// FuzzParseName reads names of tables, as the manifest of a copy has them: a name that is read prints
// as one that is read as the same.
func FuzzParseName(f *testing.F) {
	for _, s := range []string{`public.t`, `"public"."t"`, `"a.b"."c""d"`, `"`, `""."x"`, `a.b.c`, `.`, `"a"b."c"`, "\"\x00\".\"x\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := schema.ParseName(s)
		if err != nil {
			return
		}
		if again, err := schema.ParseName(n.String()); err != nil || again != n {
			t.Fatalf("%q: %+v came back as %+v, %v", s, n, again, err)
		}
	})
}
