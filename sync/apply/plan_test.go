package apply

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/transform"
)

// planTable returns a table of columns k and a, with key k or without key.
func planTable(whole bool) *table {
	k, a := &targetColumn{name: "k", base: "text", full: "text", equal: "="}, &targetColumn{name: "a", base: "text", full: "text", equal: "="}
	t := &table{
		mapping: &transform.Mapping{}, target: &target{name: schema.Name{Schema: "s", Name: "t"}}, whole: whole, updates: map[shape]verb{},
		params: []param{{name: "k"}, {name: "a"}}, columns: []column{{k, 0, ""}, {a, 1, ""}},
	}
	if !whole {
		t.key = []keyPart{{k, 0}}
	}
	return t
}

// planOps reads "+k a" for an insert, "k>k a" for an update, "-k" for a delete, and, without key,
// whole rows "k a>k a", "-k a". A value ~ is unchanged.
func planOps(t *table, text string) []op {
	values := func(s string) (vs []change.Value) {
		for v := range strings.FieldsSeq(s) {
			if v == "~" {
				vs = append(vs, change.Value{Kind: change.Unchanged})
			} else {
				vs = append(vs, change.Value{Kind: change.Text, Data: []byte(v)})
			}
		}
		return vs
	}
	var ops []op
	for o := range strings.SplitSeq(text, ",") {
		o = strings.TrimSpace(o)
		switch before, after, isUpdate := strings.Cut(o, ">"); {
		case isUpdate:
			ops = append(ops, op{table: t, kind: opUpdate, key: values(before), row: values(after)})
		case o[0] == '+':
			ops = append(ops, op{table: t, kind: opInsert, row: values(o[1:])})
		default:
			ops = append(ops, op{table: t, kind: opDelete, key: values(o[1:])})
		}
	}
	return ops
}

// It fails when an update is left out of the net effect, and when a value that an update did not send is
// not taken from the older image.
func TestFold(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, ops string
		whole     bool
		want      []string // verb(mask): key>row ...
	}{
		{"apart", "+1 a, 2>2 b, -3", false, []string{"delete: 3", "update: 2>2 b", "insert: >1 a"}},
		{"one row", "1>1 a, 1>1 b, 1>1 c", false, []string{"update: 1>1 c"}},
		{"came and went", "+1 a, 1>1 b, -1", false, nil},
		{"new and changed", "+1 a, 1>2 b", false, []string{"insert: >2 b"}},
		{"replaced", "-1, +1 a, 1>1 b", false, []string{"delete: 1", "insert: >1 b"}},
		{"unchanged stays", "1>1 a, 1>1 ~", false, []string{"update: 1>1 a"}},
		{"unchanged throughout", "1>2 ~, 2>3 ~", false, []string{"update(.u): 1>3 ~"}},
		{"nothing to write", "1>1 ~", false, nil},
		{"changed and gone", "1>2 a, -2", false, []string{"delete: 1"}},
		{"swap", "1>9 a, 2>1 b, 9>2 a", false, []string{"update: 1>2 a 2>1 b"}},
		{"chain", "1>2 a, 2>3 b, +1 c, +2 d", false, []string{"update: 1>3 b", "insert: >1 c >2 d"}},
		{"moved into a gone one", "-2, 1>2 a", false, []string{"delete: 2", "update: 1>2 a"}},
		{"whole", "x y>x z, -x z, +x y, x y>q r", true, []string{"delete: x y", "insert: >q r"}},
		{"whole, duplicates", "+x y, +x y, -x y", true, []string{"insert: >x y"}},
		{"whole, more gone than new", "+x y, +x y, -x y, -x y, -x y", true, []string{"delete: x y"}},
		{"whole, chain", "x y>x z, x z>x w", true, []string{"update: x y>x w"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			stmts, ok := planFolded(planOps(planTable(tc.whole), tc.ops))
			if !ok {
				t.Fatal("not folded")
			}
			var got []string
			for _, s := range stmts {
				got = append(got, stmtText(&s))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.ops, diff)
			}
		})
	}
}

func stmtText(s *stmt) string {
	text := s.shape.verb.String()
	if s.shape.mask != "" {
		text += "(" + s.shape.mask + ")"
	}
	text += ":"
	image := func(vs []change.Value) string {
		var words []string
		for _, v := range vs {
			if v.Kind == change.Unchanged {
				words = append(words, "~")
			} else {
				words = append(words, string(v.Data))
			}
		}
		return strings.Join(words, " ")
	}
	for _, r := range s.rows {
		text += " " + image(r.key)
		if r.row != nil {
			text += ">" + image(r.row)
		}
	}
	return text
}

func TestTextArrays(t *testing.T) {
	t.Parallel()
	rows := []imagePair{
		{row: []change.Value{{Kind: change.Text, Data: []byte("ab")}}},
		{row: []change.Value{{Kind: change.Null}}},
		{row: []change.Value{{Kind: change.Text}}},
	}
	got := textArrays([]arg{{index: 0}}, rows)[0]
	var want []byte
	for _, n := range []uint32{1, 1, textOID, 3, 1, 2} {
		want = binary.BigEndian.AppendUint32(want, n)
	}
	want = append(want, "ab\xff\xff\xff\xff\x00\x00\x00\x00"...)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestRefusalHidesValues: what PostgreSQL quotes in a data exception is a row's value.
func TestRefusalHidesValues(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ code, message, want string }{
		{"22P02", `invalid input syntax for type integer: "a "quoted" secret"`, `invalid input syntax for type integer: "…" (SQLSTATE 22P02)`},
		{"22003", `value "99" is out of range for type integer`, `value "…" is out of range for type integer (SQLSTATE 22003)`},
		{"23505", `duplicate key value violates unique constraint "t_pkey"`, `duplicate key value violates unique constraint "t_pkey" (SQLSTATE 23505)`},
	} {
		err := withoutValues(fmt.Errorf("wrapped: %w", &pgconn.PgError{Code: tc.code, Message: tc.message, Detail: "Key (id)=(secret)"}))
		if err.Error() != tc.want {
			t.Errorf("got %s, want %s", err, tc.want)
		}
	}
}
