package api

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// A Role says what a token may do. Every role may look.
type Role string

// The roles. Operators cannot approve and approvers cannot operate, so that two people are needed
// where a playbook asks for an approval.
const (
	Viewer   Role = "viewer"
	Operator Role = "operator" // starts migrations and drives them
	Approver Role = "approver" // opens manual gates
)

// shortest is the least length of a token that the file shows in the clear.
const shortest = 16

// hashPrefix marks a token of which the file knows only the SHA-256 sum, in hexadecimal.
const hashPrefix = "sha256:"

// A grant is one line of the tokens file.
type grant struct {
	name  string
	roles []Role
}

func (g *grant) has(r Role) bool { return r == Viewer || slices.Contains(g.roles, r) }

// grants finds who a token belongs to by the token's SHA-256 sum. Nil: no tokens, everything is
// allowed.
type grants map[[sha256.Size]byte]*grant

// readTokens reads a file of lines "token role[,role...] name"; '#' begins a comment.
func readTokens(path string) (grants, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read API tokens: %w", err)
	}
	defer f.Close()
	found, plain, err := parseTokens(f)
	if err != nil {
		return nil, fmt.Errorf("read API tokens: %s: %w", path, err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read API tokens: %w", err)
	}
	if plain && info.Mode().IsRegular() && info.Mode().Perm()&0o007 != 0 {
		return nil, hint.Wrap(fmt.Errorf("read API tokens: everybody on this machine can read %s", path),
			"chmod 600 %s, or keep only sums in it: sha256:$(printf %%s TOKEN | sha256sum)", path)
	}
	return found, nil
}

// parseTokens also reports whether a token stands in the clear.
func parseTokens(r io.Reader) (found grants, plain bool, err error) {
	found = grants{}
	names := map[string]bool{}
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 3 {
			return nil, false, hint.Wrap(fmt.Errorf("line %d has %d words", n, len(fields)), "each line is: token role[,role] name")
		}
		sum, bare, err := tokenSum(fields[0])
		if err != nil {
			return nil, false, fmt.Errorf("line %d: %w", n, err)
		}
		g := &grant{name: fields[2]}
		for word := range strings.SplitSeq(fields[1], ",") {
			if !slices.Contains([]Role{Viewer, Operator, Approver}, Role(word)) {
				return nil, false, hint.Suggest(fmt.Errorf("line %d: no role %q", n, word), word, []string{string(Viewer), string(Operator), string(Approver)})
			}
			g.roles = append(g.roles, Role(word))
		}
		if names[g.name] || found[sum] != nil {
			return nil, false, fmt.Errorf("line %d: the token or the name %q was there before", n, g.name)
		}
		names[g.name], found[sum], plain = true, g, plain || bare
	}
	if err := lines.Err(); err != nil {
		return nil, false, err
	}
	if len(found) == 0 {
		return nil, false, hint.Wrap(fmt.Errorf("no token in it"), "a line is: token role[,role] name; openssl rand -hex 24 makes a token")
	}
	return found, plain, nil
}

// tokenSum never puts the token in its error.
func tokenSum(word string) (sum [sha256.Size]byte, plain bool, err error) {
	digits, hashed := strings.CutPrefix(word, hashPrefix)
	if !hashed {
		if len(word) < shortest {
			return sum, false, hint.Wrap(fmt.Errorf("a token of fewer than %d characters", shortest), "openssl rand -hex 24 makes one")
		}
		return sha256.Sum256([]byte(word)), true, nil
	}
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) != len(sum) {
		return sum, false, hint.Wrap(fmt.Errorf("what follows %s is not 64 hexadecimal digits", hashPrefix), "printf %%s TOKEN | sha256sum")
	}
	return [sha256.Size]byte(b), false, nil
}

// grantKey is where the caller's grant stands in a request's gin.Context.
const grantKey = "ficus.grant"

// need lets a request pass whose token has a role.
func (s *Server) need(r Role) gin.HandlerFunc {
	return func(c *gin.Context) {
		if s.tokens == nil {
			return
		}
		word, given := strings.CutPrefix(c.GetHeader("Authorization"), "Bearer ")
		g := s.tokens[sha256.Sum256([]byte(word))]
		if !given || g == nil {
			c.Header("WWW-Authenticate", `Bearer realm="ficus"`)
			s.refuse(c, problem(CodeUnauthorized, "this API needs a token, and the request has none that it knows",
				"send Authorization: Bearer TOKEN (ficus: --token or FICUS_TOKEN)"))
			return
		}
		c.Set(grantKey, g)
		if p := s.lacks(c, r); p != nil {
			s.refuse(c, p)
		}
	}
}

// lacks says why the caller may not act in a role, or nil.
func (s *Server) lacks(c *gin.Context, r Role) *Problem {
	g := s.caller(c)
	if s.tokens == nil || g.has(r) {
		return nil
	}
	return problem(CodeForbidden, fmt.Sprintf("token %s has no role %s", g.name, r), fmt.Sprintf("ask somebody whose token has the role %s", r))
}

// caller returns whose token came with the request; without tokens, nobody's.
func (s *Server) caller(c *gin.Context) *grant {
	if g, ok := c.Value(grantKey).(*grant); ok {
		return g
	}
	return &grant{}
}

// guard keeps other people's web pages away from an API that needs no token: a page may not reach
// it under a name of its own (DNS rebinding), nor send it a command from elsewhere (CSRF).
func (s *Server) guard(c *gin.Context) {
	if err := s.origins.Check(c.Request); err != nil {
		s.refuse(c, problem(CodeForbidden, "a page of another site may not send commands", "open the dashboard at the address that ficus printed"))
		return
	}
	if s.tokens != nil {
		return // a page cannot send a token that it does not know
	}
	host := c.Request.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if !loopback(strings.Trim(host, "[]")) {
		s.refuse(c, problem(CodeForbidden, fmt.Sprintf("the request is for host %q, this is a loopback address", host), "use localhost or 127.0.0.1"))
	}
}

// loopback reports whether a host name or address stays on this machine, without asking DNS.
func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// secure sets what browsers are to forbid.
func secure(c *gin.Context) {
	h := c.Writer.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	if c.Request.TLS != nil {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
	h.Set("Cache-Control", "no-cache")
}
