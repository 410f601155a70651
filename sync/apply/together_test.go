package apply

import "testing"

// TestRowsAndProgressAreOne: where the progress cannot be written the rows are not there either, and
// the other way round, so that they come together afterwards.
//
// Fails when the progress moves in a transaction of its own, after the rows or before them.
func TestRowsAndProgressAreOne(t *testing.T) {
	t.Parallel()
	const ddl = "CREATE TABLE bag (n int)"
	for name, refuse := range map[string]struct{ on, off string }{
		"progress refused": {
			`CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$;
			CREATE TRIGGER no BEFORE UPDATE ON ficus.progress FOR EACH ROW EXECUTE FUNCTION no(); ALTER TABLE ficus.progress ENABLE ALWAYS TRIGGER no`,
			`DROP FUNCTION no CASCADE`,
		},
		"rows refused at the commit": {
			`CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$;
			CREATE CONSTRAINT TRIGGER no AFTER INSERT ON bag DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no(); ALTER TABLE bag ENABLE ALWAYS TRIGGER no`,
			`DROP FUNCTION no CASCADE`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, target := newOrigin(t, ddl, nil), newTarget(t, ddl)
			a := o.start(t, target)
			o.tx(t, "INSERT INTO bag VALUES (1)")
			a.wait(t, o.pull(t))
			_ = a.stop()
			progress := func() string { return target.Strings(t, "SELECT lsn FROM ficus.progress")[0] }
			before := progress()

			target.Exec(t, refuse.on)
			o.tx(t, "INSERT INTO bag VALUES (2), (2)")
			end := o.pull(t)
			if err := o.start(t, target).fails(t); err == nil {
				t.Fatal("the applier went on")
			}
			if rows, now := target.Int(t, "SELECT count(*) FROM bag"), progress(); rows != 1 || now != before {
				t.Errorf("%d rows, progress %s; want 1 and %s", rows, now, before)
			}
			target.Exec(t, refuse.off)
			a = o.start(t, target)
			a.wait(t, end)
			if rows := target.Int(t, "SELECT count(*) FROM bag"); rows != 3 {
				t.Errorf("%d rows in the end, want 3", rows)
			}
			_ = a.stop()
		})
	}
}
