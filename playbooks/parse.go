package playbooks

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// MostWorkers is how many batches are on their way at a time, and so how many sessions have something to do.
const MostWorkers = 8

// An Error is a mistake in a playbook, with the place where it stands.
type Error struct {
	File string
	Line int // 1-based, 0 when the mistake has no place
	Msg  string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %s", e.File, e.Msg)
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg)
}

var (
	reference = regexp.MustCompile(`\$\{([^}]*)\}`)
	nameForm  = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,39}$`)
)

// Parse reads a playbook. file names it in errors; params fill its parameters and, under the keys
// "name", "source" and "target", replace what the playbook says of these.
func Parse(file string, data []byte, params map[string]string) (*Playbook, error) {
	root, err := parseYAML(file, data)
	if err != nil {
		return nil, err
	}
	if err := checkKeys(file, root, reflect.TypeFor[Playbook]()); err != nil {
		return nil, err
	}
	values, err := paramValues(file, root, params)
	if err != nil {
		return nil, err
	}
	for key, v := range params {
		if _, declared := values[key]; !declared && isOverride(key) {
			override(root, key, v)
		}
	}
	fill := filler{file: file, values: values}
	ast.Walk(&fill, root)
	if fill.err != nil {
		return nil, fill.err
	}

	var p Playbook
	if err := yaml.NewDecoder(bytes.NewReader(nil)).DecodeFromNode(root, &p); err != nil {
		return nil, decodeError(file, err)
	}
	p.setDefaults()
	return &p, p.validate(file)
}

// parseYAML returns the document's mapping.
func parseYAML(file string, data []byte) (*ast.MappingNode, error) {
	doc, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, decodeError(file, err)
	}
	if len(doc.Docs) != 1 || doc.Docs[0].Body == nil {
		return nil, hint.Wrap(&Error{File: file, Msg: "want one YAML document"}, "start from an example: ficus playbooks show upgrade")
	}
	switch body := doc.Docs[0].Body.(type) {
	case *ast.MappingNode:
		return body, nil
	default:
		return nil, hint.Wrap(&Error{file, line(body), "a playbook is a mapping of keys to values"}, "start from an example: ficus playbooks show upgrade")
	}
}

// checkKeys refuses keys that the type does not have, and names the nearest one that it has.
func checkKeys(file string, node ast.Node, t reflect.Type) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if list, ok := node.(*ast.SequenceNode); ok && t.Kind() == reflect.Slice {
		for _, item := range list.Values {
			if err := checkKeys(file, item, t.Elem()); err != nil {
				return err
			}
		}
		return nil
	}
	m, ok := node.(ast.MapNode)
	if !ok || t.Kind() != reflect.Struct && t.Kind() != reflect.Map {
		return nil // of another type than the decoder wants, or without keys of ours
	}
	for it := m.MapRange(); it.Next(); {
		var next reflect.Type
		if t.Kind() == reflect.Struct {
			field, err := knownKey(file, it.Key(), t)
			if err != nil {
				return err
			}
			next = field.Type
		} else {
			next = t.Elem()
		}
		if err := checkKeys(file, it.Value(), next); err != nil {
			return err
		}
	}
	return nil
}

// knownKey returns the field of struct type t that a key stands for.
func knownKey(file string, key ast.MapKeyNode, t reflect.Type) (reflect.StructField, error) {
	fields := reflect.VisibleFields(t)
	known := make([]string, len(fields))
	for i, f := range fields {
		known[i] = f.Tag.Get("yaml")
		if known[i] == key.String() {
			return f, nil
		}
	}
	err := &Error{file, line(key), fmt.Sprintf("unknown key %q", key.String())}
	return reflect.StructField{}, hint.Suggest(err, key.String(), known)
}

// paramValues joins the declared parameters with the given ones.
func paramValues(file string, root *ast.MappingNode, given map[string]string) (map[string]string, error) {
	var head struct {
		Params map[string]Param `yaml:"params"`
	}
	if err := yaml.NewDecoder(bytes.NewReader(nil)).DecodeFromNode(root, &head); err != nil {
		return nil, decodeError(file, err)
	}
	values := make(map[string]string, len(head.Params))
	names := slices.Sorted(maps.Keys(head.Params))
	for _, name := range names {
		p := head.Params[name]
		v, ok := given[name]
		switch {
		case ok:
			values[name] = v
		case p.Default != nil:
			values[name] = *p.Default
		default:
			advice := "give it with -p %[1]s=VALUE"
			if isOverride(name) {
				advice = "give it with --%[1]s"
			}
			return nil, hint.Wrap(&Error{File: file, Msg: fmt.Sprintf("parameter %q is missing", name)}, advice, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if _, ok := values[name]; ok || isOverride(name) {
			continue
		}
		err := &Error{File: file, Msg: fmt.Sprintf("unknown parameter %q", name)}
		return nil, hint.Suggest(err, name, names)
	}
	return values, nil
}

// isOverride reports whether a flag of its own sets this key whatever the playbook says.
func isOverride(key string) bool { return key == "name" || key == "source" || key == "target" }

// override sets a top-level key.
func override(root *ast.MappingNode, key, value string) {
	for _, v := range root.Values {
		if v.Key.String() == key {
			v.Value = &ast.StringNode{BaseNode: &ast.BaseNode{}, Token: v.Value.GetToken(), Value: value}
			return
		}
	}
	first := root.Values[0]
	root.Values = append(root.Values, ast.MappingValue(first.Start,
		&ast.StringNode{BaseNode: &ast.BaseNode{}, Token: first.Key.GetToken(), Value: key},
		&ast.StringNode{BaseNode: &ast.BaseNode{}, Token: first.Key.GetToken(), Value: value}))
}

// A filler replaces ${name} in every string value.
type filler struct {
	file   string
	values map[string]string
	err    error
}

// Visit implements [ast.Visitor].
func (f *filler) Visit(n ast.Node) ast.Visitor {
	var text *string
	switch n := n.(type) {
	case *ast.StringNode:
		text = &n.Value
	case *ast.LiteralNode:
		text = &n.Value.Value
	default:
		return f
	}
	*text = reference.ReplaceAllStringFunc(*text, func(ref string) string {
		name := ref[2 : len(ref)-1]
		v, ok := f.values[name]
		if !ok && f.err == nil {
			f.err = hint.Wrap(&Error{f.file, line(n), fmt.Sprintf("parameter %q is not declared", name)},
				"declare it under params")
		}
		return v
	})
	return f
}

// validate checks what types alone do not.
func (p *Playbook) validate(file string) error {
	bad := func(format string, args ...any) error { return &Error{File: file, Msg: fmt.Sprintf(format, args...)} }
	switch {
	case p.Name == "":
		return hint.Wrap(bad("name is missing"), "add name: my-migration, or --name")
	case !nameForm.MatchString(p.Name):
		return hint.Wrap(bad("name %q cannot name database objects", p.Name), "use up to 40 lower-case letters, digits, hyphens and underscores, a letter first")
	case p.Source == "":
		return hint.Wrap(bad("source is missing"), "add --source postgresql://user@host/database")
	case p.Target == "":
		return hint.Wrap(bad("target is missing"), "add --target postgresql://user@host/database")
	case p.Follow.Ack != "stored" && p.Follow.Ack != "applied":
		return bad("follow.ack is %q: want stored or applied", p.Follow.Ack)
	case p.Follow.Verify != "no" && p.Follow.Verify != "live":
		return bad("follow.verify is %q: want no or live", p.Follow.Verify)
	case p.Follow.Workers < 0 || p.Follow.Workers > MostWorkers:
		return bad("follow.workers is %d: want 1 to %d", p.Follow.Workers, MostWorkers)
	case p.Follow.OnConflict != "stop" && p.Follow.OnConflict != "source-wins":
		return bad("follow.on_conflict is %q: want stop or source-wins", p.Follow.OnConflict)
	case p.Follow.DDL != "stop" && p.Follow.DDL != "safe":
		return bad("follow.ddl is %q: want stop or safe", p.Follow.DDL)
	case !slices.Contains([]string{"alarm", "pause-copy", "drop-slot"}, p.Follow.OnMaxSourceWAL):
		return bad("follow.on_max_source_wal is %q: want alarm, pause-copy or drop-slot", p.Follow.OnMaxSourceWAL)
	case p.Follow.OnMaxSourceWAL == "pause-copy" && p.Follow.Ack == "applied":
		return hint.Wrap(bad("follow.on_max_source_wal: pause-copy would wait for ever with follow.ack: applied"),
			"with applied the source keeps all WAL until the copy is done: choose ack: stored, or alarm or drop-slot")
	case p.Follow.OnMaxSourceWAL != "alarm" && p.Follow.MaxSourceWAL == 0:
		return hint.Wrap(bad("follow.on_max_source_wal says what to do at a limit that is not there"), "add follow.max_source_wal, for example 20GB")
	case !slices.Contains([]string{"following", "verifying", "reads-switched", "promoted"}, p.Until):
		return bad("until is %q: want following, verifying, reads-switched or promoted", p.Until)
	case p.Promote.Headroom < 0:
		return bad("promote.sequence_headroom is negative")
	case p.Complete.OldData != "keep" && p.Complete.OldData != "archive":
		return bad("complete.old_data is %q: want keep or archive", p.Complete.OldData)
	case p.RollbackWindow < 0:
		return bad("rollback_window is negative")
	case !slices.Contains([]string{"wait", "cancel", "terminate"}, p.Promote.Blockers):
		return bad("promote.blockers is %q: want wait, cancel or terminate", p.Promote.Blockers)
	case p.Promote.Blockers != "wait" && p.Promote.BlockersAfter >= p.Promote.FenceBudget:
		return hint.Wrap(bad("promote.blockers_after (%s) is not less than promote.fence_budget (%s): everything would be undone before", time.Duration(p.Promote.BlockersAfter), time.Duration(p.Promote.FenceBudget)),
			"clients wait meanwhile: half of the budget is a good value")
	}
	if why := p.badThrottle(); why != "" {
		return bad("%s", why)
	}
	if why := p.badGates(); why != "" {
		return bad("%s", why)
	}
	if why := p.badReads(); why != "" {
		return bad("%s", why)
	}
	if why := p.badRouter(); why != "" {
		return bad("%s", why)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Tables)) {
		if strings.Count(name, ".") != 1 {
			return hint.Wrap(bad("tables: %q is not schema.table", name), "write public.%s", name)
		}
	}
	return nil
}

// decodeError turns the YAML library's errors into ours, with their line.
func decodeError(file string, err error) error {
	if ye, ok := errors.AsType[yaml.Error](err); ok {
		e := &Error{File: file, Msg: ye.GetMessage()}
		if tk := ye.GetToken(); tk != nil && tk.Position != nil {
			e.Line = tk.Position.Line
		}
		return e
	}
	return &Error{File: file, Msg: err.Error()}
}

func line(n ast.Node) int {
	if tk := n.GetToken(); tk != nil && tk.Position != nil {
		return tk.Position.Line
	}
	return 0
}
