package api

import (
	"bytes"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/migrate"
)

// document is what of openapi.yaml the tests look at.
type document struct {
	Paths      map[string]map[string]any `yaml:"paths"`
	Components struct {
		Schemas map[string]struct {
			Required   []string                  `yaml:"required"`
			Enum       []string                  `yaml:"enum"`
			Properties map[string]map[string]any `yaml:"properties"`
		} `yaml:"schemas"`
	} `yaml:"components"`
}

func readDocument(t *testing.T) document {
	t.Helper()
	var d document
	if err := yaml.Unmarshal(openAPI, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDocumentHasTheRoutes(t *testing.T) {
	t.Parallel()
	s, err := New(Config{Service: newFake()})
	if err != nil {
		t.Fatal(err)
	}
	var routes, described []string
	for _, r := range s.routes {
		parts := strings.Split(r.Path, "/")
		for i, p := range parts {
			if name, ok := strings.CutPrefix(p, ":"); ok {
				parts[i] = "{" + name + "}"
			}
		}
		routes = append(routes, r.Method+" "+strings.Join(parts, "/"))
	}
	for path, item := range readDocument(t).Paths {
		for method := range item {
			if method != "parameters" {
				described = append(described, strings.ToUpper(method)+" "+path)
			}
		}
	}
	slices.Sort(routes)
	slices.Sort(described)
	if diff := cmp.Diff(routes, described); diff != "" {
		t.Errorf("routes (-) and openapi.yaml (+) differ:\n%s", diff)
	}
}

// Every struct that travels has a schema with its fields, those without omitempty required.
func TestDocumentHasTheFields(t *testing.T) {
	t.Parallel()
	schemas := readDocument(t).Components.Schemas
	seen := map[reflect.Type]bool{}
	var check func(reflect.Type)
	check = func(typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || typ == reflect.TypeFor[time.Time]() || seen[typ] {
			return
		}
		seen[typ] = true
		schema, ok := schemas[typ.Name()]
		if !ok {
			t.Errorf("openapi.yaml has no schema %s", typ.Name())
			return
		}
		var fields, required []string
		for _, f := range reflect.VisibleFields(typ) {
			if f.Anonymous { // its fields are among the visible ones
				continue
			}
			name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
			fields = append(fields, name)
			if opts == "" {
				required = append(required, name)
			}
			if f.Type == reflect.TypeFor[time.Duration]() && !strings.HasSuffix(name, "_ns") {
				t.Errorf("%s.%s: nanoseconds without _ns", typ.Name(), name)
			}
			checkKind(t, typ.Name()+"."+name, f.Type, schema.Properties[name])
			check(f.Type)
		}
		slices.Sort(fields)
		slices.Sort(required)
		slices.Sort(schema.Required)
		if diff := cmp.Diff(fields, slices.Sorted(maps.Keys(schema.Properties))); diff != "" {
			t.Errorf("fields of %s in Go (-) and openapi.yaml (+):\n%s", typ.Name(), diff)
		}
		if diff := cmp.Diff(required, schema.Required); diff != "" && typ != reflect.TypeFor[StartRequest]() && typ != reflect.TypeFor[CommandRequest]() {
			t.Errorf("required of %s in Go (-) and openapi.yaml (+):\n%s", typ.Name(), diff)
		}
	}
	for _, typ := range []reflect.Type{
		reflect.TypeFor[List](), reflect.TypeFor[StepList](), reflect.TypeFor[migrate.Event](), reflect.TypeFor[Problem](), reflect.TypeFor[Health](),
		reflect.TypeFor[StartRequest](), reflect.TypeFor[CommandRequest](), reflect.TypeFor[AmendRequest](),
		reflect.TypeFor[VerifyRequest](), reflect.TypeFor[Comparison](),
		reflect.TypeFor[Commands](),
	} {
		check(typ)
	}
	for name := range schemas {
		if !slices.Contains([]string{"Phase", "Verb", "Side", "LSN"}, name) && !slices.ContainsFunc(slices.Collect(maps.Keys(seen)), func(typ reflect.Type) bool { return typ.Name() == name }) {
			t.Errorf("openapi.yaml has a schema %s that no type has", name)
		}
	}
}

// checkKind compares the JSON type of a Go field with its schema's.
func checkKind(t *testing.T, field string, typ reflect.Type, schema map[string]any) {
	t.Helper()
	if _, ref := schema["$ref"]; ref {
		if kind := typ.Kind(); kind != reflect.Struct && kind != reflect.Pointer && kind != reflect.String && typ != reflect.TypeFor[change.LSN]() {
			t.Errorf("%s is %s in Go, a reference in openapi.yaml", field, typ)
		}
		return
	}
	want := map[reflect.Kind]string{
		reflect.String: "string", reflect.Int: "integer", reflect.Int64: "integer", reflect.Bool: "boolean",
		reflect.Slice: "array", reflect.Map: "object", reflect.Struct: "string", // time.Time
	}[typ.Kind()]
	got := schema["type"]
	if list, ok := got.([]any); ok {
		got = list[0]
	}
	if got != want {
		t.Errorf("%s is %s in Go, type %v in openapi.yaml", field, typ, got)
	}
}

func TestDocumentHasTheWords(t *testing.T) {
	t.Parallel()
	schemas := readDocument(t).Components.Schemas
	var words []string
	for _, p := range phases() {
		words = append(words, string(p))
	}
	if diff := cmp.Diff(words, schemas["Phase"].Enum); diff != "" {
		t.Errorf("phases (-) and openapi.yaml (+):\n%s", diff)
	}
	words = nil
	for _, v := range verbs() {
		words = append(words, string(v))
	}
	if diff := cmp.Diff(words, schemas["Verb"].Enum); diff != "" {
		t.Errorf("verbs (-) and openapi.yaml (+):\n%s", diff)
	}
	for _, code := range []Code{CodeBadRequest, CodeTooLarge, CodeMediaType, CodeFixed, CodeStopping, CodeFailed} {
		if !bytes.Contains(openAPI, []byte(code)) {
			t.Errorf("openapi.yaml does not know code %s", code)
		}
	}
}
