package router

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/pg"
)

// TestPointText: of a configuration only host, port and dbname of the one database change. It catches a
// value in quotes that is cut at its blank.
func TestPointText(t *testing.T) {
	t.Parallel()
	place, err := pg.Parse("postgres://u:secret@new.example:6543/sh%20op")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"plain": {
			"; shop = host=a\n[databases]\nother = host=a port=1\nshop = host=old port=5432 dbname=shop pool_size=20\n[pgbouncer]\nshop = 1\n",
			"; shop = host=a\n[databases]\nother = host=a port=1\nshop = host=new.example port=6543 dbname='sh op' pool_size=20\n[pgbouncer]\nshop = 1\n",
		},
		"quotes": {
			"[databases]\nshop=host=old  connect_query='SET x TO ''a b''' dbname='o''ld'",
			"[databases]\nshop = host=new.example connect_query='SET x TO ''a b''' dbname='sh op' port=6543",
		},
		"included": {"\"shop\" = host = old\n", "\"shop\" = host=new.example port=6543 dbname='sh op'\n"},
		"bare":     {"[databases]\nshop =\n", "[databases]\nshop = host=new.example port=6543 dbname='sh op'\n"},
		"twice":    {"[databases]\nshop = host=a\nshop = host=b\n", ""},
		"missing":  {"[databases]\n* = host=a\n[users]\nshop = pool_mode=session\n", ""},
		"nonsense": {"[databases]\nshop = nonsense\n", ""},
	} {
		got, err := pointText(c.text, "shop", place)
		if (err != nil) != (c.want == "") {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestPointFile: the file is replaced as a whole, keeps its mode, and a link to it stays one.
func TestPointFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, link := filepath.Join(dir, "real.ini"), filepath.Join(dir, "link.ini")
	if err := os.WriteFile(file, []byte("[databases]\nshop = host=a\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	place, err := pg.Parse("postgres://h:1/d")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		changed, err := pointFile(link, map[string]pg.DSN{"shop": place})
		if err != nil || changed != want {
			t.Fatalf("changed %t, want %t: %v", changed, want, err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil || string(text) != "[databases]\nshop = host=h port=1 dbname=d\n" {
		t.Errorf("file holds %q, %v", text, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link was replaced: %v, %v", info.Mode(), err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".ficus-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
