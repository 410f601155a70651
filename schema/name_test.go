package schema

import (
	"encoding/json"
	"testing"
)

func TestNameRoundTrip(t *testing.T) {
	t.Parallel()
	for _, want := range []Name{
		{"public", "users"}, {"public", "Order Items"}, {`q"uote`, `a.b`}, {"schéma", `""`}, {"s", "1st"}, {"", ""}, {"s", `\`},
	} {
		data, err := json.Marshal(map[Name]Name{want: want})
		if err != nil {
			t.Fatal(err)
		}
		var got map[Name]Name
		if err := json.Unmarshal(data, &got); err != nil || got[want] != want {
			t.Errorf("%s: got %v, %v", data, got, err)
		}
	}
}

func TestParseNameErrors(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "users", `"public.users`, "a.b.c", `a."b"c`, `"a"b.c`} {
		if n, err := ParseName(s); err == nil {
			t.Errorf("%q: got %v, want an error", s, n)
		}
	}
}
