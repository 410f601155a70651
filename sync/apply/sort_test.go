package apply

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// It fails when the rows of a statement stay in the order of the stream, and when whole numbers are
// ordered as text.
func TestSort(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ ops, want string }{
		{"-10, -9, -100, --3, -2", "-3 2 9 10 100"},
		{"+10 x, +9 y, +2 z", "2 9 10"},
		{"10>10 x, 9>9 x, 2>2 x", "2 9 10"},
		{"-b, -a, -abcdefgh2, -abcdefgh1", "a abcdefgh1 abcdefgh2 b"},
		{"-7, -07", "07 7"},
	} {
		table := planTable(false)
		stmts, ok := planFolded(planOps(table, test.ops))
		if !ok || len(stmts) != 1 {
			t.Fatalf("%s: %d statements", test.ops, len(stmts))
		}
		var got []string
		for i := range stmts[0].rows {
			got = append(got, string(table.keyValue(&stmts[0].rows[i], 0)))
		}
		if diff := cmp.Diff(test.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.ops, diff)
		}
	}
}
