package dump

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func script(preamble string, objects ...string) string {
	return "--\n-- PostgreSQL database dump\n--\n\n\\restrict abc\n\n" + preamble + "\n" + strings.Join(objects, "") +
		"-- Completed on 2026-01-01 00:00:00 UTC\n\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict abc\n\n"
}

func object(id, deps, name, kind, owner, sql string) string {
	if deps != "" {
		deps = "-- Dependencies: " + deps + "\n"
	}
	return "--\n-- TOC entry " + id + " (class 1259 OID 16385)\n" + deps +
		"-- Name: " + name + "; Type: " + kind + "; Schema: public; Owner: " + owner + "\n-- Data Pos: 0\n--\n\n" + sql + "\n\n\n"
}

func TestParse(t *testing.T) {
	t.Parallel()
	const heap, columnar = "SET default_table_access_method = heap;\n\n", "SET default_table_access_method = columnar;\n\n"
	both := func(owner, alter string) string {
		return script("SET standard_conforming_strings = off;\nSET transaction_timeout = 0;\n",
			object("3", "", "f; Type: x", "FUNCTION", owner, "CREATE FUNCTION f() AS $$\n\\restrict\n$$;"+alter)+heap,
			object("1", "", "a", "TABLE", owner, "CREATE TABLE a ();"+alter),
			object("2", "1 99", "b", "TABLE", owner, "CREATE TABLE b ();")+columnar,
			object("5", "1 2", "c", "TABLE", owner, "CREATE TABLE c ();"),
			object("7", "5", "c c_fk", "FK CONSTRAINT", owner, "ALTER TABLE c;"))
	}
	a, err := parse(both("ann b", "\n\n\nALTER TABLE OWNER TO \"ann b\";"), both("-", ""))
	if err != nil {
		t.Fatal(err)
	}
	if a.conformingString {
		t.Error("standard_conforming_strings: got on, want off")
	}
	var got []string
	for _, e := range a.entries {
		got = append(got, strings.Join([]string{e.kind, e.name, e.owner, e.sql}, "|"))
	}
	want := []string{
		"FUNCTION|f; Type: x|ann b|CREATE FUNCTION f() AS $$\n\\restrict\n$$;",
		"TABLE|a|ann b|SET default_table_access_method = heap;\nCREATE TABLE a ();",
		"TABLE|b|ann b|SET default_table_access_method = heap;\nCREATE TABLE b ();",
		"TABLE|c|ann b|SET default_table_access_method = columnar;\nCREATE TABLE c ();",
		"FK CONSTRAINT|c c_fk|ann b|ALTER TABLE c;",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int{1, 99}, a.byID[2].deps); diff != "" {
		t.Errorf("dependencies (-want +got):\n%s", diff)
	}
	if e := a.byID[1]; !strings.HasSuffix(e.owned, `OWNER TO "ann b";`) {
		t.Errorf("with owner: got %q", e.owned)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	one := object("1", "", "a", "TABLE", "x", "CREATE TABLE a ();")
	for name, tt := range map[string][2]string{
		"no end":          {strings.Split(script("", one), "-- PostgreSQL database dump complete")[0], script("", one)},
		"twice":           {script("", one, one), script("", one, one)},
		"one side only":   {script("", one), script("")},
		"different sides": {script("", strings.Replace(one, "entry 1", "entry 2", 1)), script("", one)},
		"id too large":    {script("", strings.Replace(one, "entry 1", "entry 99999999999999999999", 1)), script("", one)},
	} {
		if _, err := parse(tt[0], tt[1]); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if a, err := parse(script(""), script("")); err != nil || len(a.entries) != 0 {
		t.Errorf("empty database: %v", err)
	}
}
