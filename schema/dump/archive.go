package dump

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/ficus-migrate/ficus/schema"
)

// An entry is one object of the archive's table of contents.
type entry struct {
	id     int
	kind   string // as pg_dump calls it: "TABLE", "FK CONSTRAINT", "ACL"
	schema string // "-" for none
	name   string // for most objects of a table "table object"; line breaks are spaces
	owner  string // "" when PostgreSQL has none for it
	deps   []int  // ids of what must exist before it
	sql    string // without ALTER ... OWNER TO
	owned  string // with
	stage  stage
}

// String returns what people read: "index public.users_email_idx".
func (e *entry) String() string {
	kind, within := strings.ToLower(e.kind), ""
	if e.schema != "-" {
		within = " in schema " + e.schema
	}
	switch e.kind {
	case "COMMENT": // the name begins with the object's kind
		return "comment on " + e.name + within
	case "ACL":
		return "grants on " + e.name + within
	case "DEFAULT ACL":
		return strings.ToLower(e.name) + within + " of role " + e.owner
	case "FK CONSTRAINT":
		kind = "foreign key"
	}
	switch {
	case e.schema == "-":
		return kind + " " + e.name
	case strings.ContainsRune(e.name, ' '): // "table object"; quoting would hide that
		return kind + " " + e.schema + "." + e.name
	}
	return kind + " " + e.tableName().Display()
}

func (e *entry) tableName() schema.Name { return schema.Name{Schema: e.schema, Name: e.name} }

// isTable reports whether the entry makes a relation that Ficus treats as a table.
func (e *entry) isTable() bool {
	return e.kind == "TABLE" || e.kind == "FOREIGN TABLE" || e.kind == "MATERIALIZED VIEW"
}

// An archive is what pg_restore --verbose printed, taken apart.
type archive struct {
	entries          []*entry // in an order that respects dependencies
	byID             map[int]*entry
	conformingString bool // how the SQL writes its string literals
}

// header opens each object in pg_restore's verbose output (_printTocEntry in pg_backup_archiver.c):
//
//	--
//	-- TOC entry 3239 (class 2606 OID 16421)
//	-- Dependencies: 222 216 3228
//	-- Name: c c_x_fkey; Type: FK CONSTRAINT; Schema: public; Owner: bob
//	-- Data Pos: 0
//	--
//
// A function body that contains such text cuts the SQL where PostgreSQL then reports a syntax error.
func header() *regexp.Regexp {
	return regexp.MustCompile(`(?m)^--\n-- TOC entry (\d+) \(class \d+ OID \d+\)\n(?:-- Dependencies:([ \d]*)\n)?` +
		`-- Name: (.*); Type: ([A-Z ]+); Schema: (.*); Owner: (.*?)(?:; Tablespace: .*)?\n(?:-- Data Pos: .*\n)?--\n\n`)
}

// accessMethod matches the setting that pg_restore prints after the object before the one it is for.
func accessMethod() *regexp.Regexp {
	return regexp.MustCompile(`\n(SET default_table_access_method = [^\n]*;)\s*$`)
}

const trailer = "\n--\n-- PostgreSQL database dump complete\n--\n"

// parse takes the two scripts that pg_restore makes of one archive apart: with owners and without.
// What stands before the first object and after the last is dropped: settings that our session has
// anyway, or that an older server does not know, and psql's own commands (\restrict).
func parse(owned, plain string) (*archive, error) {
	a := &archive{byID: map[int]*entry{}}
	entries, preamble, err := split(plain)
	if err != nil {
		return nil, err
	}
	a.entries, a.conformingString = entries, !strings.Contains(preamble, "SET standard_conforming_strings = off;")
	for _, e := range entries {
		if a.byID[e.id] != nil {
			return nil, fmt.Errorf("object %d occurs twice", e.id)
		}
		a.byID[e.id] = e
	}
	withOwners, _, err := split(owned)
	if err != nil {
		return nil, err
	}
	if len(withOwners) != len(entries) {
		return nil, fmt.Errorf("%d objects with owners, %d without", len(withOwners), len(entries))
	}
	for _, o := range withOwners {
		e := a.byID[o.id]
		if e == nil {
			return nil, fmt.Errorf("object %d has an owner and no definition", o.id)
		}
		e.owned, e.owner = o.sql, o.owner
	}
	return a, nil
}

func split(script string) (entries []*entry, preamble string, err error) {
	end := strings.LastIndex(script, trailer)
	if end < 0 {
		return nil, "", errors.New("the script has no end")
	}
	script = script[:end]
	if done := strings.LastIndex(script, "\n-- Completed on "); done >= 0 {
		script = script[:done]
	}
	heads := header().FindAllStringSubmatchIndex(script, -1)
	if len(heads) == 0 {
		return nil, script, nil
	}
	preamble = script[:heads[0][0]]
	method := accessMethod()
	current := method.FindStringSubmatch(preamble)
	for i, at := range heads {
		next := len(script)
		if i+1 < len(heads) {
			next = heads[i+1][0]
		}
		sql := script[at[1]:next]
		upcoming := method.FindStringSubmatch(sql)
		if upcoming != nil {
			sql = strings.TrimSuffix(strings.TrimRight(sql, "\n"), upcoming[1])
		}
		group := func(n int) string {
			if at[2*n] < 0 {
				return ""
			}
			return script[at[2*n]:at[2*n+1]]
		}
		e := &entry{name: group(3), kind: group(4), schema: group(5), owner: group(6), sql: strings.TrimSpace(sql)}
		if e.id, e.deps, err = numbers(group(1), group(2)); err != nil {
			return nil, "", err
		}
		if e.isTable() && current != nil { // lasts until the next SET in the script, so every table needs it
			e.sql = current[1] + "\n" + e.sql
		}
		if upcoming != nil {
			current = upcoming
		}
		entries = append(entries, e)
	}
	return entries, preamble, nil
}

func numbers(id, deps string) (int, []int, error) {
	n, err := strconv.Atoi(id)
	if err != nil {
		return 0, nil, fmt.Errorf("object number %q: %w", id, err)
	}
	var list []int
	for f := range strings.FieldsSeq(deps) {
		d, err := strconv.Atoi(f)
		if err != nil {
			return 0, nil, fmt.Errorf("dependency %q of object %d: %w", f, n, err)
		}
		list = append(list, d)
	}
	return n, list, nil
}
