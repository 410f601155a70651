package httpdoor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ficus-migrate/ficus/buffer"
)

// bodyTimeout bounds how slowly a client may send a command.
const bodyTimeout = 30 * time.Second

// openCommands opens the log and compiles what its types say.
func (d *Door) openCommands() (err error) {
	c := d.cfg.Commands
	if !strings.HasPrefix(c.Path, "/") || strings.HasSuffix(c.Path, "/") || strings.ContainsAny(c.Path, "{} ") {
		return fmt.Errorf("HTTP door: commands: path %q: want one such as /v1/commands", c.Path)
	}
	if d.types, err = compileTypes(c.Types, d.servers); err != nil {
		return fmt.Errorf("HTTP door: commands: %w", err)
	}
	if c.Tokens != "" {
		if d.tokens, err = readTokens(c.Tokens); err != nil {
			return fmt.Errorf("HTTP door: %w", err)
		}
	}
	log := c.Log
	log.Send, log.Stalled, log.Log = d.send, d.stalled, d.cfg.Log
	if d.commands, err = buffer.OpenCommands(log); err != nil {
		return err
	}
	api := http.NewServeMux()
	api.HandleFunc("POST "+c.Path, d.post)
	api.HandleFunc("GET "+c.Path+"/{key}", d.status)
	d.api = d.tokens.need(api)
	return nil
}

// A posted command is the body of POST /v1/commands.
type posted struct {
	Key     string            `json:"key"`
	Order   string            `json:"order"`
	Type    string            `json:"type"`
	Payload json.RawMessage   `json:"payload"`
	Headers map[string]string `json:"headers"`
}

// post accepts a command, and waits for its answer if the client prefers that.
func (d *Door) post(w http.ResponseWriter, r *http.Request) {
	c, ok := d.readCommand(w, r)
	if !ok {
		return
	}
	if code, why := d.unfit(r.Context(), c); why != "" {
		refuse(w, http.StatusUnprocessableEntity, code, 0, why, "")
		return
	}
	entry, fresh, err := d.commands.Accept(r.Context(), c)
	if err != nil {
		refuseCommand(w, err)
		return
	}
	if !fresh {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	waits := d.prefer(w, r)
	if entry, err = d.wait(r.Context(), entry, waits); err != nil {
		refuseCommand(w, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	location := d.cfg.Commands.Path + "/" + url.PathEscape(entry.Key)
	switch entry.State {
	case buffer.Answered:
		w.Header().Set("Content-Location", location)
		writeAnswer(w, entry.Answer)
	case buffer.Dead:
		refuse(w, http.StatusBadGateway, CodeDead, 0, "the data server failed at the command: "+entry.Error, "an operator sends it again: ficus commands requeue")
	case buffer.Dropped:
		refuse(w, http.StatusGone, CodeDropped, 0, "an operator gave the command up", "a new command needs a new key")
	case buffer.Waiting, buffer.Sending:
		w.Header().Set("Location", location)
		w.Header().Set("Retry-After", "1")
		writeJSON(w, http.StatusAccepted, "application/json", statusOf(entry))
	}
}

// readCommand reads the request, and answers it if it is none.
func (d *Door) readCommand(w http.ResponseWriter, r *http.Request) (c buffer.Command, ok bool) {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		refuse(w, http.StatusUnsupportedMediaType, CodeMediaType, 0, fmt.Sprintf("a body of type %q", r.Header.Get("Content-Type")), "send Content-Type: application/json")
		return c, false
	}
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return c, false // the connection is gone
	}
	defer func() { _ = http.NewResponseController(w).SetReadDeadline(time.Time{}) }()
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, d.maxPosted()))
	dec.DisallowUnknownFields()
	var p posted
	err := dec.Decode(&p)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the JSON object")
		}
	}
	if tooLarge, is := errors.AsType[*http.MaxBytesError](err); is {
		refuse(w, http.StatusRequestEntityTooLarge, CodeTooLarge, 0, fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit), "")
		return c, false
	} else if err != nil {
		refuse(w, http.StatusBadRequest, CodeBadRequest, 0, "read the command: "+strings.TrimPrefix(err.Error(), "json: "), "its fields are: key, order, type, payload, headers")
		return c, false
	}
	header, err := headerKey(r.Header)
	if err == nil && header != "" && p.Key != "" && p.Key != header {
		err = errors.New("the header Idempotency-Key and the field key differ")
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, CodeBadRequest, 0, err.Error(), `send one of them, such as Idempotency-Key: "8e03978e-40d5"`)
		return c, false
	}
	if p.Key == "" {
		p.Key = header
	}
	return buffer.Command{Key: p.Key, Order: p.Order, Type: p.Type, Payload: p.Payload, Headers: p.Headers}, true
}

// maxPosted is how large a body may be: a payload and what is around it.
func (d *Door) maxPosted() int64 {
	const around = 8 << 10
	if n := d.cfg.Commands.Log.MaxPayload; n > 0 {
		return int64(n) + around
	}
	return 1<<20 + around
}

