package router

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
)

// A PgBouncer configuration has one line per database,
//
//	[databases]
//	shop = host=10.0.0.1 port=5432 dbname=shop pool_size=20
//
// of which host, port and dbname are ours to change, and all else is the operator's.
// Source: PgBouncer manual, Section [databases].

// pointFile makes each named database of a configuration file lead to a place. It reports whether that
// changed the file, which is replaced as a whole.
func pointFile(path string, places map[string]pg.DSN) (changed bool, err error) {
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return false, err
	}
	was, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	text := string(was)
	for name, place := range places {
		if text, err = pointText(text, name, place); err != nil {
			return false, fmt.Errorf("%s: %w", path, err)
		}
	}
	if text == string(was) {
		return false, nil
	}
	return true, replaceFile(path, text)
}

// pointText changes the line of one database.
func pointText(text, name string, place pg.DSN) (string, error) {
	lines := strings.SplitAfter(text, "\n")
	at := -1
	section := "databases" // of a file that is included within it
	for i, line := range lines {
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "[") {
			section = strings.Trim(trimmed, "[] \t")
			continue
		}
		key, _, ok := strings.Cut(trimmed, "=")
		if section != "databases" || !ok || strings.ContainsAny(trimmed[:1], ";#%") || unquoteName(key) != name {
			continue
		}
		if at >= 0 {
			return "", fmt.Errorf("database %q has two lines", name)
		}
		at = i
	}
	if at < 0 {
		return "", hint.Wrap(fmt.Errorf("no database %q in its [databases]", name),
			"name the file in which that line stands, also when pgbouncer.ini includes it")
	}
	key, value, _ := strings.Cut(lines[at], "=")
	line, err := pointLine(strings.TrimSpace(value), place)
	if err != nil {
		return "", fmt.Errorf("database %q: %w", name, err)
	}
	end := ""
	if strings.HasSuffix(lines[at], "\n") {
		end = "\n"
	}
	lines[at] = strings.TrimRight(key, " \t") + " = " + line + end
	return strings.Join(lines, ""), nil
}

func unquoteName(key string) string {
	key = strings.TrimSpace(key)
	if len(key) > 1 && key[0] == '"' && strings.HasSuffix(key, `"`) {
		return strings.ReplaceAll(key[1:len(key)-1], `""`, `"`)
	}
	return key
}

// pointLine changes host, port and dbname of a connection string and keeps the rest as it stands.
func pointLine(s string, place pg.DSN) (string, error) {
	want := map[string]string{"host": place.Host(), "port": strconv.Itoa(int(place.Port())), "dbname": place.Database()}
	var out []string
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimLeft(s, " \t") {
		key, rest, ok := strings.Cut(s, "=")
		if !ok {
			return "", errors.New("not a list of key=value")
		}
		key = strings.TrimSpace(key)
		value, tail := takeValue(strings.TrimLeft(rest, " \t"))
		s = tail
		if v, ours := want[key]; ours {
			delete(want, key)
			value = quoteValue(v)
		}
		out = append(out, key+"="+value)
	}
	for _, key := range []string{"host", "port", "dbname"} {
		if v, missing := want[key]; missing {
			out = append(out, key+"="+quoteValue(v))
		}
	}
	return strings.Join(out, " "), nil
}

// takeValue takes a value, with its quotes, off the front of s.
func takeValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, "'") {
		if i := strings.IndexAny(s, " \t"); i >= 0 {
			return s[:i], s[i:]
		}
		return s, ""
	}
	for i := 1; i < len(s); i++ {
		if s[i] != '\'' {
			continue
		}
		if i+1 < len(s) && s[i+1] == '\'' {
			i++
			continue
		}
		return s[:i+1], s[i+1:]
	}
	return s, ""
}

func quoteValue(v string) string {
	if v != "" && !strings.ContainsAny(v, " \t'") {
		return v
	}
	return "'" + strings.ReplaceAll(v, "'", "''") + "'"
}

// replaceFile puts text in the place of a file, whole or not at all, with the same owner and mode.
func replaceFile(path, text string) (err error) {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".ficus-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	if err := keepOwner(f, info); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func keepOwner(f *os.File, was fs.FileInfo) error {
	if err := f.Chmod(was.Mode().Perm()); err != nil {
		return err
	}
	st, ok := was.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) == os.Geteuid() && int(st.Gid) == os.Getegid() {
		return nil
	}
	if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
		return hint.Wrap(err, "Ficus keeps the owner of the file: let it run as that user, or use router.pgbouncers[].command")
	}
	return nil
}
