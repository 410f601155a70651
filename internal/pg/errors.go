package pg

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// SQLSTATE codes that callers compare with Code.
// Source: PostgreSQL manual, Appendix A.
const (
	CodeUndefinedTable        = "42P01"
	CodeUndefinedObject       = "42704"
	CodeDuplicateObject       = "42710"
	CodeObjectInUse           = "55006"
	CodeObjectNotReady        = "55000" // object_not_in_prerequisite_state
	CodeLockNotAvailable      = "55P03"
	CodeReadOnlyTransaction   = "25006"
	CodeInsufficientPrivilege = "42501"
)

// Code returns the SQLSTATE of the server error in err's chain, or "".
func Code(err error) string {
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pe.Code
	}
	return ""
}

// Retryable reports whether the same work may succeed on a new connection without anybody's help:
// the connection broke, the server restarts or is full, or the transaction lost a race.
func Retryable(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	if code := Code(err); code != "" {
		switch {
		case strings.HasPrefix(code, "08"), // connection exception
			strings.HasPrefix(code, "53"),    // insufficient resources, disk full included
			code == "57P01", code == "57P02", // admin shutdown, crash shutdown
			code == "57P03", // cannot connect now
			code == "40001", // serialization failure
			code == "40P01", // deadlock detected
			code == "55006", // object in use: a slot that an old walsender still holds
			code == "55P03", // lock not available
			code == "25006", // read only: a target that was just promoted or restarted
			code == "57014": // canceled by a time-out or an operator
			return true
		}
		return false
	}
	var ne net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.As(err, &ne) || pgconn.Timeout(err) || connClosed(err)
}

func connClosed(err error) bool {
	var ce *pgconn.ConnectError
	return errors.As(err, &ce) || errors.Is(err, pgconn.ErrConnClosed)
}
