package pgserver

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// stopScript stops what still runs on the data directory $1, and removes the directory $2 unless
// that is empty. An initdb whose parent was killed goes on for a moment and may make a file in a folder
// that is just being emptied, so removing is tried until it works.
const stopScript = `
pid=$(head -n 1 "$1/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ] && kill -QUIT "$pid" 2>/dev/null; then
	n=0
	while kill -0 "$pid" 2>/dev/null && [ $n -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
	kill -KILL "$pid" 2>/dev/null
fi
n=0
until [ -z "$2" ] || rm -rf "$2" 2>/dev/null || [ $n -ge 100 ]; do sleep 0.1; n=$((n + 1)); done
[ -z "$2" ] || [ ! -e "$2" ]
`

// Watch arranges for a shell script to run, as the caller, when this process ends in whatever way or
// when release is called, whichever is first. release waits until the script has ended.
//
// A shell reads from a pipe whose other end this process holds; the kernel closes that end.
func Watch(ctx context.Context, script string, args ...string) (release func() error, err error) {
	r, w, err := os.Pipe() // close-on-exec, so that no other child keeps the write end open
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	args = append([]string{"-c", "read -r _\n" + script, "ficus-watchdog"}, args...)
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", args...)
	cmd.Dir = "/"
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C is for its owner
	if err := cmd.Start(); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("start watchdog: %w", err)
	}
	return func() error {
		_ = w.Close()
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("watchdog: %w", err)
		}
		return nil
	}, nil
}
