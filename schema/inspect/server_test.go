package inspect_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema/inspect"
)

func server(t *testing.T, dsn pg.DSN) inspect.Info {
	t.Helper()
	info, err := inspect.Server(t.Context(), open(t, dsn))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// as returns the database's DSN for another role, which is created with the given attributes.
func as(t *testing.T, db *pgtest.Database, role, attributes string) pg.DSN {
	t.Helper()
	db.Exec(t, "CREATE ROLE "+role+" LOGIN "+attributes)
	t.Cleanup(func() { db.Exec(t, "DROP OWNED BY "+role+" CASCADE; DROP ROLE "+role) })
	dsn, err := pg.Parse(db.URL + "&user=" + role)
	if err != nil {
		t.Fatal(err)
	}
	return dsn
}

func TestServer(t *testing.T) {
	t.Parallel()
	c := pgtest.NewCluster(t, pgtest.Setting("max_replication_slots", "7"), pgtest.Setting("max_wal_senders", "5"))
	db := c.DB(t)
	db.Exec(t, `CREATE SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext; CREATE EXTENSION citext; SELECT lo_create(0), lo_create(0);
		CREATE TABLE t (x int)`)
	db.Exec(t, `SELECT pg_create_logical_replication_slot('s', 'pgoutput')`)
	db.Exec(t, `BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'p'`)

	got := server(t, db.DSN)
	if got.Major != db.Major || got.VersionNum/10000 != db.Major {
		t.Errorf("version: got %d, %d, want %d", got.Major, got.VersionNum, db.Major)
	}
	if len(got.SystemID) < 10 {
		t.Errorf("system identifier: got %q", got.SystemID)
	}
	if len(got.Extensions) != 2 || got.Extensions[0].Name != "citext" || got.Extensions[1].Schema != "ext" || got.Extensions[1].Version == "" {
		t.Errorf("extensions: got %+v", got.Extensions)
	}
	want := inspect.Info{
		Major: got.Major, VersionNum: got.VersionNum, SystemID: got.SystemID, Extensions: got.Extensions,
		Database: db.Name, Role: "postgres", WALLevel: "logical", Encoding: "UTF8", Collation: got.Collation,
		Superuser: true, Replication: true, BypassRLS: true, CanSetReplicationRole: true, CanCreate: true,
		MaxSlots: 7, FreeSlots: 6, MaxWALSenders: 5, FreeWALSenders: 5, LargeObjects: 2,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("server (-want +got):\n%s", diff)
	}
	if got.Collation == "" {
		t.Error("collation: empty")
	}
}

func TestServerAsOrdinaryRole(t *testing.T) {
	t.Parallel()
	db := pgtest.NewCluster(t).DB(t) // roles and grants on parameters are the cluster's

	plain := as(t, db, "plain", "")
	got := server(t, plain)
	if got.Role != "plain" || got.Superuser || got.Replication || got.BypassRLS || got.CanSetReplicationRole || got.CanCreate {
		t.Errorf("role without any right: %+v", got)
	}
	if got.SystemID == "" || got.FreeSlots != got.MaxSlots {
		t.Errorf("facts that every role may read: %+v", got)
	}

	if got := server(t, as(t, db, "replicator", "REPLICATION BYPASSRLS")); !got.Replication || !got.BypassRLS || got.Superuser {
		t.Errorf("REPLICATION BYPASSRLS: %+v", got)
	}

	// As on Amazon RDS: the right comes by membership, here through a second role.
	rds := as(t, db, "managed", "")
	db.Exec(t, `CREATE ROLE rds_replication; CREATE ROLE admins; GRANT rds_replication TO admins; GRANT admins TO managed`)
	if got := server(t, rds); !got.Replication || got.Superuser {
		t.Errorf("member of rds_replication: %+v", got)
	}
	if got := server(t, plain); got.Replication {
		t.Errorf("not a member of rds_replication: %+v", got)
	}

	db.Exec(t, "GRANT CREATE ON DATABASE "+db.Name+" TO plain")
	if db.Major >= 15 {
		db.Exec(t, "GRANT SET ON PARAMETER session_replication_role TO plain")
	}
	if got := server(t, plain); !got.CanCreate || got.CanSetReplicationRole != (db.Major >= 15) {
		t.Errorf("with grants: %+v", got)
	}

	db.Exec(t, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
	if got := server(t, plain); got.SystemID != "" {
		t.Errorf("system identifier without the right to read it: got %q", got.SystemID)
	}
}
