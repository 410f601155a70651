package gateway

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// scramIterations is PostgreSQL's default for new secrets.
const scramIterations = 4096

// users are those who may connect. A nil map inside means that everybody is trusted.
type users struct {
	byName map[string]user
	// mock makes the salt of users that do not exist, the same one each time, so that an attempt
	// does not tell whether there is such a user.
	mock [32]byte
}

type user struct {
	password string // "" when the file holds only a SCRAM secret
	stored   scram.StoredCredentials
}

func loadUsers(path string) (users, error) {
	u := users{}
	if _, err := rand.Read(u.mock[:]); err != nil {
		return u, fmt.Errorf("gateway: random numbers: %w", err)
	}
	if path == "" {
		return u, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return u, fmt.Errorf("gateway: users file: %w", err)
	}
	defer f.Close()
	u.byName, err = readUsers(f)
	if err != nil {
		return u, hint.Wrap(fmt.Errorf("gateway: users file %s: %w", path, err),
			`each line is "user" "password" or "user" "SCRAM-SHA-256$..."; double a quote inside quotes`)
	}
	return u, nil
}

// readUsers parses lines of the form `"user" "secret"`; empty lines and those that begin with ; or
// # are comments. Errors name the line, never what it holds.
func readUsers(r io.Reader) (map[string]user, error) {
	found := map[string]user{}
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == ';' || line[0] == '#' {
			continue
		}
		name, rest, ok := quoted(line)
		secret, rest, ok2 := quoted(strings.TrimSpace(rest))
		if !ok || !ok2 || strings.TrimSpace(rest) != "" || name == "" {
			return nil, fmt.Errorf("line %d: want two quoted words", n)
		}
		if _, twice := found[name]; twice {
			return nil, fmt.Errorf("line %d: user %q is there twice", n, name)
		}
		u, err := newUser(name, secret)
		if err != nil {
			return nil, fmt.Errorf("line %d: user %q: %w", n, name, err)
		}
		found[name] = u
	}
	return found, lines.Err()
}

// quoted takes a word in double quotes off the front of s.
func quoted(s string) (word, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		return "", s, false
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '"' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == '"' {
			b.WriteByte('"')
			i++
			continue
		}
		return b.String(), s[i+1:], true
	}
	return "", s, false
}

func newUser(name, secret string) (user, error) {
	switch {
	case secret == "":
		return user{}, errors.New("empty secret")
	case strings.HasPrefix(secret, "SCRAM-SHA-256$"):
		stored, err := parseSecret(secret)
		return user{stored: stored}, err
	case strings.HasPrefix(secret, "md5") && len(secret) == 35:
		return user{}, errors.New("md5 secrets are not supported")
	}
	client, err := scram.SHA256.NewClient(name, secret, "")
	if err != nil { // not in SASLprep's alphabet: PostgreSQL takes such a password as it is
		if client, err = scram.SHA256.NewClientUnprepped(name, secret, ""); err != nil {
			return user{}, err
		}
	}
	salt := make([]byte, 16)
	if _, err := rand.Read(salt); err != nil {
		return user{}, err
	}
	stored, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: string(salt), Iters: scramIterations})
	return user{password: secret, stored: stored}, err
}

// parseSecret reads SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>.
// Source: PostgreSQL manual, pg_authid.
func parseSecret(s string) (scram.StoredCredentials, error) {
	var c scram.StoredCredentials
	bad := errors.New("malformed SCRAM-SHA-256 secret")
	parts := strings.Split(s, "$")
	if len(parts) != 3 {
		return c, bad
	}
	iterations, salt, ok := strings.Cut(parts[1], ":")
	stored, server, ok2 := strings.Cut(parts[2], ":")
	n, err := strconv.Atoi(iterations)
	if !ok || !ok2 || err != nil || n < 1 {
		return c, bad
	}
	rawSalt, err1 := base64.StdEncoding.DecodeString(salt)
	storedKey, err2 := base64.StdEncoding.DecodeString(stored)
	serverKey, err3 := base64.StdEncoding.DecodeString(server)
	if err := errors.Join(err1, err2, err3); err != nil || len(storedKey) != sha256.Size || len(serverKey) != sha256.Size {
		return c, bad
	}
	c.KeyFactors = scram.KeyFactors{Salt: string(rawSalt), Iters: n}
	c.StoredKey, c.ServerKey = storedKey, serverKey
	return c, nil
}

// trusted reports whether nobody has to authenticate.
func (u *users) trusted() bool { return u.byName == nil }

// nobody returns what an unknown user must prove to know: something that nobody knows.
func (u *users) nobody(name string) user {
	key := mac(u.mock[:], name+"key")
	return user{stored: scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(mac(u.mock[:], name)[:16]), Iters: scramIterations},
		StoredKey:  key, ServerKey: key,
	}}
}
