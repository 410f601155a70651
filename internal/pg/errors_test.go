package pg_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/internal/pg"
)

func server(code string) error { return &pgconn.PgError{Code: code, Message: "of " + code} }

func TestCode(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"":      io.EOF,
		"25006": server("25006"),
		"42P01": fmt.Errorf("copy users: %w", server("42P01")),
	} {
		if got := pg.Code(err); got != want {
			t.Errorf("Code(%v) = %q, want %q", err, got, want)
		}
	}
	if pg.Code(nil) != "" {
		t.Error("nil has a code")
	}
}

func TestRetryable(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"nil":                  {nil, false},
		"cancelled by us":      {context.Canceled, false},
		"wrapped cancel":       {fmt.Errorf("read: %w", context.Canceled), false},
		"connection closed":    {io.EOF, true},
		"connection cut":       {fmt.Errorf("receive: %w", io.ErrUnexpectedEOF), true},
		"socket closed":        {net.ErrClosed, true},
		"refused":              {&net.OpError{Op: "dial", Err: errors.New("connection refused")}, true},
		"connection exception": {server("08006"), true},
		"too many connections": {server("53300"), true},
		"disk full":            {server("53100"), true},
		"shutdown":             {server("57P01"), true},
		"crash":                {server("57P02"), true},
		"starting up":          {server("57P03"), true},
		"serialization":        {server("40001"), true},
		"deadlock":             {server("40P01"), true},
		"slot in use":          {server("55006"), true},
		"lock time-out":        {server("55P03"), true},
		"statement time-out":   {server("57014"), true},
		"unique violation":     {server("23505"), false},
		"undefined table":      {server("42P01"), false},
		"wrong password":       {server("28P01"), false},
		"no privilege":         {server("42501"), false},
		"no such database":     {server("3D000"), false},
		"slot invalidated":     {server("55000"), false},
		"an error of our own":  {errors.New("table has no key"), false},
		"no rows":              {pgx.ErrNoRows, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := pg.Retryable(c.err); got != c.want {
				t.Errorf("Retryable(%v) = %t, want %t", c.err, got, c.want)
			}
		})
	}
}
