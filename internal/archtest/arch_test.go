package archtest

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/ficus-migrate/ficus/"

// layers lists the module's packages from the bottom up. A package may import
// only packages on a lower line; packages on one line may not import one another.
//
// migrate stands this low because it declares what it drives and imports none of it: the packages
// in its folder look at databases for it, and cmd hands it the rest. The examples stand lowest: they
// are applications that know nothing of Ficus, and the demo runs one; docs/spec shares no code with anything.
var layers = [][]string{
	{"internal/hint", "internal/backoff", "internal/units", "schema", "change", "examples", "docs/spec"},
	{"internal/pg"},
	{"internal/pgserver", "eventstore", "schema/inspect", "schema/dump", "transform", "sync/manifest", "migrate"},
	{"schema/evolve", "sync/source", "sync/snapshot", "sync/apply", "verify", "buffer", "migrate/fence", "migrate/gates", "migrate/hooks", "migrate/preflight"},
	{"gateway", "gateway/httpdoor", "migrate/router"},
	{"gateway/control"},
	{"sync/link"},
	{"sync/ddl", "playbooks"},
	{"api", "web"},
	{"cmd/ficus"},
	{"bench/stat"},
	{"bench/lab"},
	{"bench"},
}

// engines are what migrate drives. Neither side knows the other: migrate declares the interfaces,
// and cmd wires the implementations to it.
var engines = []string{
	"eventstore", "sync/manifest", "sync/source", "sync/snapshot", "sync/apply", "sync/link", "sync/ddl", "verify", "buffer", "gateway", "gateway/httpdoor",
	"schema/inspect", "schema/dump", "transform", "internal/pgserver",
}

// A listed package, as go list prints it.
type listed struct {
	ImportPath, Dir           string
	GoFiles                   []string
	Imports                   []string
	TestImports, XTestImports []string
}

// name returns the import path within the module; "." is its root.
func (p listed) name() string { return strings.TrimPrefix(p.ImportPath, module) }

// ours returns those of imports that are packages of this module.
func ours(imports []string) []string {
	var names []string
	for _, path := range imports {
		if name, ok := strings.CutPrefix(path, module); ok {
			names = append(names, name)
		}
	}
	return names
}

// testOnly reports whether the package exists only for tests.
func testOnly(name string) bool {
	return strings.HasSuffix(name, "test") || name == "internal/faultpg" || name == "internal/fidelity" || strings.HasPrefix(name, "test/")
}

// levelOf returns the line that a package stands on. One of a folder that the lists name as a whole
// (examples/shop) stands where the folder does.
func levelOf(name string) (int, bool) {
	for i, names := range layers {
		for _, n := range names {
			if n == name || (n == "bench" || n == "examples") && strings.HasPrefix(name, n+"/") {
				return i, true
			}
		}
	}
	return 0, false
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 5 {
		t.Fatalf("go list names %d packages", len(all))
	}
	return all
}

func TestLayers(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		name := p.name()
		if testOnly(name) {
			continue
		}
		at, ok := levelOf(name)
		if !ok {
			t.Errorf("%s: not in layers; add it where it belongs", name)
			continue
		}
		for _, dep := range ours(p.Imports) {
			below, _ := levelOf(dep)
			switch {
			case name == "bench" && dep == "internal/faultpg": // it measures over a long network
			case testOnly(dep):
				t.Errorf("%s imports %s: test helpers stay out of the binary", name, dep)
			case slices.Contains(engines, name) && (dep == "migrate" || strings.HasPrefix(dep, "migrate/")):
				t.Errorf("%s imports %s: an engine does not know who drives it", name, dep)
			case below >= at:
				t.Errorf("%s imports %s: not on a lower layer", name, dep)
			}
		}
	}
}

// migrate is tested over random histories without a database, so neither it nor, but for real
// databases, its tests may know an engine.
func TestMigrateImportsNoEngine(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		if p.name() != "migrate" {
			continue
		}
		for _, dep := range ours(slices.Concat(p.Imports, p.TestImports)) {
			if slices.Contains(engines, dep) || strings.HasPrefix(dep, "migrate/") {
				t.Errorf("migrate imports %s: it declares what it drives; cmd wires the implementations", dep)
			}
		}
	}
}

// Production code never links the testing package or anything made for tests.
func TestNoTestCodeInProduction(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		if testOnly(p.name()) {
			continue
		}
		for _, path := range []string{"testing", "github.com/ory/dockertest/v3", "github.com/google/go-cmp/cmp", "go.uber.org/goleak", "github.com/lib/pq"} {
			if slices.Contains(p.Imports, path) {
				t.Errorf("%s imports %s", p.name(), path)
			}
		}
	}
}

// Plots are for the benchmarks' page; the binary has no use for them.
func TestPlotsAreForBenchmarks(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		if p.name() != "bench" && slices.ContainsFunc(p.Imports, func(path string) bool { return strings.HasPrefix(path, "gonum.org/") }) {
			t.Errorf("%s imports gonum.org", p.name())
		}
	}
}

func TestEveryPackageSaysWhatItIsOnce(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		if len(p.GoFiles) == 0 {
			continue // an external test alone
		}
		var docs []string
		var text string
		for _, file := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Error(err)
				continue
			}
			if f.Doc != nil {
				docs, text = append(docs, file), f.Doc.Text()
			}
		}
		if len(docs) != 1 {
			t.Errorf("%s: package comments in %d files %v, want exactly one", p.name(), len(docs), docs)
			continue
		}
		want := "Package " + filepath.Base(p.ImportPath) + " "
		if isCommand(p) {
			want = "Command " + filepath.Base(p.ImportPath) + " "
		}
		if !strings.HasPrefix(text, want) {
			t.Errorf("%s: the package comment starts %.30q, want %q", p.name(), text, want)
		}
	}
}

func isCommand(p listed) bool {
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, p.GoFiles[0]), nil, parser.PackageClauseOnly)
	return err == nil && f.Name.Name == "main"
}

// Packages that no word of the design covers attract strangers.
func TestNoShelfNames(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		switch base := filepath.Base(p.ImportPath); base {
		case "util", "utils", "common", "helpers", "models", "types", "pkg", "misc":
			t.Errorf("%s: %s is a shelf, not a name", p.name(), base)
		}
	}
}

// The folder sync holds no Go files, so that nothing clashes with the standard library's package.
func TestSyncIsOnlyAFolder(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../sync/*.go")
	if err != nil || len(files) > 0 {
		t.Errorf("Go files in sync/: %v %v", files, err)
	}
}

// House rules about comments that no linter has.
func TestNoUnfinishedBusiness(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		for _, file := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, parser.ParseComments)
			if err != nil {
				t.Error(err)
				continue
			}
			for _, c := range comments(f) {
				for _, mark := range []string{"TODO", "FIXME", "XXX"} {
					if strings.Contains(c, mark) {
						t.Errorf("%s/%s: %s in a comment: finish it or open an issue", p.name(), file, mark)
					}
				}
			}
		}
	}
}

func comments(f *ast.File) []string {
	var all []string
	for _, group := range f.Comments {
		all = append(all, group.Text())
	}
	return all
}
