package ddl_test

import (
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/sync/ddl"
)

// TestReplicaIdentities: what Ficus does about each replica identity, of a table and of a partition,
// and whether it may. With a weaker one published, PostgreSQL would refuse the application's updates.
// It fails when partitions are not looked at, and when partitions of partitions are not.
func TestReplicaIdentities(t *testing.T) {
	t.Parallel()
	const parted = "CREATE TABLE t (id int PRIMARY KEY, u int NOT NULL, v int) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t DEFAULT; "
	const below = "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t DEFAULT PARTITION BY RANGE (id); CREATE TABLE t11 PARTITION OF t1 DEFAULT; "
	const asItIs, full, inserts = "as it is", "full", "inserts only"
	for _, tt := range []struct{ name, ddl, may, mayNot string }{
		{"default", "CREATE TABLE t (id int PRIMARY KEY)", asItIs, asItIs},
		{"default without a key", "CREATE TABLE t (id int)", full, inserts},
		{"default, unique but nullable", "CREATE TABLE t (id int UNIQUE)", full, inserts},
		{"default, unique but no primary key", "CREATE TABLE t (id int NOT NULL UNIQUE)", full, inserts},
		{"default, deferrable key", "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE)", full, inserts},
		{"index", "CREATE TABLE t (id int NOT NULL); CREATE UNIQUE INDEX i ON t (id); ALTER TABLE t REPLICA IDENTITY USING INDEX i", asItIs, asItIs},
		{"index that is gone", "CREATE TABLE t (id int PRIMARY KEY); CREATE UNIQUE INDEX i ON t (id); ALTER TABLE t REPLICA IDENTITY USING INDEX i; DROP INDEX i", full, inserts},
		{"full", "CREATE TABLE t (id int); ALTER TABLE t REPLICA IDENTITY FULL", asItIs, asItIs},
		{"full with a key", "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY FULL", asItIs, asItIs},
		{"nothing", "CREATE TABLE t (id int); ALTER TABLE t REPLICA IDENTITY NOTHING", full, inserts},
		{"nothing with a key", "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING", full, inserts},
		{"partitions", parted, asItIs, asItIs},
		{"nothing of a partition", parted + "ALTER TABLE t1 REPLICA IDENTITY NOTHING", full, inserts},
		{"full of a partition", parted + "ALTER TABLE t1 REPLICA IDENTITY FULL", asItIs, asItIs},
		{"another index of a partition", parted + "CREATE UNIQUE INDEX i ON t1 (u); ALTER TABLE t1 REPLICA IDENTITY USING INDEX i", full, full},
		{"partitions of a partition", below, asItIs, asItIs},
		{"nothing of a partition's partition", below + "ALTER TABLE t11 REPLICA IDENTITY NOTHING", full, inserts},
		{"full of a partition's partition", below + "ALTER TABLE t11 REPLICA IDENTITY FULL", asItIs, asItIs},
		{"full of the root alone", parted + "ALTER TABLE t REPLICA IDENTITY FULL", full, full},
		{"full of root and partition", parted + "ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE t1 REPLICA IDENTITY FULL", asItIs, asItIs},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.DB(t)
			db.Exec(t, tt.ddl)
			conn := db.Conn(t)
			plan, err := ddl.Read(t.Context(), conn, schema.Filter{})
			if err != nil {
				t.Fatal(err)
			}
			for insertsOnly, want := range map[bool]string{false: tt.may, true: tt.mayNot} {
				if err := plan.Compile(t.Context(), conn, ddl.Choice{InsertsOnly: insertsOnly}); err != nil {
					t.Fatal(err)
				}
				got := asItIs
				switch {
				case len(plan.Full) > 0:
					got = full
				case len(plan.InsertOnly) > 0:
					got = inserts
				}
				if got != want || (got == asItIs) != (len(plan.Why) == 0) {
					t.Errorf("no_replica_identity %v: got %s (%v), want %s", insertsOnly, got, plan.Why, want)
				}
			}
		})
	}
}
