package shop

import (
	"errors"
	"io"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func TestDoubt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want Answer
	}{
		{nil, Acknowledged},
		{io.ErrUnexpectedEOF, InDoubt},
		{&pgconn.PgError{Severity: "FATAL", Code: "57P01"}, InDoubt},
		{&pgconn.PgError{Severity: "ERROR", Code: "40001"}, Failed},
		{pgx.ErrTxCommitRollback, Failed},
	} {
		if got := answer(doubt(c.err)); got != c.want {
			t.Errorf("commit answered %v: %s, want %s", c.err, got, c.want)
		}
	}
	if got := answer(io.ErrUnexpectedEOF); got != Failed {
		t.Errorf("connection lost before the commit was sent: %s, want %s", got, Failed)
	}
	if got := answer(errors.Join(doubt(io.EOF), io.EOF)); got != InDoubt {
		t.Errorf("joined: %s, want %s", got, InDoubt)
	}
}
