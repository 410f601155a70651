package link

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pgtest"
)

const (
	// left is what a full disk has room for: less than a WAL segment, and less than the tests write.
	left = 4 << 20

	// bulk's rows are too short to be compressed.
	bulk = `INSERT INTO public.account SELECT $1 * i, 100, repeat(md5(i::text), 36) FROM generate_series(1, $2) i`

	// freshWAL begins a segment, which has room for what fits into left.
	freshWAL = `SELECT pg_switch_wal(); CREATE TABLE public.fresh (); DROP TABLE public.fresh`
	// lastWAL leaves less than a megabyte of all the segments that are there.
	lastWAL = `DO $$
	DECLARE segment CONSTANT int := 16777216;
	BEGIN
		WHILE (pg_current_wal_insert_lsn() - '0/0') % segment < segment - 1000000 OR EXISTS (
			SELECT FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' AND name > pg_walfile_name(pg_current_wal_insert_lsn()))
		LOOP
			PERFORM pg_logical_emit_message(false, 'ballast', repeat('x', 100000));
		END LOOP;
	END $$`
)

// A fullDisk is a pair of which one server has a small disk.
type fullDisk struct {
	*faulty
	cluster *pgtest.Cluster  // on the small disk
	on      *pgtest.Database // of the pair, in cluster
	ballast string           // a file that fills the disk
}

// smallDisk mounts a file system in memory and returns where.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "ficus-disk-") //nolint:usetesting // where PostgreSQL's user may go, too
	must(t, err)
	t.Cleanup(func() { _ = os.Remove(dir) })
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("this test mounts a small tmpfs, which needs Linux and root (or CAP_SYS_ADMIN): mount %s: %v: %s", dir, err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() }) //nolint:noctx // the test's context has ended
	return dir
}

// newFullDisk makes the pair, with this many rows of bulk.
func newFullDisk(t *testing.T, ofSource bool, many int) *fullDisk {
	t.Helper()
	dir := smallDisk(t)
	// A checkpoint on a full disk is a crash (replication origins are written to a new file), and none of
	// the cases is about that. Nor about temporary files.
	d := &fullDisk{ballast: filepath.Join(dir, "ballast"), cluster: smallCluster(t, pgtest.Dir(dir),
		pgtest.Setting("max_wal_size", "160MB"), pgtest.Setting("checkpoint_timeout", "1h"), pgtest.Setting("work_mem", "64MB"))}
	from, to := pgtest.DB(t), d.cluster.DB(t)
	if d.on = to; ofSource {
		from, to = to, from
		d.on = from
	}
	d.faulty = newFaulty(t, from, to, tables, rows)
	from.Exec(t, bulk, 100_000, many)
	t.Cleanup(func() { // before the link is dropped
		if t.Failed() {
			d.room(t)
			d.cluster.Start(t)
		}
	})
	d.open(t)
	return d
}

