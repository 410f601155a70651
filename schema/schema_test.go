package schema

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestName(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name             Name
		quoted, readable string
	}{
		{Name{"public", "users"}, `"public"."users"`, `public.users`},
		{Name{"public", "_x9"}, `"public"."_x9"`, `public._x9`},
		{Name{"public", "Users"}, `"public"."Users"`, `public."Users"`},
		{Name{"my app", "9lives"}, `"my app"."9lives"`, `"my app"."9lives"`},
		{Name{"public", `a"b`}, `"public"."a""b"`, `public."a""b"`},
		{Name{"public", "größe"}, `"public"."größe"`, `public."größe"`},
		{Name{"public", "a.b"}, `"public"."a.b"`, `public."a.b"`},
		{Name{"public", ""}, `"public".""`, `public.""`},
	} {
		if got := tt.name.String(); got != tt.quoted {
			t.Errorf("String of %#v: got %s, want %s", tt.name, got, tt.quoted)
		}
		if got := tt.name.Display(); got != tt.readable {
			t.Errorf("Display of %#v: got %s, want %s", tt.name, got, tt.readable)
		}
		if text, err := tt.name.MarshalText(); err != nil || string(text) != tt.readable {
			t.Errorf("MarshalText of %#v: got %s, %v", tt.name, text, err)
		}
	}
}

func TestQuote(t *testing.T) {
	t.Parallel()
	if got, want := QuoteIdents([]string{"a", `b"`, "ü c"}), `"a", "b""", "ü c"`; got != want {
		t.Errorf("QuoteIdents: got %s, want %s", got, want)
	}
	for in, want := range map[string]string{
		"":        `''`,
		"it's":    `'it''s'`,
		`a\b`:     ` E'a\\b'`,
		`\'; --`:  ` E'\\''; --'`,
		"größe\n": "'größe\n'",
	} {
		if got := QuoteLiteral(in); got != want {
			t.Errorf("QuoteLiteral(%q): got %s, want %s", in, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	tab := Table{
		Columns: []Column{{Name: "id"}, {Name: "v"}},
		Keys:    []Key{{Name: "pk", Primary: true}, {Name: "u", Immediate: true}},
	}
	if c := tab.Column("v"); c != &tab.Columns[1] {
		t.Errorf("Column(v): got %+v", c)
	}
	if c := tab.Column("V"); c != nil {
		t.Errorf("Column(V): got %+v, want nil", c)
	}
	if k := tab.PrimaryOrFirstKey(); k == nil || k.Name != "u" {
		t.Errorf("PrimaryOrFirstKey: got %+v, want the immediate one", k)
	}
}

func TestFilter(t *testing.T) {
	t.Parallel()
	names := []Name{
		{"public", "users"},
		{"public", "users_old"},
		{"public", "Users"},
		{"app", "users"},
		{"app", "audit_log"},
		{"odd.schema", "a*b"},
		{"odd.schema", "axb"},
		{"app", "größe"},
		{"app", "two\nlines"},
	}
	for _, tt := range []struct {
		name string
		f    Filter
		want []int
	}{
		{"everything", Filter{}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}},
		{"schema", Filter{Include: []string{"public.*"}}, []int{0, 1, 2}},
		{"one table, case kept", Filter{Include: []string{"public.Users"}}, []int{2}},
		{"no schema: any", Filter{Include: []string{"users"}}, []int{0, 3}},
		{"wildcard in the middle", Filter{Include: []string{"p*c.u*s"}}, []int{0}},
		{"exclude wins", Filter{Include: []string{"app.*"}, Exclude: []string{"*.audit_*", "app.two*"}}, []int{3, 7}},
		{"exclude alone", Filter{Exclude: []string{"app.*", "public.*"}}, []int{5, 6}},
		{"quoted star and dot", Filter{Include: []string{`"odd.schema"."a*b"`}}, []int{5}},
		{"plain star", Filter{Include: []string{`"odd.schema".a*b`}}, []int{5, 6}},
		{"unicode", Filter{Include: []string{"app.gr*ße"}}, []int{7}},
		{"no regular expressions", Filter{Include: []string{"app.user[s]", "app.user(s)?"}}, nil},
	} {
		m, err := tt.f.Compile()
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var got []int
		for i, n := range names {
			if m.Match(n) {
				got = append(got, i)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: names chosen (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestFilterRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", ".", "public.", ".users", "a.b.c", `"public.users`, "a\xff"} {
		if _, err := (Filter{Exclude: []string{s}}).Compile(); err == nil {
			t.Errorf("pattern %q: no error", s)
		}
	}
}

func TestUnmatched(t *testing.T) {
	t.Parallel()
	m, err := Filter{Include: []string{"public.usres", "public.*", "app.users"}}.Compile()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"public.usres", "app.users"}, m.Unmatched([]Name{{"public", "users"}})); diff != "" {
		t.Errorf("unmatched (-want +got):\n%s", diff)
	}
}