// headerKey reads Idempotency-Key: a string of structured fields (RFC 9651), or the bare text that many
// clients send. "" when it is not there.
func headerKey(h http.Header) (string, error) {
	values := h.Values("Idempotency-Key")
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1:
		return "", errors.New("more than one Idempotency-Key")
	}
	v := strings.TrimSpace(values[0])
	if !strings.HasPrefix(v, `"`) {
		return v, nil
	}
	var b strings.Builder
	for i := 1; i < len(v); i++ {
		switch c := v[i]; {
		case c == '"':
			if i != len(v)-1 {
				return "", errors.New("something follows the string in Idempotency-Key")
			}
			return b.String(), nil
		case c == '\\' && i+1 < len(v) && (v[i+1] == '"' || v[i+1] == '\\'):
			i++
			b.WriteByte(v[i])
		case c == '\\':
			return "", errors.New("Idempotency-Key has an escape that is none")
		default:
			b.WriteByte(c)
		}
	}
	return "", errors.New("Idempotency-Key has no closing quote")
}

// quoted writes a key as Idempotency-Key wants it.
func quoted(key string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`
}

// prefer returns how long the client prefers to wait (RFC 7240).
func (d *Door) prefer(w http.ResponseWriter, r *http.Request) time.Duration {
	for _, line := range r.Header.Values("Prefer") {
		for one := range strings.SplitSeq(line, ",") {
			one, _, _ = strings.Cut(one, ";")
			name, value, _ := strings.Cut(strings.TrimSpace(one), "=")
			n, err := strconv.Atoi(strings.Trim(strings.TrimSpace(value), `"`))
			if !strings.EqualFold(strings.TrimSpace(name), "wait") || err != nil || n < 0 {
				continue
			}
			limit := int(d.cfg.Commands.MaxWait / time.Second)
			n = min(n, limit)
			w.Header().Set("Preference-Applied", "wait="+strconv.Itoa(n))
			return time.Duration(n) * time.Second
		}
	}
	return 0
}

// wait waits so long for a command to be over or dead.
func (d *Door) wait(ctx context.Context, entry buffer.Entry, t time.Duration) (buffer.Entry, error) {
	if t == 0 || entry.State.Over() || entry.State == buffer.Dead {
		return entry, nil
	}
	ctx, cancel := context.WithTimeout(ctx, t)
	defer cancel()
	return d.commands.Wait(ctx, entry.Key)
}

// status tells where a command stands.
func (d *Door) status(w http.ResponseWriter, r *http.Request) {
	entry, err := d.commands.Look(r.Context(), r.PathValue("key"))
	if err == nil {
		entry, err = d.wait(r.Context(), entry, d.prefer(w, r))
	}
	if err != nil {
		refuseCommand(w, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	if !entry.State.Over() && entry.State != buffer.Dead {
		w.Header().Set("Retry-After", "1")
	}
	writeJSON(w, http.StatusOK, "application/json", statusOf(entry))
}

// A commandStatus is the answer of GET /v1/commands/{key}.
type commandStatus struct {
	Key      string       `json:"key"`
	Order    string       `json:"order,omitempty"`
	Type     string       `json:"type"`
	State    buffer.State `json:"state"`
	Attempts int          `json:"attempts"`
	Error    string       `json:"error,omitempty"`
	Accepted time.Time    `json:"accepted"`
	Over     time.Time    `json:"over,omitzero"`
	Answer   *answer      `json:"answer,omitempty"`
}

// An answer is what the data server said: Body if that is JSON, Text if not.
type answer struct {
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers,omitempty"`
	Body    json.RawMessage   `json:"body,omitempty"`
	Text    string            `json:"text,omitempty"`
	Cut     bool              `json:"cut,omitempty"`
}

func statusOf(e buffer.Entry) commandStatus {
	s := commandStatus{
		Key: e.Key, Order: e.Order, Type: e.Type, State: e.State, Attempts: e.Attempts, Error: e.Error, Accepted: e.Accepted, Over: e.Over,
	}
	if a := e.Answer; a != nil {
		s.Answer = &answer{Status: a.Status, Headers: a.Headers, Cut: a.Cut}
		if len(a.Body) > 0 && json.Valid(a.Body) {
			s.Answer.Body = bytes.TrimSpace(a.Body)
		} else {
			s.Answer.Text = string(a.Body)
		}
	}
	return s
}

// writeAnswer gives a client what the data server said.
func writeAnswer(w http.ResponseWriter, a *buffer.Answer) {
	for k, v := range a.Headers {
		w.Header().Set(k, v)
	}
	if a.Cut {
		w.Header().Set("Ficus-Answer-Cut", "true")
	}
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body) // a client that has gone away asks again
}

// refuseCommand answers for a command that was not accepted, or is not known.
func refuseCommand(w http.ResponseWriter, err error) {
	var full *buffer.FullError
	var closed *buffer.Error
	var invalid *buffer.InvalidError
	switch {
	case errors.As(err, &full):
		refuse(w, http.StatusTooManyRequests, CodeFull, full.After, "there is no room for more commands now", "nothing was done: send the same command again")
	case errors.As(err, &closed):
		refuse(w, http.StatusServiceUnavailable, CodeStopping, time.Second, "the door stops", "nothing was done: send the same command again")
	case errors.As(err, &invalid):
		refuse(w, http.StatusBadRequest, CodeBadRequest, 0, err.Error(), "")
	case errors.Is(err, buffer.ErrMismatch):
		refuse(w, http.StatusUnprocessableEntity, CodeMismatch, 0, err.Error(), "a command that differs in type, order or payload needs a key of its own")
	case errors.Is(err, buffer.ErrUnknown):
		refuse(w, http.StatusNotFound, CodeUnknown, 0, err.Error(), "answers are kept for a limited time")
	case errors.Is(err, context.Canceled): // the client went away
	default:
		refuse(w, http.StatusInternalServerError, CodeInternal, time.Second, "whether the command was accepted is not known", "send the same command again: its key keeps it from being done twice")
	}
}
