package pgserver

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// watchdogScript waits until the pipe on its standard input closes, which the kernel does when the
// owner ends, whatever the reason. It then stops what still runs on the data directory $1, and
// removes the directory $2 unless that is empty.
const watchdogScript = `
read -r _
pid=$(head -n 1 "$1/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ] && kill -QUIT "$pid" 2>/dev/null; then
	n=0
	while kill -0 "$pid" 2>/dev/null && [ $n -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
	kill -KILL "$pid" 2>/dev/null
fi
[ -z "$2" ] || rm -rf "$2"
`

// A watchdog is the process that cleans up behind its owner.
type watchdog struct {
	cmd  *exec.Cmd
	hold *os.File // write end of the pipe; closing it lets the watchdog act
}

// watch starts a watchdog over a data directory. remove is the directory to delete, or "".
func watch(ctx context.Context, data, remove string) (*watchdog, error) {
	r, w, err := os.Pipe() // close-on-exec, so that no other child keeps the write end open
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", "-c", watchdogScript, "ficus-watchdog", data, remove)
	account{}.prepare(cmd, "/") // as the caller, who made the directory
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("start watchdog: %w", err)
	}
	return &watchdog{cmd, w}, nil
}

// release lets the watchdog do its work, and waits until it has.
func (w *watchdog) release() error {
	_ = w.hold.Close()
	if err := w.cmd.Wait(); err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	return nil
}
