package dump

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

func TestOwnersAndGrants(t *testing.T) {
	t.Parallel()
	source, cluster := pgtest.DB(t), pgtest.NewCluster(t) // roles belong to a cluster
	cluster.DB(t).Exec(t, `CREATE ROLE ann; CREATE ROLE "Bob B"; CREATE ROLE mover LOGIN`)
	source.Exec(t, `CREATE ROLE ann; CREATE ROLE "Bob B"; CREATE ROLE gone;
		CREATE SCHEMA app AUTHORIZATION ann; GRANT USAGE ON SCHEMA app TO PUBLIC;
		CREATE TABLE app.of_ann (id serial PRIMARY KEY, v int); ALTER TABLE app.of_ann OWNER TO ann;
		CREATE TABLE app.of_gone (id int); ALTER TABLE app.of_gone OWNER TO gone;
		GRANT SELECT ON app.of_ann TO "Bob B", gone WITH GRANT OPTION; GRANT UPDATE (v) ON app.of_ann TO "Bob B";
		SET SESSION AUTHORIZATION gone; GRANT SELECT ON app.of_ann TO ann; RESET SESSION AUTHORIZATION;
		SET SESSION AUTHORIZATION "Bob B"; GRANT SELECT ON app.of_ann TO gone; RESET SESSION AUTHORIZATION;
		ALTER DEFAULT PRIVILEGES FOR ROLE gone GRANT SELECT ON TABLES TO ann;
		ALTER DEFAULT PRIVILEGES FOR ROLE ann IN SCHEMA app GRANT SELECT ON TABLES TO "Bob B"`)
	d := open(t, Config{Source: source.DSN})

	{ // all roles but one
		target := cluster.DB(t)
		copyAll(t, d, target.DSN)
		got := target.Strings(t, `SELECT relname, pg_get_userbyid(relowner), coalesce(relacl::text, '-') FROM pg_class
			WHERE relnamespace = 'app'::regnamespace AND relkind = 'r' ORDER BY 1`)
		want := []string{`of_ann|ann|{ann=arwdDxt/ann,"\"Bob B\"=r*/ann"}`, "of_gone|postgres|-"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("owners and grants (-want +got):\n%s", diff)
		}
		if got := target.Strings(t, `SELECT attacl FROM pg_attribute WHERE attrelid = 'app.of_ann'::regclass AND attname = 'v'`); got[0] != `{"\"Bob B\"=w/ann"}` {
			t.Errorf("grants on a column: got %v", got)
		}
		if got := target.Strings(t, `SELECT pg_get_userbyid(defaclrole), defaclacl FROM pg_default_acl`); !slices.Equal(got, []string{`ann|{"\"Bob B\"=r/ann"}`}) {
			t.Errorf("default privileges: got %v", got)
		}
		if got := target.Strings(t, `SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'app'`); got[0] != "ann" {
			t.Errorf("owner of the schema: got %v", got)
		}
	}
	wantWarning(t, d, `grants on TABLE of_ann in schema app are left out in part: role "gone" does not exist`)
	wantWarning(t, d, `default privileges for tables of role gone are left out in part`)
	wantWarning(t, d, "objects of role gone belong to the connecting role")

	{ // not a superuser, member of nothing
		target := cluster.DB(t)
		target.Exec(t, "GRANT CREATE ON DATABASE "+target.Name+" TO mover")
		mover, err := pg.Parse(target.URL + "&user=mover")
		must(t, err)
		copyAll(t, d, mover)
		if got := target.Strings(t, `SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'app'::regnamespace`); !slices.Equal(got, []string{"mover"}) {
			t.Errorf("owners: got %v", got)
		}
	}
	wantWarning(t, d, "which is not a member of ann")
}

func wantWarning(t *testing.T, d *Dump, part string) {
	t.Helper()
	if !slices.ContainsFunc(d.Warnings(), func(s string) bool { return strings.Contains(s, part) }) {
		t.Errorf("no warning that %s: %q", part, d.Warnings())
	}
}

// What an ordinary role may not do is an error with advice, except where nothing is lost.
func TestMissingRights(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
		CREATE EVENT TRIGGER seen ON ddl_command_end EXECUTE FUNCTION watch(); COMMENT ON EVENT TRIGGER seen IS 'x';
		CREATE SCHEMA ext; CREATE EXTENSION file_fdw SCHEMA ext`)
	target.Exec(t, "CREATE ROLE rights_mover LOGIN; CREATE ROLE rights_peeker LOGIN; GRANT ALL ON SCHEMA public TO rights_mover")
	mover, err := pg.Parse(target.URL + "&user=rights_mover")
	must(t, err)
	d := open(t, Config{Source: source.DSN})

	err = d.PreData(t.Context(), mover)
	if pg.Code(err) != pg.CodeInsufficientPrivilege || !strings.Contains(hint.Of(err), "GRANT CREATE ON DATABASE") {
		t.Errorf("no right to create schemas: got %v (hint: %s)", err, hint.Of(err))
	}
	target.Exec(t, "GRANT CREATE ON DATABASE "+target.Name+" TO rights_mover")
	err = d.PreData(t.Context(), mover)
	if pg.Code(err) != pg.CodeInsufficientPrivilege || !strings.Contains(hint.Of(err), "CREATE EXTENSION file_fdw") {
		t.Errorf("no right to create the extension: got %v (hint: %s)", err, hint.Of(err))
	}
	target.Exec(t, "CREATE SCHEMA ext; GRANT ALL ON SCHEMA ext TO rights_mover; CREATE EXTENSION file_fdw SCHEMA ext")
	copyAll(t, d, mover)
	wantWarning(t, d, "event trigger seen is left out")
	wantWarning(t, d, "comment on EXTENSION file_fdw is left out")

	target.Exec(t, "CREATE SCHEMA hidden; CREATE TABLE hidden.t (x int)")
	peeker, err := pg.Parse(target.URL + "&user=rights_peeker")
	must(t, err)
	_, err = Open(t.Context(), Config{Source: peeker, Tools: tools(t)})
	if err == nil || !strings.Contains(hint.Of(err), "GRANT SELECT") {
		t.Errorf("source that may not be read: got %v (hint: %s)", err, hint.Of(err))
	}
}
