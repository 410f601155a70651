package httpdoor

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// shortest is the least length of a token that the file shows in the clear.
const shortest = 16

// tokens are the SHA-256 sums of those that a client may send. Nil: none is needed.
type tokens map[[sha256.Size]byte]struct{}

// readTokens reads a file with one token, or sha256: and its sum, per line; '#' begins a comment. Its
// errors never show a token.
func readTokens(path string) (tokens, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	defer f.Close()
	found := tokens{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		text = strings.TrimSpace(text)
		digits, hashed := strings.CutPrefix(text, "sha256:")
		sum, err := hex.DecodeString(digits)
		switch {
		case text == "":
		case hashed && (err != nil || len(sum) != sha256.Size):
			return nil, hint.Wrap(fmt.Errorf("read tokens: %s: line %d: what follows sha256: are not 64 hexadecimal digits", path, n), "printf %%s TOKEN | sha256sum")
		case hashed:
			found[[sha256.Size]byte(sum)] = struct{}{}
		case len(text) < shortest:
			return nil, hint.Wrap(fmt.Errorf("read tokens: %s: line %d: a token of fewer than %d characters", path, n, shortest), "openssl rand -hex 24 makes one")
		default:
			found[sha256.Sum256([]byte(text))] = struct{}{}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	if len(found) == 0 {
		return nil, hint.Wrap(errors.New("read tokens: "+path+" has none"), "one token per line; openssl rand -hex 24 makes one")
	}
	return found, nil
}

// need lets a request pass that has a token.
func (t tokens) need(next http.Handler) http.Handler {
	if t == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		word, given := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if _, ok := t[sha256.Sum256([]byte(word))]; !given || !ok {
			w.Header().Set("WWW-Authenticate", `Bearer realm="commands"`)
			refuse(w, http.StatusUnauthorized, CodeNoToken, 0, "commands need a token, and the request has none that is known", "send Authorization: Bearer TOKEN")
			return
		}
		next.ServeHTTP(w, r)
	})
}
