package migrate

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestOperationsPage: whatever status can show, the page for the person at 3 a.m. says what to do: each phase, each thing
// that a migration waits for, each brake, each row, each reason why a rollback is not safe. The words are taken from
// the code.
func TestOperationsPage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Join(strings.Fields(string(text)), " ")
	for _, p := range phaseNotes() {
		if !strings.Contains(string(text), "\n| `"+p[0]+"`") {
			t.Errorf("no row for phase %s", p[0])
		}
	}
	waits := []string{string(Promote), string(Rollback), string(Resume), ThrottleOperator, waitsForDriver}
	waits = append(waits, literals(t, "gate.go", `^[a-z]+$`, func(n ast.Node) bool { _, ok := n.(*ast.ValueSpec); return ok })...)
	for _, file := range []string{"brakes", "servers", "shadow", "window"} {
		waits = append(waits, literals(t, "gates/"+file+".go", `^[a-z]+(-[a-z]+)*$`, isName)...)
	}
	if len(waits) < 16 {
		t.Errorf("the code has only %q to wait for", waits)
	}
	for _, w := range waits {
		if !strings.Contains(page, "`"+w+"`") {
			t.Errorf("nothing about waiting for %s", w)
		}
	}
	for file, form := range map[string]string{"drive.go": `^  [a-z]|^ ends$`, "wire_reads.go": `^  [a-z]`} {
		for _, row := range literals(t, filepath.Join("../cmd/ficus", file), form, nil) {
			if row = strings.TrimSpace(row); !strings.Contains(page, "`"+row) && !strings.Contains(page, row+"`") {
				t.Errorf("nothing about row %q", row)
			}
		}
	}
	verbs := regexp.MustCompile(`%[a-z]`)
	for _, reason := range literals(t, "verdict.go", ` .* .* `, nil) {
		for _, part := range verbs.Split(reason, -1) {
			if part = strings.TrimSpace(part); !strings.Contains(page, part) {
				t.Errorf("nothing about %q of %q", part, reason)
			}
		}
	}
}

// isName reports whether a node gives something its name.
func isName(n ast.Node) bool {
	kv, ok := n.(*ast.KeyValueExpr)
	if !ok {
		return false
	}
	key, ok := kv.Key.(*ast.Ident)
	return ok && key.Name == "name"
}

// literals returns the strings of a file that match form, within nodes that are wanted; nil: everywhere.
func literals(t *testing.T, file, form string, wanted func(ast.Node) bool) (all []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(form)
	collect := func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil && match.MatchString(s) {
				all = append(all, s)
			}
		}
		return true
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		if n != nil && (wanted == nil || wanted(n)) {
			ast.Inspect(n, collect)
			return false
		}
		return true
	})
	return all
}