// fill leaves this many bytes.
func (d *fullDisk) fill(t *testing.T, leave int64) {
	t.Helper()
	file, err := os.Create(d.ballast)
	must(t, err)
	defer file.Close()
	size, block := int64(0), make([]byte, 1<<16)
	for err == nil {
		var n int
		n, err = file.Write(block)
		size += int64(n)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	must(t, file.Truncate(size-leave))
}

// room makes room again.
func (d *fullDisk) room(t *testing.T) {
	t.Helper()
	if err := os.Remove(d.ballast); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// crashed reports whether the server ended because it could not write WAL.
func (d *fullDisk) crashed() bool {
	for line := range strings.Lines(d.cluster.Log(1000)) {
		if strings.Contains(line, "PANIC:") && strings.Contains(line, "No space left on device") {
			return true
		}
	}
	return false
}

// burst writes more at the source than a full disk takes, if the source takes it.
func (d *fullDisk) burst(t *testing.T) error {
	t.Helper()
	conn, err := d.from.DSN.Connect(t.Context(), "load")
	must(t, err)
	defer conn.Close(context.WithoutCancel(t.Context()))
	_, err = conn.Exec(t.Context(), bulk, -1, 6000)
	return err
}

// TestDiskReallyFull fills the disk of a server. Whatever the server does then, the link says so or tries
// again, and with room, and the server up, it goes on by itself: nothing is missing, nothing doubled. A copy
// ends instead, and is called again. TestTargetFull is the same in small.
//
// It fails when pg.Retryable does not count 53100 (Run ends), when a copy that goes on keeps nothing, and
// when a rebase's errors do not go through targetError (no hint).
func TestDiskReallyFull(t *testing.T) {
	t.Parallel()
	if !long() {
		t.Skip("mounts file systems and fills them: set FICUS_TEST_LONG=1; TestTargetFull runs always")
	}
	for _, c := range []struct {
		name   string
		source bool // it is the source's disk
		full   func(*fullDisk, *testing.T)
		crash  bool // of the server
	}{
		{name: "target has no room for rows", full: (*fullDisk).targetTables},
		{name: "target has no room for WAL", full: (*fullDisk).targetWAL, crash: true},
		{name: "source has no room for WAL", source: true, full: (*fullDisk).sourceWAL, crash: true},
		{name: "source has no room to decode", source: true, full: (*fullDisk).sourceDecoding},
		{name: "copy has no room for rows"},
		{name: "copy has no room for WAL", crash: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.full == nil {
				newFullDisk(t, false, 15_000).copyUntilRoom(t, c.crash)
				return
			}
			d := newFullDisk(t, c.source, 100)
			_, err := d.link.Load(t.Context(), LoadConfig{Workers: 2})
			must(t, err)
			stop := run(t, d.link)
			d.settle(t)
			c.full(d, t)
			d.room(t)
			if c.crash {
				d.cluster.Start(t)
			}
			d.write(t)()
			d.equal(t)
			pgtest.Eventually(t, "the warnings to go", func() bool { return len(d.link.Warnings()) == 0 })
			stop()
			if crashed := d.crashed(); crashed != c.crash {
				t.Errorf("the server crashed: %t", crashed)
			}
		})
	}
}

func (d *fullDisk) targetTables(t *testing.T) {
	t.Helper()
	d.to.Exec(t, freshWAL)
	d.fill(t, left)
	stopLoad := d.write(t)
	must(t, d.burst(t))
	d.warns(t, "applied", "No space left on device")
	stopLoad()
}

func (d *fullDisk) targetWAL(t *testing.T) {
	t.Helper()
	d.to.Exec(t, lastWAL)
	d.fill(t, left)
	stopLoad := d.write(t)
	must(t, d.burst(t))
	pgtest.Eventually(t, "the target to crash", d.crashed)
	d.warns(t, "applied", "")
	stopLoad()
}

func (d *fullDisk) sourceWAL(t *testing.T) {
	t.Helper()
	d.from.Exec(t, lastWAL)
	d.settle(t)
	d.fill(t, left)
	if err := d.burst(t); err == nil {
		t.Error("the source took everything")
	}
	pgtest.Eventually(t, "the source to crash", d.crashed)
	d.warns(t, "received", "")
}

// sourceDecoding waits until a walsender cannot write down what it knows of open transactions, as it does
// whenever the server lists them in WAL: every 15 seconds.
func (d *fullDisk) sourceDecoding(t *testing.T) {
	t.Helper()
	d.from.Exec(t, freshWAL)
	d.fill(t, 0)
	d.from.Exec(t, `DELETE FROM public.entry WHERE account = 7`) // needs no room
	d.warns(t, "received", "No space left on device")
}

// warns waits until the link says that nothing can be received or applied, and why.
func (d *fullDisk) warns(t *testing.T, what, why string) {
	t.Helper()
	pgtest.Eventually(t, "the link to say so", func() bool {
		w := d.link.Warnings()
		return len(w) == 1 && strings.Contains(w[0], "nothing could be "+what+" since") && strings.Contains(w[0], why)
	})
}

// copyUntilRoom copies onto a disk that is full twice, as who has to finish a copy does: again and again.
func (d *fullDisk) copyUntilRoom(t *testing.T, crash bool) {
	t.Helper()
	wal := freshWAL
	if crash {
		wal = lastWAL
	}
	d.to.Exec(t, wal)
	d.fill(t, left)
	stopLoad := d.write(t)
	kept := 0
	cfg := LoadConfig{Workers: 2, ChunkBytes: 128 << 10, Resumed: func(done, _ int) { kept = done }}
	for n := range 2 {
		_, err := d.link.Load(t.Context(), cfg)
		if err == nil {
			t.Fatal("the target took everything")
		}
		if !crash && (!strings.Contains(err.Error(), "No space left on device") || !strings.Contains(hint.Of(err), "disk is full")) {
			t.Errorf("load %d: %v, hint %q", n, err, hint.Of(err))
		}
	}
	if d.crashed() != crash {
		t.Errorf("the server crashed: %t", !crash)
	}
	d.room(t)
	if crash {
		d.cluster.Start(t)
	}
	_, err := d.link.Load(t.Context(), cfg)
	must(t, err)
	if kept == 0 {
		t.Error("the last copy began anew")
	}
	stop := run(t, d.link)
	stopLoad()
	d.equal(t)
	stop()
}
