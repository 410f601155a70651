package buffer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// A State says how far a command has come.
type State string

// The states. Answered and dropped commands are over; a dead one waits for a person.
const (
	Waiting  State = "waiting"  // durable, and not at the data server now
	Sending  State = "sending"  // at the data server
	Answered State = "answered" // the data server's answer is kept
	Dead     State = "dead"     // tried too often: "requeue" or "drop"
	Dropped  State = "dropped"  // a person gave it up
)

// States lists all states.
func States() []State { return []State{Waiting, Sending, Dead, Answered, Dropped} }

// Over reports whether nothing will happen with the command any more.
func (s State) Over() bool { return s == Answered || s == Dropped }

// The longest texts of a command, in bytes.
const (
	maxKey  = 255
	maxType = 100
)

// A Command is a change that a client asks a data server for, to be made once.
type Command struct {
	// Key is the client's name for this command: the same key is the same command. Required; up to
	// 255 printable ASCII characters.
	Key string `json:"key"`
	// Order keeps commands in line: those with the same Order go one after the other, as they came.
	// Default: the command has no order.
	Order string `json:"order,omitempty"`
	// Type says what is asked for. Required; letters, digits, '.', '_' and '-'.
	Type string `json:"type"`
	// Payload is passed to the data server as it is. JSON.
	Payload json.RawMessage `json:"payload,omitempty"`
	// Headers are passed to the data server too.
	Headers map[string]string `json:"headers,omitempty"`
}

// An Answer is what the data server said.
type Answer struct {
	Status  int               `json:"status"` // of HTTP
	Headers map[string]string `json:"headers,omitempty"`
	Body    []byte            `json:"body,omitempty"`
	Cut     bool              `json:"cut,omitempty"` // the body was too large to be kept and is missing
}

// An Entry is what the log knows of a command, but for its payload.
type Entry struct {
	Seq      uint64    `json:"seq"` // counts accepted commands
	Key      string    `json:"key"`
	Order    string    `json:"order,omitempty"`
	Type     string    `json:"type"`
	State    State     `json:"state"`
	Attempts int       `json:"attempts"`        // answers of the data server that were no answers to keep
	Error    string    `json:"error,omitempty"` // why the last attempt was none
	Accepted time.Time `json:"accepted"`
	Over     time.Time `json:"over,omitzero"` // when it was answered, dropped or died
	Answer   *Answer   `json:"answer,omitempty"`
}

// A record is an Entry as it is stored.
type record struct {
	Entry

	Print   []byte    `json:"print"`          // of the command: the same key with another one is refused
	Since   time.Time `json:"since,omitzero"` // when its time to be answered began; requeue begins it anew
	Payload int64     `json:"payload"`        // its command's size
}

// ErrMismatch says that a key came again with another command.
var ErrMismatch = errors.New("the key belongs to another command")

// ErrUnknown says that there is no command of that key, or no longer.
var ErrUnknown = errors.New("no such command")

// ErrState says that what was asked for does not fit the command's state.
var ErrState = errors.New("the command's state does not allow it")

// An InvalidError says why a command cannot be accepted, ever.
type InvalidError struct{ Why string }

func (e *InvalidError) Error() string { return e.Why }

// A FullError refuses a command because the log has no room for it now.
type FullError struct {
	Commands int           // that are not over
	Bytes    int64         // of these and of answers that are kept
	After    time.Duration // when to try again
}

func (e *FullError) Error() string {
	return fmt.Sprintf("command log is full: %d commands, %d bytes", e.Commands, e.Bytes)
}

// Retryable reports true: nothing was done with the command.
func (e *FullError) Retryable() bool { return true }

// An AttemptError is what a Send says that got no answer to keep.
type AttemptError struct {
	Err error
	// Spent says that the data server had the command and failed: it counts against
	// CommandsConfig.Attempts. Otherwise the data server could not be reached or had no time.
	Spent bool
	// Hopeless says that another attempt would come to the same.
	Hopeless bool
	// After is when the data server wants to be asked again (default: by the backoff).
	After time.Duration
}

func (e *AttemptError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *AttemptError) Unwrap() error { return e.Err }

func (c *Command) validate(maxPayload int) error {
	bad := func(format string, args ...any) error { return &InvalidError{fmt.Sprintf(format, args...)} }
	switch {
	case c.Key == "":
		return bad("the command has no key")
	case len(c.Key) > maxKey || !printable(c.Key):
		return bad("the key is longer than %d characters, or not printable ASCII", maxKey)
	case len(c.Order) > maxKey || !printable(c.Order):
		return bad("the ordering key is longer than %d characters, or not printable ASCII", maxKey)
	case c.Type == "":
		return bad("the command has no type")
	case len(c.Type) > maxType || !word(c.Type):
		return bad("the type is longer than %d characters, or not made of letters, digits, '.', '_' and '-'", maxType)
	case len(c.Payload) > 0 && !json.Valid(c.Payload):
		return bad("the payload is not JSON")
	}
	if n := c.size(); n > int64(maxPayload) {
		return bad("payload and headers have %d bytes, more than %d", n, maxPayload)
	}
	return nil
}

// size is what a command takes besides its record.
func (c *Command) size() int64 {
	n := len(c.Payload)
	for k, v := range c.Headers {
		n += len(k) + len(v)
	}
	return int64(n)
}

// print tells commands apart. Headers are not part of it: a client that tries again sends another
// trace or date.
func (c *Command) print() []byte {
	var compact bytes.Buffer
	if err := json.Compact(&compact, c.Payload); err != nil { // there is none
		compact.Reset()
	}
	h := sha256.New()
	for _, part := range [][]byte{[]byte(c.Type), []byte(c.Order), compact.Bytes()} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write(part)
	}
	return h.Sum(nil)
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func word(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}
