package pgtest

import (
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMain(m *testing.M) { Main(m, CheckLeaks()) }

func TestDB(t *testing.T) {
	t.Parallel()
	db := DB(t)
	db.Exec(t, "CREATE TABLE a (id int, v text); INSERT INTO a VALUES (1, NULL), (2, 'x')")
	if diff := cmp.Diff([]string{"1|NULL", "2|x"}, db.Strings(t, "SELECT id, v FROM a ORDER BY id")); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	if got := db.Int(t, "SELECT count(*) FROM a WHERE id = $1", 2); got != 1 {
		t.Errorf("count = %d, want 1", got)
	}
	if got := db.Strings(t, "SHOW wal_level")[0]; got != "logical" {
		t.Errorf("wal_level = %s", got)
	}
}

func TestDatabasesAreSeparate(t *testing.T) {
	t.Parallel()
	a, b := DB(t), DB(t)
	a.Exec(t, "CREATE TABLE only_here (id int)")
	if n := b.Int(t, "SELECT count(*) FROM pg_class WHERE relname = 'only_here'"); n != 0 {
		t.Error("a table of one database shows in the other")
	}
}

// A test that leaves a slot and a prepared transaction behind does not keep its database from going.
func TestDropsWhatIsInTheWay(t *testing.T) {
	t.Parallel()
	var name string
	t.Run("leaves things", func(t *testing.T) {
		t.Parallel()
		db := DB(t)
		name = db.Name
		db.Exec(t, "CREATE TABLE a (id int)")
		db.Exec(t, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", "left_"+db.Name)
		conn := db.Conn(t)
		for _, sql := range []string{"BEGIN", "INSERT INTO a VALUES (1)", "PREPARE TRANSACTION 'left''over'"} {
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Cleanup(func() { // parallel subtests end after this function
		if n := DB(t).Int(t, "SELECT count(*) FROM pg_database WHERE datname = $1", name); n != 0 {
			t.Errorf("database %s is still there", name)
		}
	})
}

func TestCluster(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, Setting("fsync", "on"))
	db := c.DB(t)
	db.Exec(t, "CREATE TABLE a (id int); INSERT INTO a VALUES (1)")
	for name, down := range map[string]func(testing.TB){"stop": c.Stop, "kill": c.Kill} {
		down(t)
		if conn, err := db.connect(t.Context()); err == nil {
			_ = conn.Close(t.Context())
			t.Fatalf("%s: the server still answers", name)
		}
		c.Start(t)
		if got := db.Int(t, "SELECT count(*) FROM a"); got != 1 {
			t.Errorf("%s: %d rows after the restart, want 1", name, got)
		}
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	for name, query := range map[string]string{
		"chinook": "SELECT count(*) FROM track",
		"pgbench": "SELECT count(*) / 3 FROM pgbench_accounts",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := DB(t)
			Load(t, db, name)
			if n := db.Int(t, query); n < 3000 {
				t.Errorf("%s = %d, want at least 3000", query, n)
			}
		})
	}
	t.Run("substitute", func(t *testing.T) {
		t.Parallel()
		DB(t).Exec(t, chinookSubstitute)
	})
}

// Every major that the machine has can be started; one that it has not is replaced by the default.
func TestVersions(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 14, 15, 16, 17, 18} {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			in, err := installFor(major)
			if err != nil {
				t.Fatal(err)
			}
			if db := DB(t, Version(major)); db.Major != in.Major {
				t.Errorf("asked for %d, expected %d, got %d", major, in.Major, db.Major)
			}
		})
	}
}

func TestVersionFallsBack(t *testing.T) {
	t.Parallel()
	if db := DB(t, Version(99)); db.Major < 13 {
		t.Errorf("major = %d", db.Major)
	}
}
