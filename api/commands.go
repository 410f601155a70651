package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"
)

// ErrNoCommand says that there is no command of that key, or that its answer is not kept any more.
var ErrNoCommand = errors.New("no such command")

// ErrNoCommands says that a migration takes no commands.
var ErrNoCommands = errors.New("the migration takes no commands")

// ErrCommandState says that what was asked for does not fit the command's state.
var ErrCommandState = errors.New("the command's state does not allow it")

// A Commander is a [Service] that has command logs. A migration without one answers ErrNoCommands.
type Commander interface {
	// ListCommands returns the commands that a request chooses.
	ListCommands(name string, r ListCommandsRequest) ([]CommandEntry, error)
	// ShowCommand returns one, with its payload if that is wanted and still there, or ErrNoCommand.
	ShowCommand(ctx context.Context, name, key string, payload bool) (CommandEntry, error)
	// RequeueCommand sends a dead command again, or answers ErrCommandState.
	RequeueCommand(ctx context.Context, name, key string) error
	// DropCommand gives up a command that is dead or waits, or answers ErrCommandState.
	DropCommand(ctx context.Context, name, key string) error
}

// A ListCommandsRequest chooses commands.
type ListCommandsRequest struct {
	State string // "": all that are not over; "all"; or one state
	Order string // "": any
	Type  string // "": any
	After uint64 // number of the last one seen, of those that are not over
	Limit int    // at most 1000. Default 100
}

// Commands is the answer of GET /v1/migrations/{name}/commands.
type Commands struct {
	Taken    bool           `json:"taken"`    // whether the migration takes any
	Commands []CommandEntry `json:"commands"` // by number, then those that are over, newest first
}

// A CommandEntry is what a command log knows of a command.
type CommandEntry struct {
	Seq      int64     `json:"seq"` // counts accepted commands
	Key      string    `json:"key"`
	Order    string    `json:"order,omitempty"`
	Type     string    `json:"type"`
	State    string    `json:"state"` // waiting, sending, answered, dead, dropped
	Attempts int       `json:"attempts"`
	Error    string    `json:"error,omitempty"` // why the last attempt got no answer
	Accepted time.Time `json:"accepted"`
	Over     time.Time `json:"over,omitzero"`     // when it was answered or dropped, or died
	Status   int       `json:"status,omitempty"`  // of the data server's answer
	Payload  string    `json:"payload,omitempty"` // JSON, when it was asked for
}

// commander returns the service's command logs.
func (s *Server) commander() (Commander, error) {
	if c, ok := s.cfg.Service.(Commander); ok {
		return c, nil
	}
	return nil, ErrNoCommands
}

func (s *Server) listCommands(c *gin.Context) {
	r := ListCommandsRequest{State: c.Query("state"), Order: c.Query("order"), Type: c.Query("type")}
	after, err1 := strconv.ParseUint(c.DefaultQuery("after", "0"), 10, 64)
	limit, err2 := strconv.Atoi(c.DefaultQuery("limit", "100"))
	if err1 != nil || err2 != nil || limit < 1 || limit > 1000 {
		s.refuse(c, problem(CodeBadRequest, "after is not a number, or limit not one from 1 to 1000", ""))
		return
	}
	r.After, r.Limit = after, limit
	logs, err := s.commander()
	var found []CommandEntry
	if err == nil {
		found, err = logs.ListCommands(c.Param("name"), r)
	}
	taken := !errors.Is(err, ErrNoCommands)
	if err != nil && taken {
		s.refuse(c, problemOf(err, CodeBadRequest))
		return
	}
	c.JSON(http.StatusOK, Commands{Taken: taken, Commands: append([]CommandEntry{}, found...)})
}

// showCommand answers with the payload only when an operator asks for it: it may hold what is nobody's
// business.
func (s *Server) showCommand(c *gin.Context) {
	payload := c.Query("payload") == "true"
	if payload {
		if p := s.lacks(c, Operator); p != nil {
			s.refuse(c, p)
			return
		}
	}
	logs, err := s.commander()
	var e CommandEntry
	if err == nil {
		e, err = logs.ShowCommand(c.Request.Context(), c.Param("name"), c.Param("key"), payload)
	}
	if err != nil {
		s.refuse(c, problemOf(err, CodeInternal))
		return
	}
	c.JSON(http.StatusOK, e)
}

func (s *Server) requeueCommand(c *gin.Context) {
	s.changeCommand(c, "requeued", Commander.RequeueCommand)
}

func (s *Server) dropCommand(c *gin.Context) { s.changeCommand(c, "dropped", Commander.DropCommand) }

func (s *Server) changeCommand(c *gin.Context, done string, change func(Commander, context.Context, string, string) error) {
	var r struct{}
	if err := body(c, &r); err != nil {
		s.refuse(c, problemOf(err, CodeBadRequest))
		return
	}
	name, key := c.Param("name"), c.Param("key")
	logs, err := s.commander()
	if err == nil {
		err = change(logs, c.Request.Context(), name, key)
	}
	var e CommandEntry
	if err == nil {
		s.cfg.Log.LogAttrs(c.Request.Context(), slog.LevelInfo, "command changed", slog.String("migration", name),
			slog.String("key", key), slog.String("done", done), slog.String("actor", s.actor(c, "")))
		e, err = logs.ShowCommand(c.Request.Context(), name, key, false)
	}
	if err != nil {
		s.refuse(c, problemOf(err, CodeInternal))
		return
	}
	c.JSON(http.StatusOK, e)
}

// ListCommands returns the commands that a request chooses; see [Commander].
func (c *Client) ListCommands(ctx context.Context, name string, r ListCommandsRequest) (Commands, error) {
	u := c.at(name, "commands")
	q := url.Values{}
	for k, v := range map[string]string{"state": r.State, "order": r.Order, "type": r.Type} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if r.After > 0 {
		q.Set("after", strconv.FormatUint(r.After, 10))
	}
	if r.Limit > 0 {
		q.Set("limit", strconv.Itoa(r.Limit))
	}
	u.RawQuery = q.Encode()
	var out Commands
	err := c.call(ctx, http.MethodGet, u, nil, &out)
	return out, err
}

// ShowCommand returns one command; see [Commander].
func (c *Client) ShowCommand(ctx context.Context, name, key string, payload bool) (CommandEntry, error) {
	u := c.at(name, "commands", key)
	if payload {
		u.RawQuery = "payload=true"
	}
	var e CommandEntry
	err := c.call(ctx, http.MethodGet, u, nil, &e)
	return e, err
}

// RequeueCommand sends a dead command again; see [Commander].
func (c *Client) RequeueCommand(ctx context.Context, name, key string) error {
	return c.call(ctx, http.MethodPost, c.at(name, "commands", key, "requeue"), struct{}{}, nil)
}

// DropCommand gives a command up; see [Commander].
func (c *Client) DropCommand(ctx context.Context, name, key string) error {
	return c.call(ctx, http.MethodPost, c.at(name, "commands", key, "drop"), struct{}{}, nil)
}
