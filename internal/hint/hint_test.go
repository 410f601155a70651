package hint_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/ficus-migrate/ficus/internal/hint"
)

func TestOf(t *testing.T) {
	t.Parallel()
	inner := hint.Wrap(io.EOF, "look at %s", "the server")
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"nil":                      {nil, ""},
		"without":                  {io.EOF, ""},
		"direct":                   {inner, "look at the server"},
		"wrapped":                  {fmt.Errorf("copy users: %w", inner), "look at the server"},
		"nearest the cause wins":   {hint.Wrap(fmt.Errorf("copy: %w", inner), "look at the network"), "look at the server"},
		"in one of several":        {errors.Join(io.ErrUnexpectedEOF, inner), "look at the server"},
		"outer when inner is mute": {hint.Wrap(fmt.Errorf("copy: %w", io.EOF), "look at the network"), "look at the network"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := hint.Of(c.err); got != c.want {
				t.Errorf("Of = %q, want %q", got, c.want)
			}
		})
	}
}

func TestWrapKeepsTheError(t *testing.T) {
	t.Parallel()
	if err := hint.Wrap(nil, "never mind"); err != nil {
		t.Errorf("Wrap(nil) = %v", err)
	}
	err := hint.Wrap(fmt.Errorf("read chunk 17: %w", io.EOF), "try again")
	if !errors.Is(err, io.EOF) || err.Error() != "read chunk 17: EOF" {
		t.Errorf("wrapped error is %q, chain broken: %v", err, !errors.Is(err, io.EOF))
	}
}
