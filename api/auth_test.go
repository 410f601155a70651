package api

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/migrate"
)

const (
	viewerToken   = "viewer-0123456789"
	operatorToken = "operator-0123456789"
	approverToken = "approver-0123456789"
	bothToken     = "both-roles-0123456789"
)

func tokensFile(t *testing.T) string {
	t.Helper()
	sum := sha256.Sum256([]byte(operatorToken))
	text := "# who may what\n" + viewerToken + " viewer wall\n" +
		"sha256:" + hex.EncodeToString(sum[:]) + "  operator  ci # the pipeline\n\n" +
		approverToken + " approver boss\n" + bothToken + " operator,approver root\n"
	path := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRoles(t *testing.T) {
	t.Parallel()
	_, h := serve(t, Config{Service: newFake(), Tokens: tokensFile(t)})
	acts := map[string]func(*Client) error{
		"look":   func(c *Client) error { _, err := c.List(t.Context()); return err },
		"drive":  func(c *Client) error { return c.Do(t.Context(), "shop", migrate.Command{Verb: migrate.Pause}) },
		"verify": func(c *Client) error { _, err := c.Verify(t.Context(), "shop", VerifyRequest{}); return err },
		"approve": func(c *Client) error {
			return c.Do(t.Context(), "shop", migrate.Command{Verb: migrate.Approve})
		},
		"start": func(c *Client) error {
			_, err := c.Start(t.Context(), StartRequest{Playbook: "upgrade"})
			return err
		},
		"start with yes": func(c *Client) error {
			_, err := c.Start(t.Context(), StartRequest{Playbook: "upgrade", Yes: true})
			return err
		},
	}
	for token, may := range map[string]string{
		"":                                "",
		"unknown-0123456789":              "",
		viewerToken:                       "look",
		operatorToken:                     "look,drive,start,verify",
		approverToken:                     "look,approve",
		bothToken:                         "look,drive,approve,start,start with yes,verify",
		hashPrefix + sumOf(operatorToken): "", // knowing the file is not knowing the token
	} {
		c := client(t, h, token)
		for name, act := range acts {
			err := act(c)
			allowed := false
			for word := range strings.SplitSeq(may, ",") {
				allowed = allowed || word == name
			}
			p, _ := errors.AsType[*Problem](err)
			want := CodeForbidden
			if may == "" {
				want = CodeUnauthorized
			}
			if allowed != (err == nil) || err != nil && p.Code != want {
				t.Errorf("token %q, %s: %v, want allowed: %v", token, name, err, allowed)
			}
		}
	}
}

func sumOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

func TestWhatNeedsNoToken(t *testing.T) {
	t.Parallel()
	_, h := serve(t, Config{Service: newFake(), Tokens: tokensFile(t)})
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/openapi.yaml": 200, "/metrics": 401, "/v1/migrations": 401, "/v1/migrations/shop/events": 401} {
		resp := get(t, h.URL+path)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("GET %s without a token: %d, want %d", path, resp.StatusCode, want)
		}
	}
}

func TestActor(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ token, given, want string }{
		"nobody":            {"", "", "api"},
		"given":             {"", "jo", "jo"},
		"token":             {operatorToken, "", "ci"},
		"given and token":   {operatorToken, "jo", "jo via ci"},
		"the token by name": {operatorToken, "ci", "ci"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake()
			cfg := Config{Service: f}
			if c.token != "" {
				cfg.Tokens = tokensFile(t)
			}
			_, h := serve(t, cfg)
			if err := client(t, h, c.token).Do(t.Context(), "shop", migrate.Command{Verb: migrate.Promote, Actor: c.given}); err != nil {
				t.Fatal(err)
			}
			if got := f.lastAsked(t).Actor; got != c.want {
				t.Errorf("actor %q, want %q", got, c.want)
			}
		})
	}
}

func TestTokensFile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want string // in error or hint; "" when it is read
	}{
		"fine":                  {"0123456789abcdef viewer jo", 0o600, ""},
		"sums may be read":      {"sha256:" + sumOf("x") + " viewer jo", 0o644, ""},
		"readable by all":       {"0123456789abcdef viewer jo", 0o644, "chmod 600"},
		"empty":                 {"# nothing\n", 0o600, "no token"},
		"short":                 {"0123 viewer jo", 0o600, "openssl"},
		"role":                  {"0123456789abcdef operater jo", 0o600, `did you mean "operator"`},
		"words":                 {"0123456789abcdef viewer", 0o600, "line 1"},
		"sum":                   {"sha256:12 viewer jo", 0o600, "64 hexadecimal"},
		"name twice":            {"0123456789abcdef viewer jo\n0123456789abcdeg viewer jo", 0o600, "line 2"},
		"token twice, as a sum": {"0123456789abcdef viewer jo\nsha256:" + sumOf("0123456789abcdef") + " viewer al", 0o600, "line 2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "tokens")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := readTokens(path)
			if (err == nil) != (c.want == "") {
				t.Fatalf("readTokens: %v, want %q", err, c.want)
			}
			if err == nil {
				return
			}
			said := err.Error() + "\n" + hint.Of(err)
			if !strings.Contains(said, c.want) {
				t.Errorf("readTokens: %s, want %q", said, c.want)
			}
			if strings.Contains(said, "0123") {
				t.Errorf("the error shows a token: %s", said)
			}
		})
	}
	if _, err := readTokens(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
}
