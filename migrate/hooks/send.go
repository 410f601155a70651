package hooks

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"
)

// An Action is a command or a webhook. Exactly one of Command and URL is given.
type Action struct {
	// Command is a program and its arguments. A status other than 0 is an error, with the last line
	// that it said.
	Command []string
	// URL gets a POST. An answer other than 2xx is an error.
	URL string
	// Timeout is how long it may take. Default 30 s.
	Timeout time.Duration
}

// Send runs the command with these variables and body as its standard input, or posts body, which is
// JSON. Errors do not hold the address, which may be a secret.
func (a Action) Send(ctx context.Context, vars []string, body []byte) error {
	timeout := cmp.Or(a.Timeout, defaultTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %s", timeout))
	defer cancel()
	var err error
	if a.URL != "" {
		err = post(ctx, a.URL, body)
	} else {
		err = a.exec(ctx, vars, body)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

func (a Action) exec(ctx context.Context, vars []string, body []byte) error {
	cmd := exec.CommandContext(ctx, a.Command[0], a.Command[1:]...)
	cmd.Env = append(cmd.Environ(), vars...)
	cmd.Stdin = bytes.NewReader(body)
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if said := lastLine(out.String()); err != nil && said != "" {
		return fmt.Errorf("%w: %s", err, said)
	}
	return err
}
