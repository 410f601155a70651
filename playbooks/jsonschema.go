package playbooks

import (
	"encoding/json"
	"fmt"
	"reflect"

	"github.com/invopop/jsonschema"
)

//go:generate go run github.com/ficus-migrate/ficus/cmd/ficus playbooks schema --output ../docs/playbook.schema.json

// Schema returns the JSON Schema of a playbook, indented, for editors.
func Schema() ([]byte, error) {
	r := jsonschema.Reflector{
		DoNotReference:             true,
		FieldNameTag:               "yaml",
		RequiredFromJSONSchemaTags: true,
		Mapper:                     mapValue,
	}
	s := r.Reflect(&Playbook{})
	s.Title = "Ficus playbook"
	out, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("playbook schema: %w", err)
	}
	return append(out, '\n'), nil
}

// mapValue describes the types with a text form of their own.
func mapValue(t reflect.Type) *jsonschema.Schema {
	switch t {
	case reflect.TypeFor[Bytes]():
		return &jsonschema.Schema{OneOf: []*jsonschema.Schema{{Type: "integer"}, {Type: "string"}}}
	case reflect.TypeFor[Duration]():
		return &jsonschema.Schema{Type: "string"}
	case reflect.TypeFor[Percentages]():
		return &jsonschema.Schema{OneOf: []*jsonschema.Schema{{Type: "array", Items: &jsonschema.Schema{Type: "integer"}}, {Type: "string"}}}
	}
	return nil
}
