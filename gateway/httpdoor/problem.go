package httpdoor

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"
)

// A Code says what kind of refusal an answer of the door itself is. Clients switch on it.
type Code string

// The codes. After those that say so nothing was done, and the same request may be sent again.
const (
	CodeHeld        Code = "held"         // 503: a write waited for too long; nothing was done
	CodeCrowded     Code = "crowded"      // 503: too many wait; nothing was done
	CodeStopping    Code = "stopping"     // 503: the process ends; nothing was done
	CodeFull        Code = "full"         // 429: the command log has no room; nothing was done
	CodeUnreachable Code = "unreachable"  // 502: no answer of the data server; nobody knows whether it acted
	CodeBadRequest  Code = "bad_request"  // 400
	CodeNoToken     Code = "unauthorized" // 401
	CodeUnknown     Code = "not_found"    // 404: no command of that key, or no longer
	CodeDropped     Code = "dropped"      // 410: an operator gave the command up
	CodeTooLarge    Code = "too_large"    // 413
	CodeMediaType   Code = "unsupported_media_type"
	CodeMismatch    Code = "mismatch" // 422: the key belongs to another command
	CodeUnfit       Code = "unfit"    // 422: no such type, or its payload is not what it should be
	CodeDead        Code = "dead"     // 502: the data server failed at the command for too often
	CodeInternal    Code = "internal" // 500
)

// A problem is an error as it travels (RFC 9457).
type problem struct {
	Type    string `json:"type"`
	Title   string `json:"title"`
	Status  int    `json:"status"`
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// refuse answers with a problem; after, unless 0, is when to try again.
func refuse(w http.ResponseWriter, status int, code Code, after time.Duration, message, advice string) {
	h := w.Header()
	if after > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(after.Seconds()))))
	}
	h.Set("Cache-Control", "no-store")
	writeJSON(w, status, "application/problem+json", problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Message: message, Hint: advice,
	})
}

func writeJSON(w http.ResponseWriter, status int, contentType string, v any) {
	data, err := json.Marshal(v)
	if err != nil { // of types of ours, all of which can be encoded
		status, data = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n')) // a client that has gone away needs no answer
}
