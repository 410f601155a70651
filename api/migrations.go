package api

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/gin-gonic/gin"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
)

const (
	maxBody  = 1 << 20 // bytes; a playbook is the largest thing that is sent
	maxActor = 100     // characters
)

// A List is the answer of GET /v1/migrations.
type List struct {
	Migrations []migrate.Status `json:"migrations"` // by name
}

// A StepList is the answer of GET /v1/migrations/{name}/steps.
type StepList struct {
	Steps []migrate.Step `json:"steps"` // in order
}

// A CommandRequest is the body of a command.
type CommandRequest struct {
	Gate   string   `json:"gate,omitempty"`   // approve: which. Default "approval"
	Tables []string `json:"tables,omitempty"` // resync: which, named as on either side
	Force  bool     `json:"force,omitempty"`  // complete: although something stands against it
	Wait   bool     `json:"wait,omitempty"`   // answer when the command has done its work
	Actor  string   `json:"actor,omitempty"`  // who asks, for the journal. Default: the token's name, or "api"
}

func verbs() []migrate.Verb {
	return []migrate.Verb{migrate.Approve, migrate.Pause, migrate.Resume, migrate.Promote, migrate.Rollback, migrate.Complete, migrate.Cancel, migrate.Resync, migrate.Routed, migrate.Slow, migrate.Unslow, migrate.PauseVerify, migrate.ResumeVerify}
}

func (s *Server) list(c *gin.Context) {
	c.JSON(http.StatusOK, List{Migrations: append([]migrate.Status{}, s.cfg.Service.List()...)})
}

func (s *Server) show(c *gin.Context) {
	status, err := s.cfg.Service.Get(c.Param("name"))
	if err != nil {
		s.refuse(c, problemOf(err, CodeInternal))
		return
	}
	c.JSON(http.StatusOK, status)
}

func (s *Server) steps(c *gin.Context) {
	steps, err := s.cfg.Service.Steps(c.Param("name"))
	if err != nil {
		s.refuse(c, problemOf(err, CodeInternal))
		return
	}
	c.JSON(http.StatusOK, StepList{Steps: steps})
}

func (s *Server) start(c *gin.Context) {
	var r StartRequest
	if err := body(c, &r, "playbook", "yaml", "params", "yes"); err != nil {
		s.refuse(c, problemOf(err, CodeBadRequest))
		return
	}
	if (r.Playbook == "") == (r.YAML == "") {
		s.refuse(c, problem(CodeBadRequest, "a migration starts from a playbook's name or from its text", `give "playbook" or "yaml", and not both`))
		return
	}
	if r.Yes { // it opens gates ahead
		if p := s.lacks(c, Approver); p != nil {
			s.refuse(c, p)
			return
		}
	}
	status, err := s.cfg.Service.Start(c.Request.Context(), r)
	if err != nil { // what has no code of its own is a mistake in the playbook or a parameter
		s.refuse(c, problemOf(err, CodeBadRequest))
		return
	}
	s.cfg.Log.LogAttrs(c.Request.Context(), slog.LevelInfo, "migration started", slog.String("migration", status.Name), slog.String("actor", s.actor(c, "")))
	c.Header("Location", c.Request.URL.Path+"/"+status.Name)
	c.JSON(http.StatusCreated, status)
}

// amend answers with the status; the migration goes on by a command.
func (s *Server) amend(c *gin.Context) {
	var r AmendRequest
	if err := body(c, &r, "yaml", "params", "actor"); err != nil {
		s.refuse(c, problemOf(err, CodeBadRequest))
		return
	}
	name := c.Param("name")
	if r.YAML == "" {
		s.refuse(c, problem(CodeBadRequest, "a changed playbook without its text", `give "yaml"`))
		return
	}
	r.Actor = s.actor(c, r.Actor)
	if err := s.cfg.Service.Amend(c.Request.Context(), name, r); err != nil { // mostly a mistake in the playbook
		s.refuse(c, problemOf(err, CodeBadRequest))
		return
	}
	s.cfg.Log.LogAttrs(c.Request.Context(), slog.LevelInfo, "playbook changed", slog.String("migration", name), slog.String("actor", r.Actor))
	s.show(c)
}

// verify answers when the comparison is done. A difference is an answer, not an error.
func (s *Server) verify(c *gin.Context) {
	var r VerifyRequest
	if err := body(c, &r, "rows_only", "repair", "apply", "actor"); err != nil {
		s.refuse(c, problemOf(err, CodeBadRequest))
		return
	}
	r.Actor = s.actor(c, r.Actor)
	comparison, err := s.cfg.Service.Verify(c.Request.Context(), c.Param("name"), r)
	if err != nil {
		s.refuse(c, problemOf(err, CodeFailed))
		return
	}
	c.JSON(http.StatusOK, comparison)
}

