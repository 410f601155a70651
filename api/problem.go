package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
)

// A Code says what kind of problem an answer is about. Clients switch on it; the message is for people.
type Code string

// The codes.
const (
	CodeBadRequest       Code = "bad_request"            // 400: the request makes no sense as it is
	CodeUnauthorized     Code = "unauthorized"           // 401: no token, or one that is not known
	CodeForbidden        Code = "forbidden"              // 403: the token's roles, or where the request came from
	CodeNotFound         Code = "not_found"              // 404
	CodeMethodNotAllowed Code = "method_not_allowed"     // 405
	CodeNotNow           Code = "not_now"                // 409: the command does not fit the phase
	CodeExists           Code = "exists"                 // 409: a migration of that name is there
	CodeFixed            Code = "fixed"                  // 409: this process drives one migration only
	CodeTooLarge         Code = "too_large"              // 413: the body
	CodeMediaType        Code = "unsupported_media_type" // 415: the body is not said to be JSON
	CodeInternal         Code = "internal"               // 500
	CodeFailed           Code = "failed"                 // 500: the command was taken, its work went wrong
	CodeStopping         Code = "stopping"               // 503: the process ends
)

// A Problem is an error as it travels (RFC 9457, application/problem+json). Its kind is in Code, so
// Type is always "about:blank" and Title the status in words.
type Problem struct { //nolint:errname // the RFC's word; it is an answer first
	Type    string `json:"type"`
	Title   string `json:"title"`
	Status  int    `json:"status"`
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (p *Problem) Error() string { return p.Message }

// Is makes a problem that came over the wire the error that it was on the other side.
func (p *Problem) Is(target error) bool {
	switch p.Code {
	case CodeNotFound:
		return target == ErrNotFound
	case CodeNotNow:
		return target == migrate.ErrNotNow
	case CodeExists:
		return target == ErrExists
	case CodeFixed:
		return target == ErrFixed
	case CodeBadRequest, CodeUnauthorized, CodeForbidden, CodeMethodNotAllowed, CodeTooLarge, CodeMediaType, CodeInternal, CodeFailed, CodeStopping:
	}
	return false
}

// status returns the HTTP status of a code.
func (c Code) status() int {
	switch c {
	case CodeBadRequest:
		return http.StatusBadRequest
	case CodeUnauthorized:
		return http.StatusUnauthorized
	case CodeForbidden:
		return http.StatusForbidden
	case CodeNotFound:
		return http.StatusNotFound
	case CodeMethodNotAllowed:
		return http.StatusMethodNotAllowed
	case CodeNotNow, CodeExists, CodeFixed:
		return http.StatusConflict
	case CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case CodeMediaType:
		return http.StatusUnsupportedMediaType
	case CodeStopping:
		return http.StatusServiceUnavailable
	case CodeInternal, CodeFailed:
	}
	return http.StatusInternalServerError
}

// problem makes an error of a code, with advice unless it is "".
func problem(code Code, message, advice string) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(code.status()), Status: code.status(), Code: code, Message: message, Hint: advice}
}

// problemOf turns any error into a problem; other is the code of one that has none of its own.
func problemOf(err error, other Code) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	code := other
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrNoCommand), errors.Is(err, ErrNoCommands):
		code = CodeNotFound
	case errors.Is(err, migrate.ErrNotNow), errors.Is(err, ErrCommandState):
		code = CodeNotNow
	case errors.Is(err, ErrExists):
		code = CodeExists
	case errors.Is(err, ErrFixed):
		code = CodeFixed
	case errors.Is(err, context.Canceled), errors.Is(err, errStopping):
		return problem(CodeStopping, err.Error(), "the process that answered is ending; ask again once it is back")
	}
	return problem(code, err.Error(), hint.Of(err))
}

// refuse answers with a problem and ends the handling of the request.
func (s *Server) refuse(c *gin.Context, p *Problem) {
	if p.Status >= http.StatusInternalServerError {
		s.cfg.Log.LogAttrs(c.Request.Context(), slog.LevelError, "request failed",
			slog.String("method", c.Request.Method), slog.String("path", c.Request.URL.Path), slog.String("code", string(p.Code)), slog.String("err", p.Message))
	}
	c.Header("Cache-Control", "no-store")
	c.Header("Content-Type", "application/problem+json")
	c.Status(p.Status)
	if err := json.NewEncoder(c.Writer).Encode(p); err != nil {
		s.cfg.Log.LogAttrs(c.Request.Context(), slog.LevelDebug, "client went away", slog.Any("err", err))
	}
	c.Abort()
}

// recovered answers for a handler that panicked: the process lives on, since it drives migrations.
func (s *Server) recovered(c *gin.Context, cause any, stack []byte) {
	s.cfg.Log.LogAttrs(c.Request.Context(), slog.LevelError, "request panicked",
		slog.String("path", c.Request.URL.Path), slog.String("err", fmt.Sprint(cause)), slog.String("stack", string(stack)))
	if c.Writer.Written() {
		c.Abort()
		return
	}
	s.refuse(c, problem(CodeInternal, "internal error", "the log of the process has the details; please report them"))
}
