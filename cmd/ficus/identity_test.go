package main

import (
	"fmt"
	"testing"

	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

// TestReplicaIdentities: what Ficus does about each replica identity, of a table and of a partition,
// and whether it may. With a weaker one published, PostgreSQL would refuse the application's updates.
func TestReplicaIdentities(t *testing.T) {
	t.Parallel()
	const parted = "CREATE TABLE t (id int PRIMARY KEY, u int NOT NULL, v int) PARTITION BY RANGE (id); CREATE TABLE t1 PARTITION OF t DEFAULT; "
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
		{"full of the root alone", parted + "ALTER TABLE t REPLICA IDENTITY FULL", full, full},
		{"full of root and partition", parted + "ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE t1 REPLICA IDENTITY FULL", asItIs, asItIs},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.DB(t)
			db.Exec(t, tt.ddl)
			tables, err := inspect.Tables(t.Context(), db.Conn(t), schema.Filter{})
			must(t, err)
			mappings, err := transform.Compile(tables, nil, nil)
			must(t, err)
			for insertsOnly, want := range map[bool]string{false: tt.may, true: tt.mayNot} {
				ids, got := needs(mappings, tables, insertsOnly), asItIs
				switch {
				case len(ids.Full) > 0:
					got = full
				case len(ids.InsertOnly) > 0:
					got = inserts
				}
				if got != want || (got == asItIs) != (len(ids.Why) == 0) {
					t.Errorf("no_replica_identity %v: got %s (%v), want %s", insertsOnly, got, ids.Why, want)
				}
			}
		})
	}
}

// TestPartitionWithoutIdentity: the application's update of a partition that has REPLICA IDENTITY
// NOTHING works while its root is followed, and arrives. It fails when only the root's identity is looked at.
func TestPartitionWithoutIdentity(t *testing.T) {
	t.Parallel()
	source, target := pgtest.DB(t), pgtest.DB(t)
	source.Exec(t, `CREATE TABLE public.p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); CREATE TABLE public.p1 PARTITION OF public.p DEFAULT;
		ALTER TABLE public.p1 REPLICA IDENTITY NOTHING; INSERT INTO public.p VALUES (1, 1), (2, 2)`)
	run := ficus(t, t.TempDir(), "follow", "--source", source.URL, "--target", target.URL)
	run.line("phase", map[string]any{"phase": "following"})
	source.Exec(t, `UPDATE public.p SET v = 10 WHERE id = 1; DELETE FROM public.p WHERE id = 2`)
	pgtest.Eventually(t, "the changes", func() bool { return fmt.Sprint(target.Strings(t, `SELECT id, v FROM public.p`)) == "[1|10]" })
}
