package pg

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Env returns libpq environment variables (PGHOST=..., PGPASSWORD=...) that make psql and pg_dump
// connect to the same place, so that no password shows in a process list. Append them to
// os.Environ, which holds what libpq otherwise needs.
func (d DSN) Env() []string {
	env := []string{
		"PGHOST=" + d.cfg.Host, "PGPORT=" + strconv.Itoa(int(d.cfg.Port)),
		"PGDATABASE=" + d.cfg.Database, "PGUSER=" + d.cfg.User,
		"PGAPPNAME=ficus/schema", "PGCONNECT_TIMEOUT=10", "PGOPTIONS=",
		"PGSSLMODE=" + sslMode(d.cfg),
	}
	if d.cfg.Password != "" {
		env = append(env, "PGPASSWORD="+d.cfg.Password)
	}
	for name, file := range d.tls {
		env = append(env, "PG"+strings.ToUpper(name)+"="+file)
	}
	return env
}

// sslMode returns the sslmode that cfg was parsed from, or one that asks for the same.
// pgx keeps none: it turns "prefer" and "allow" into a second attempt on the same host.
func sslMode(cfg *pgx.ConnConfig) string {
	other := slices.ContainsFunc(cfg.Fallbacks, func(f *pgconn.FallbackConfig) bool {
		return f.Host == cfg.Host && f.Port == cfg.Port && (f.TLSConfig == nil) != (cfg.TLSConfig == nil)
	})
	switch tls := cfg.TLSConfig; {
	case tls == nil && other:
		return "allow"
	case tls == nil:
		return "disable"
	case other:
		return "prefer"
	case !tls.InsecureSkipVerify:
		return "verify-full"
	case tls.VerifyPeerCertificate != nil:
		return "verify-ca"
	}
	return "require"
}

// tlsFiles returns those parameters of a valid connection string that name certificates and keys.
func tlsFiles(s string) map[string]string {
	files := map[string]string{}
	for name, value := range parameters(s) {
		switch name {
		case "sslrootcert", "sslcert", "sslkey", "sslcrl":
			files[name] = value
		}
	}
	return files
}

// parameters splits a valid connection string, URL or keyword form.
// Source: PostgreSQL manual, "Connection Strings".
func parameters(s string) map[string]string {
	all := map[string]string{}
	if strings.HasPrefix(s, "postgres://") || strings.HasPrefix(s, "postgresql://") {
		_, query, _ := strings.Cut(s, "?")
		for pair := range strings.SplitSeq(query, "&") {
			name, value, _ := strings.Cut(pair, "=")
			if plain, err := url.PathUnescape(value); err == nil { // in libpq's URLs "+" is no space
				all[name] = plain
			}
		}
		return all
	}
	for {
		name, rest, ok := strings.Cut(s, "=")
		if !ok {
			return all
		}
		all[strings.TrimSpace(name)], s = keywordValue(strings.TrimLeft(rest, " \t\r\n"))
	}
}

// keywordValue cuts one value, plain or 'quoted', off the front of s. A backslash makes the next
// character literal.
func keywordValue(s string) (value, rest string) {
	s, quoted := strings.CutPrefix(s, "'")
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case quoted && c == '\'', !quoted && strings.IndexByte(" \t\r\n", c) >= 0:
			return b.String(), s[i+1:]
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), ""
}