// evidence answers with the newest report as it was sealed.
func (s *Server) evidence(c *gin.Context) {
	report, err := s.cfg.Service.Evidence(c.Request.Context(), c.Param("name"))
	if err != nil {
		s.refuse(c, problemOf(err, CodeFailed))
		return
	}
	c.Data(http.StatusOK, "application/json", report)
}

// command answers 202 when the command is on record, or 200 when it was waited for and is done.
func (s *Server) command(c *gin.Context) {
	name, verb := c.Param("name"), migrate.Verb(c.Param("verb"))
	if !slices.Contains(verbs(), verb) {
		words := make([]string, 0, len(verbs()))
		for _, v := range verbs() {
			words = append(words, string(v))
		}
		err := hint.Suggest(fmt.Errorf("no command %q", string(verb)), string(verb), words)
		s.refuse(c, problem(CodeNotFound, err.Error(), hint.Of(err)))
		return
	}
	role := Operator
	if verb == migrate.Approve {
		role = Approver
	}
	if p := s.lacks(c, role); p != nil {
		s.refuse(c, p)
		return
	}
	var r CommandRequest
	if err := r.read(c, verb); err != nil {
		s.refuse(c, problemOf(err, CodeBadRequest))
		return
	}
	ask := migrate.Command{Verb: verb, Gate: r.Gate, Tables: r.Tables, Actor: s.actor(c, r.Actor), Force: r.Force, Wait: r.Wait}
	if err := s.cfg.Service.Do(c.Request.Context(), name, ask); err != nil {
		other := CodeInternal
		if r.Wait {
			other = CodeFailed
		}
		s.refuse(c, problemOf(err, other))
		return
	}
	s.cfg.Log.LogAttrs(c.Request.Context(), slog.LevelInfo, "command taken",
		slog.String("migration", name), slog.String("verb", string(verb)), slog.String("actor", ask.Actor))
	status, err := s.cfg.Service.Get(name)
	if err != nil {
		s.refuse(c, problemOf(err, CodeInternal))
		return
	}
	code := http.StatusAccepted
	if r.Wait {
		code = http.StatusOK
	}
	c.JSON(code, status)
}

func (r *CommandRequest) read(c *gin.Context, verb migrate.Verb) error {
	if err := body(c, r, "gate", "tables", "force", "wait", "actor"); err != nil {
		return err
	}
	if r.Gate != "" && verb != migrate.Approve {
		return problem(CodeBadRequest, fmt.Sprintf("%s takes no gate", verb), "gate goes with approve")
	}
	if r.Force && verb != migrate.Complete {
		return problem(CodeBadRequest, fmt.Sprintf("%s takes no force", verb), "force goes with complete")
	}
	if (len(r.Tables) > 0) != (verb == migrate.Resync) {
		return problem(CodeBadRequest, fmt.Sprintf("%s with %d tables", verb, len(r.Tables)), "tables go with resync, which needs at least one")
	}
	if len([]rune(r.Actor)) > maxActor || strings.ContainsFunc(r.Actor, func(x rune) bool { return !unicode.IsPrint(x) }) {
		return problem(CodeBadRequest, fmt.Sprintf("the actor is longer than %d characters, or they cannot be printed", maxActor), "give a name")
	}
	return nil
}

// actor is who the journal names. Where there are tokens, the token's name is always part of it.
func (s *Server) actor(c *gin.Context, given string) string {
	token := s.caller(c).name
	if given == "" || token == "" || given == token {
		return cmp.Or(token, given, "api")
	}
	return given + " via " + token
}

// body reads a JSON body strictly: said to be JSON, no unknown field, nothing behind it. An empty
// body is an empty object. fields are for the hint.
func body(c *gin.Context, into any, fields ...string) error {
	if c.ContentType() != "application/json" {
		return problem(CodeMediaType, fmt.Sprintf("a body of type %q", c.ContentType()), "send Content-Type: application/json")
	}
	control := http.NewResponseController(c.Writer)
	if err := control.SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	dec := json.NewDecoder(http.MaxBytesReader(c.Writer, c.Request.Body, maxBody))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = cmp.Or(more, errors.New("something follows the JSON object"))
		}
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return problem(CodeTooLarge, fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit), "")
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return problem(CodeBadRequest, "read the request's body: "+strings.TrimPrefix(err.Error(), "json: "), "its fields are: "+strings.Join(fields, ", "))
	}
	// What waits for the command must not end with the time to send it.
	if err := control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}
