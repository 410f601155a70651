package eventstore

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/internal/hint"
)

// childDir makes the test binary be a process that writes there until its disk is full.
const childDir = "FICUS_TEST_FULL_DISK"

// TestDiskFull: the disk fills up under a process that writes. It ends with a message of ours and no
// stack trace, and what it had said was durable is there when the directory is opened again.
// Broken on purpose: without Config.Fatal the child ends with status 2 and a panic; with a Sync that
// does not wait, what it printed is missing.
func TestDiskFull(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		writeUntilFull(dir)
	}
	t.Parallel()
	for _, after := range []int64{1, 7, 40} { // megabytes
		dir := t.TempDir()
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestDiskFull$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s", childDir, dir), fmt.Sprintf("%s_AFTER=%d", childDir, after))
		var said, out strings.Builder
		cmd.Stderr, cmd.Stdout = &said, &out
		err = cmd.Run()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 3 {
			t.Fatalf("the process ended with %v: %s", err, said.String())
		}
		if !strings.Contains(said.String(), "is full") || !strings.Contains(said.String(), "hint: make room") || strings.Contains(said.String(), "goroutine") {
			t.Errorf("it said %q", said.String())
		}
		durable := change.LSN(0)
		for lines := bufio.NewScanner(strings.NewReader(out.String())); lines.Scan(); {
			if lsn, err := change.ParseLSN(lines.Text()); err == nil {
				durable = lsn
			}
		}
		s, err := Open(Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		st, err := s.Stream("full")
		if err != nil {
			t.Fatal(err)
		}
		if durable == 0 || st.Head() < durable {
			t.Errorf("after %d MB: %s is there, %s was durable", after, st.Head(), durable)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// writeUntilFull prints every position that is durable, until the disk is full.
func writeUntilFull(dir string) {
	var left atomic.Int64
	var megabytes int64
	if _, err := fmt.Sscan(os.Getenv(childDir+"_AFTER"), &megabytes); err != nil {
		panic(err)
	}
	left.Store(megabytes << 20)
	const piece = 256 << 10
	full := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileWrite && left.Load() <= 0 {
			return syscall.ENOSPC
		}
		return nil
	})
	fail := func(err error) {
		fmt.Fprintf(os.Stderr, "ficus: %v\nhint: %s\n", err, hint.Of(err))
		os.Exit(3)
	}
	s, err := Open(Config{Dir: dir, FS: errorfs.Wrap(vfs.Default, full), Fatal: fail})
	if err != nil {
		panic(err)
	}
	st, err := s.Stream("full")
	if err != nil {
		panic(err)
	}
	data := make([]byte, piece)
	for at := change.LSN(1); ; at++ {
		b := st.NewBatch()
		b.Append(at, data)
		if err := b.Commit(); err != nil {
			fail(err)
		}
		if err := st.sync(); err != nil {
			fail(err)
		}
		fmt.Println(st.Durable())
		left.Add(-piece)
	}
}
