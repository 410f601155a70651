package pg_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
)

const secret = "s3cr3t-p4ss"

func parse(t *testing.T, s string) pg.DSN {
	t.Helper()
	dsn, err := pg.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return dsn
}

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"postgresql://app:" + secret + "@db.example.com:6432/shop":                   "app@db.example.com:6432/shop",
		"postgres://app@[2001:db8::1]:5433/shop?sslmode=require":                     "app@[2001:db8::1]:5433/shop",
		"host=db.example.com port=6432 user=app password=" + secret + " dbname=shop": "app@db.example.com:6432/shop",
		"host=/var/run/postgresql user=app dbname='my shop'":                         "app@/var/run/postgresql:5432/my shop",
	} {
		dsn := parse(t, text)
		if dsn.String() != want {
			t.Errorf("%q reads as %s, want %s", text, dsn, want)
		}
		if dsn.IsZero() {
			t.Errorf("%q is the zero DSN", text)
		}
	}
	if d := (pg.DSN{}); !d.IsZero() || d.String() != "(none)" {
		t.Errorf("zero DSN is %s", d)
	}
}

func TestParseErrorsHaveAHintAndNoPassword(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"postgresql://app:" + secret + "@db:notaport/shop",
		"postgresql://app:" + secret + "@db:5432/shop?sslmode=sometimes",
		"host=db password=" + secret + " port=notaport",
		"host=db password='" + secret,
		"postgresql://app:" + secret + "%zz@db/shop",
	} {
		_, err := pg.Parse(text)
		if err == nil {
			t.Errorf("%q: no error", text)
			continue
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the password shows: %v", err)
		}
		if hint.Of(err) == "" {
			t.Errorf("no hint: %v", err)
		}
	}
}

// However a DSN is printed, its password is not.
func TestDSNNeverPrintsItsPassword(t *testing.T) {
	t.Parallel()
	dsn := parse(t, "postgresql://app:"+secret+"@db/shop")
	type holder struct {
		Exported pg.DSN
		hidden   pg.DSN
	}
	in := holder{dsn, dsn}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		for _, v := range []any{dsn, &dsn, in, &in, []pg.DSN{dsn}, map[string]pg.DSN{"a": dsn}} {
			if text := fmt.Sprintf(verb, v); strings.Contains(text, secret) {
				t.Errorf("%s of %T shows it: %s", verb, v, text)
			}
		}
	}
	out, err := json.Marshal(in)
	if err != nil || strings.Contains(string(out), secret) {
		t.Errorf("as JSON: %s, %v", out, err)
	}
	if dsn.Password() != secret {
		t.Error("the password is lost")
	}
}

func TestWithDatabase(t *testing.T) {
	t.Parallel()
	dsn := parse(t, "postgresql://app:"+secret+"@db:6432/shop")
	other := dsn.WithDatabase("archive")
	if other.String() != "app@db:6432/archive" || other.Password() != secret || dsn.Database() != "shop" {
		t.Errorf("other is %s, the first %s", other, dsn)
	}
}

func TestEnv(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		dsn  string
		want []string // those of interest
	}{
		"plain": {
			"postgresql://app:" + secret + "@db:6432/shop?sslmode=disable",
			[]string{"PGDATABASE=shop", "PGHOST=db", "PGPASSWORD=" + secret, "PGPORT=6432", "PGSSLMODE=disable", "PGUSER=app"},
		},
		// libpq's and pgx's default: TLS where the server has it, else not.
		"prefer":      {"postgresql://app@db/shop", []string{"PGDATABASE=shop", "PGHOST=db", "PGPORT=5432", "PGSSLMODE=prefer", "PGUSER=app"}},
		"allow":       {"postgresql://app@db/shop?sslmode=allow", []string{"PGDATABASE=shop", "PGHOST=db", "PGPORT=5432", "PGSSLMODE=allow", "PGUSER=app"}},
		"require":     {"postgresql://app@db/shop?sslmode=require", []string{"PGDATABASE=shop", "PGHOST=db", "PGPORT=5432", "PGSSLMODE=require", "PGUSER=app"}},
		"verify-ca":   {"postgresql://app@db/shop?sslmode=verify-ca", []string{"PGDATABASE=shop", "PGHOST=db", "PGPORT=5432", "PGSSLMODE=verify-ca", "PGUSER=app"}},
		"verify-full": {"postgresql://app@db/shop?sslmode=verify-full", []string{"PGDATABASE=shop", "PGHOST=db", "PGPORT=5432", "PGSSLMODE=verify-full", "PGUSER=app"}},
		"socket": {
			"host=/tmp user=app dbname=shop", []string{"PGDATABASE=shop", "PGHOST=/tmp", "PGPORT=5432", "PGSSLMODE=disable", "PGUSER=app"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, e := range parse(t, c.dsn).Env() {
				switch key, _, _ := strings.Cut(e, "="); key {
				case "PGDATABASE", "PGHOST", "PGPASSWORD", "PGPORT", "PGSSLMODE", "PGUSER":
					got = append(got, e)
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("environment (-want +got):\n%s", diff)
			}
		})
	}
}

// pg_dump must find the certificates that the connection string names.
func TestEnvNamesTLSFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root := writeCertificate(t, filepath.Join(dir, "my+own ca.pem"))
	for _, text := range []string{
		"postgresql://app@db/shop?sslmode=verify-full&sslrootcert=" + url.PathEscape(root),
		"host=db password='it\\'s sslrootcert=wrong' sslmode=verify-full sslrootcert = '" + root + "' user=app",
	} {
		if env := parse(t, text).Env(); !slices.Contains(env, "PGSSLROOTCERT="+root) {
			t.Errorf("%s: PGSSLROOTCERT is not in %q", text, env)
		}
	}
}

func writeCertificate(t *testing.T, path string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
