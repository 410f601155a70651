package playbooks

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/hint"
)

const minimal = `
name: m
source: ${source}
target: b
params:
  source: {description: s}
  big: {default: 64MB}
gates: {max_lag: "${big}", proof_age: 2d}
promote: {reads: "10, 50"}
tables:
  public.users:
    columns: {mail: email}
    where: |
      note <> '${big}'
`

func TestParse(t *testing.T) {
	t.Parallel()
	p, err := Parse("m.yaml", []byte(minimal), map[string]string{"source": "postgresql://u:p: {x}@h/d", "name": "other"})
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "other" || p.Source != "postgresql://u:p: {x}@h/d" || p.Target != "b" {
		t.Errorf("name %q source %q target %q", p.Name, p.Source, p.Target)
	}
	if p.Gates.MaxLag != 64<<20 || p.Gates.ProofAge != Duration(48*time.Hour) || !*p.Gates.Approval {
		t.Errorf("gates %+v", p.Gates)
	}
	if diff := cmp.Diff(Percentages{10, 50}, p.Promote.Reads); diff != "" {
		t.Error(diff)
	}
	if got := p.Tables["public.users"].Where; got != "note <> '64MB'\n" {
		t.Errorf("where %q", got)
	}
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, yaml, want, hint string }{
		{"unknown key", "name: m\nsource: a\ntarget: b\nselekt: {}", `f.yaml:4: unknown key "selekt"`, `did you mean "select"?`},
		{"unknown nested key", "name: m\nsource: a\ntarget: b\npromote:\n  reeds: [1]", `f.yaml:5: unknown key "reeds"`, `did you mean "reads"?`},
		{"unknown key in a table", "name: m\nsource: a\ntarget: b\ntables:\n  public.a:\n    wehre: x", `f.yaml:6: unknown key "wehre"`, `did you mean "where"?`},
		{"far key", "name: m\nzzzzzz: 1", `unknown key "zzzzzz"`, "known here: name, "},
		{"bad amount", "name: m\nsource: a\ntarget: b\ngates: {max_lag: 5 parsecs}", `"5 parsecs" is not an amount`, ""},
		{"bad time", "name: m\nsource: a\ntarget: b\ngates: {proof_age: soon}", `"soon" is not a time`, ""},
		{"falling reads", "name: m\nsource: a\ntarget: b\npromote: {reads: [50, 10]}", "rising percentages", ""},
		{"syntax", "name: [", "f.yaml:1:", ""},
		{"empty", "", "want one YAML document", "ficus playbooks show upgrade"},
		{"list", "- a", "a playbook is a mapping", ""},
		{"undeclared parameter", "name: m\nsource: ${x}\ntarget: b", `f.yaml:2: parameter "x" is not declared`, "declare it under params"},
		{"missing parameter", "name: m\nparams: {x: {}}\nsource: ${x}\ntarget: b", `parameter "x" is missing`, "-p x=VALUE"},
		{"no target", "name: m\nsource: a", "target is missing", "--target"},
		{"bad name", "name: M m\nsource: a\ntarget: b", `name "M m"`, "lower-case"},
		{"bad table", "name: m\nsource: a\ntarget: b\ntables: {users: {}}", `"users" is not schema.table`, "public.users"},
		{"bad router", "name: m\nsource: a\ntarget: b\nrouter: {type: haproxy}", "want gateway, http, pgbouncer, hooks or none", ""},
		{"no door", "name: m\nsource: a\ntarget: b\nrouter: {type: http}", "is needed there", ""},
		{"half a door", "name: m\nsource: a\ntarget: b\nrouter: {type: http, http: {source: http://a}}", "addresses of both", ""},
		{"reads of a route", "name: m\nsource: a\ntarget: b\nrouter: {type: http, http: {source: http://a, target: http://b, routes: [{match: /, reads: 101}]}}", "no percentage", ""},
		{"dead commands", "name: m\nsource: a\ntarget: b\nrouter: {type: http, http: {source: http://a, target: http://b, commands: {on_dead: wait}}}", "want stop or skip", ""},
		{"no bouncer", "name: m\nsource: a\ntarget: b\nrouter: {type: pgbouncer}", "at least one is needed", ""},
		{"two ways", "name: m\nsource: a\ntarget: b\nrouter: {type: pgbouncer, pgbouncers: [{admin: a, database: d, file: f, command: [c]}]}", "d needs one of file and command", ""},
		{"same reads", "name: m\nsource: a\ntarget: b\nrouter: {type: pgbouncer, pgbouncers: [{admin: a, database: d, reads: d, file: f}]}", "reads of d need a name", ""},
		{"no release", "name: m\nsource: a\ntarget: b\nrouter: {type: hooks, hooks: {hold: {http: h}}}", "release is missing", ""},
		{"hook of another", "name: m\nsource: a\ntarget: b\nrouter: {hooks: {release: {http: h}}}", "goes with router.type: hooks", ""},
		{"empty hook", "name: m\nsource: a\ntarget: b\nrouter: {type: hooks, hooks: {release: {timeout: 1s}}}", "release needs one of", ""},
		{"a key without its certificate", "name: m\nsource: a\ntarget: b\nrouter: {tls: {key: k}}", "needs both cert and key", ""},
		{"TLS of nothing", "name: m\nsource: a\ntarget: b\nrouter: {tls: {required: true}}", "needs both cert and key", ""},
		{"TLS of another", "name: m\nsource: a\ntarget: b\nrouter: {type: none, tls: {cert: c, key: k}}", "go with router.type: gateway", ""},
		{"users of another process", "name: m\nsource: a\ntarget: b\nrouter: {control: [s], auth_query: q}", "give them to ficus gateway", ""},
		{"database of nothing", "name: m\nsource: a\ntarget: b\nrouter: {database: shop}", "goes with router.control", ""},
		{"bad share", "name: m\nsource: a\ntarget: b\nrouter: {shadow: {share: 2}}", "router.shadow.share is 2", ""},
		{"gate without reads", "name: m\nsource: a\ntarget: b\ngates: {shadow: {min: 5}}", "gates.shadow needs shadow reads", ""},
		{"bad writes", "name: m\nsource: a\ntarget: b\nrouter: {reads: {your_writes: always}}", "want no, owner or wait", ""},
		{"reads of another", "name: m\nsource: a\ntarget: b\nrouter: {type: none, reads: {by: transaction}}", "go with router.type: gateway", ""},
		{"bad until", "name: m\nsource: a\ntarget: b\nuntil: now", `until is "now"`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := Parse("f.yaml", []byte(tt.yaml), nil)
			var pe *Error
			if !errors.As(err, &pe) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an Error with %q", err, tt.want)
			}
			if got := hint.Of(err); !strings.Contains(got, tt.hint) {
				t.Errorf("hint %q, want %q in it", got, tt.hint)
			}
		})
	}
	if _, err := Parse("f.yaml", []byte("name: m\nsource: a\ntarget: b\nparams: {listen: {default: x}}"), map[string]string{"listn": "y"}); err == nil ||
		hint.Of(err) != `did you mean "listen"?` {
		t.Errorf("unknown parameter: %v, hint %q", err, hint.Of(err))
	}
}

func TestRecipes(t *testing.T) {
	t.Parallel()
	if diff := cmp.Diff([]string{"cluster-move", "read-replica", "schema-change", "upgrade"}, Recipes()); diff != "" {
		t.Error(diff)
	}
	for _, name := range Recipes() {
		data, err := Recipe(name)
		if err != nil {
			t.Fatal(err)
		}
		p, err := Parse(name, data, map[string]string{"source": "s", "target": "t"})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.Name != name || p.Description == "" {
			t.Errorf("%s: name %q, description %q", name, p.Name, p.Description)
		}
	}
	if _, err := Recipe("upgrad"); err == nil || !strings.Contains(hint.Of(err), `"upgrade"`) {
		t.Errorf("got %v with hint %q", err, hint.Of(err))
	}
}

// TestSchema holds the published JSON Schema to the parser's types.
func TestSchema(t *testing.T) {
	t.Parallel()
	got, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("../docs/playbook.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("docs/playbook.schema.json is old: run make generate\n%s", diff)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal))
	for _, name := range Recipes() {
		data, err := Recipe(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse("f.yaml", data, map[string]string{"source": "s", "target": "t"})
		if err == nil && p.Name == "" {
			t.Error("accepted a playbook without a name")
		}
	})
}
