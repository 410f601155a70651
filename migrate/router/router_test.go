package router_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgtest"
	"github.com/ficus-migrate/ficus/migrate"
	"github.com/ficus-migrate/ficus/migrate/hooks"
	"github.com/ficus-migrate/ficus/migrate/router"
	"github.com/ficus-migrate/ficus/migrate/router/routertest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bouncers starts n PgBouncers in front of two databases, with the databases shop and shop_ro.
func bouncers(t testing.TB, n int, settings string) ([]*pgtest.Bouncer, router.PgBouncerConfig) {
	t.Helper()
	_, places := routertest.Databases(t)
	src := places[migrate.Source]
	line := fmt.Sprintf("host=%s port=%d dbname=%s", src.Host(), src.Port(), src.Database())
	cfg := router.PgBouncerConfig{Places: places}
	all := make([]*pgtest.Bouncer, n)
	for i := range all {
		all[i] = pgtest.NewBouncer(t, "shop = "+line+" pool_size=5\nshop_ro = "+line, settings)
		cfg.Bouncers = append(cfg.Bouncers, router.Bouncer{Admin: all[i].Admin, Database: "shop", Reads: "shop_ro", File: all[i].File})
	}
	return all, cfg
}

func url(b *pgtest.Bouncer, database string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", b.Port, database)
}

func newPgBouncer(t testing.TB, cfg router.PgBouncerConfig) *router.PgBouncer {
	t.Helper()
	r, err := router.NewPgBouncer(cfg)
	must(t, err)
	return r
}

// TestPgBouncer holds the PgBouncer router to what it promises. Breaks that it catches: no RESUME; no
// RELOAD; PAUSE without waiting for the answer; reads left where they were at a release.
func TestPgBouncer(t *testing.T) {
	t.Parallel()
	routertest.Conform(t, func(t testing.TB) routertest.Subject {
		t.Helper()
		bs, cfg := bouncers(t, 2, "")
		return routertest.Subject{
			Router: newPgBouncer(t, cfg), Guarantees: router.Guarantees(router.KindPgBouncer, router.Options{Bouncers: 2, Reads: true}),
			Again: func(t testing.TB) migrate.Router {
				t.Helper()
				return newPgBouncer(t, cfg)
			},
			Write: url(bs[0], "shop"), Read: url(bs[1], "shop_ro"),
		}
	})
}

// TestHooks holds the hooks router to what it promises, with webhooks that order a PgBouncer about.
// It catches an owner that is not told.
func TestHooks(t *testing.T) {
	t.Parallel()
	routertest.Conform(t, func(t testing.TB) routertest.Subject {
		t.Helper()
		bs, cfg := bouncers(t, 1, "")
		led := newPgBouncer(t, cfg)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var o router.Order
			err := json.NewDecoder(r.Body).Decode(&o)
			if err == nil {
				switch o.Order {
				case "hold":
					err = led.Hold(r.Context(), o.Epoch)
				case "release":
					err = led.Release(r.Context(), o.Owner, o.Epoch)
					if p := cfg.Places[o.Owner]; o.Host != p.Host() || o.Port != p.Port() || o.Database != p.Database() {
						err = fmt.Errorf("the owner is not at %s:%d/%s", o.Host, o.Port, o.Database)
					}
				case "reads":
					err = led.Reads(r.Context(), o.Percent)
				}
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusConflict)
			}
		}))
		t.Cleanup(server.Close)
		start := func(t testing.TB) migrate.Router {
			t.Helper()
			act := &hooks.Action{URL: server.URL}
			r, err := router.NewHooks(router.HooksConfig{Migration: "m", Hold: act, Release: act, Reads: act, Places: cfg.Places})
			must(t, err)
			return r
		}
		return routertest.Subject{
			Router: start(t), Guarantees: router.Guarantees(router.KindHooks, router.Options{Reads: true, HoldsHook: true}),
			Again: start, Write: url(bs[0], "shop"), Read: url(bs[0], "shop_ro"),
		}
	})
}

// TestManual holds what leads nobody to the little that it promises.
func TestManual(t *testing.T) {
	t.Parallel()
	_, places := routertest.Databases(t)
	start := func(testing.TB) migrate.Router { return &router.Manual{Places: places} }
	routertest.Conform(t, func(t testing.TB) routertest.Subject {
		t.Helper()
		return routertest.Subject{Router: start(t), Guarantees: router.Guarantees(router.KindNone, router.Options{}), Again: start}
	})
	var asker migrate.Asker = &router.Manual{Places: places}
	if said := asker.After(migrate.Target); !strings.Contains(said, places[migrate.Target].String()) {
		t.Errorf("after the switch: %q", said)
	}
	if said := asker.Ahead(migrate.Source); !strings.Contains(said, "25006") {
		t.Errorf("before the switch: %q", said)
	}
}

// TestPgBouncerDown: of two PgBouncers one is down at the switch. Hold fails; a release leads the clients of
// the other one, says which is missing, and what comes back leads to the owner. Breaks that it catches:
// stopping at the first failure; changing the file only when the console answers.
func TestPgBouncerDown(t *testing.T) {
	t.Parallel()
	bs, cfg := bouncers(t, 2, "")
	r := newPgBouncer(t, cfg)
	bs[0].Kill()
	err := r.Hold(t.Context(), 2)
	if err == nil || !strings.Contains(err.Error(), cfg.Bouncers[0].Admin.String()) || strings.Contains(err.Error(), cfg.Bouncers[1].Admin.String()) {
		t.Fatalf("hold with one of two down: %v", err)
	}
	if err := r.Release(t.Context(), migrate.Target, 2); err == nil || !strings.Contains(err.Error(), cfg.Bouncers[0].Admin.String()) {
		t.Fatalf("release with one of two down: %v", err)
	}
	asked(t, url(bs[1], "shop"), migrate.Target)
	bs[0].Start(t)
	asked(t, url(bs[0], "shop"), migrate.Target)
	must(t, r.Release(t.Context(), migrate.Target, 2))
}

func asked(t testing.TB, address string, side migrate.Side) {
	t.Helper()
	dsn, err := pg.Parse(address + "&default_query_exec_mode=simple_protocol")
	must(t, err)
	conn, err := pgx.ConnectConfig(t.Context(), dsn.Config())
	must(t, err)
	defer conn.Close(t.Context())
	var name string
	must(t, conn.QueryRow(t.Context(), "SELECT name FROM here").Scan(&name))
	if name != string(side) {
		t.Errorf("a client of %s is on the %s, want the %s", address, name, side)
	}
}

// TestPgBouncerReads: of four PgBouncers, as many move their reads as the percentage allows.
// It catches rounding up, which would move reads at 10 percent.
func TestPgBouncerReads(t *testing.T) {
	t.Parallel()
	bs, cfg := bouncers(t, 4, "")
	r := newPgBouncer(t, cfg)
	must(t, r.Release(t.Context(), migrate.Source, 1))
	for _, c := range []struct{ percent, moved int }{{10, 0}, {25, 1}, {74, 2}, {100, 4}, {0, 0}} {
		must(t, r.Reads(t.Context(), c.percent))
		for i, b := range bs {
			side := migrate.Source
			if i < c.moved {
				side = migrate.Target
			}
			asked(t, url(b, "shop_ro"), side)
			asked(t, url(b, "shop"), migrate.Source)
		}
	}
}

// TestPgBouncerWrongFile: a file that PgBouncer does not read is noticed, and clients stay held rather than
// be let go to the old owner. It catches a RESUME that does not look where the database leads.
func TestPgBouncerWrongFile(t *testing.T) {
	t.Parallel()
	_, cfg := bouncers(t, 1, "")
	other := filepath.Join(t.TempDir(), "other.ini")
	text, err := os.ReadFile(cfg.Bouncers[0].File)
	must(t, err)
	must(t, os.WriteFile(other, text, 0o600))
	right := cfg.Bouncers[0].File
	cfg.Bouncers[0].File = other
	r := newPgBouncer(t, cfg)
	must(t, r.Hold(t.Context(), 2))
	err = r.Release(t.Context(), migrate.Target, 2)
	if err == nil || !strings.Contains(err.Error(), "still leads elsewhere") || !strings.Contains(hint.Of(err), "file") {
		t.Fatalf("release over a file that is not read: %v (hint %q)", err, hint.Of(err))
	}
	cfg.Bouncers[0].File = right
	later := newPgBouncer(t, cfg)
	must(t, later.Release(t.Context(), migrate.Target, 2))
}

// TestPgBouncerCommand: where the file is elsewhere a command changes it.
func TestPgBouncerCommand(t *testing.T) {
	t.Parallel()
	bs, cfg := bouncers(t, 1, "")
	script := `sed -i "s/^$FICUS_DATABASE = .*/$FICUS_DATABASE = host=$FICUS_HOST port=$FICUS_PORT dbname=$FICUS_DBNAME/" ` + bs[0].File + ` && chmod 644 ` + bs[0].File
	cfg.Bouncers[0].File, cfg.Bouncers[0].Command = "", []string{"sh", "-c", script}
	r := newPgBouncer(t, cfg)
	must(t, r.Release(t.Context(), migrate.Target, 2))
	asked(t, url(bs[0], "shop"), migrate.Target)
	cfg.Bouncers[0].Command = []string{"sh", "-c", "echo no way; exit 3"}
	if err := newPgBouncer(t, cfg).Release(t.Context(), migrate.Source, 3); err == nil || !strings.Contains(err.Error(), "no way") {
		t.Errorf("release with a command that fails: %v", err)
	}
}

// TestPgBouncerCheck: what would go wrong at a switch is found before it.
func TestPgBouncerCheck(t *testing.T) {
	t.Parallel()
	_, cfg := bouncers(t, 1, "query_wait_timeout = 5")
	if all := newPgBouncer(t, cfg).Check(t.Context(), 5*time.Second); len(all) > 0 {
		t.Errorf("findings about one that is right: %v", all)
	}
	find := func(want string, s migrate.Severity, cfg router.PgBouncerConfig) {
		t.Helper()
		for _, f := range newPgBouncer(t, cfg).Check(t.Context(), 6*time.Second) {
			if strings.Contains(f.Message, want) && f.Severity == s {
				return
			}
		}
		t.Errorf("no %s that says %q", s, want)
	}
	find("query_wait_timeout", migrate.SeverityWarning, cfg)
	cfg.Bouncers[0].Reads = "nosuch"
	find(`no database "nosuch"`, migrate.SeverityError, cfg)
	_, session := bouncers(t, 1, "pool_mode = session")
	find("session pooling", migrate.SeverityError, session)
	session.Bouncers[0].File += ".gone"
	find("no such file", migrate.SeverityError, session)
	down, gone := bouncers(t, 1, "")
	down[0].Kill()
	find("refused", migrate.SeverityError, gone)
}

// TestHooksVeto: a hook that refuses or takes too long is an error, with a hint and without the address.
// It catches an answer whose status is not looked at.
func TestHooksVeto(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the mesh is being changed", http.StatusConflict)
	}))
	t.Cleanup(server.Close)
	lead := &hooks.Action{Command: []string{"true"}}
	for want, hold := range map[string]*hooks.Action{
		"not now":                {Command: []string{"sh", "-c", `echo "not now, $FICUS_ORDER $FICUS_EPOCH"; exit 1`}},
		"no answer within 100ms": {Command: []string{"sleep", "60"}, Timeout: 100 * time.Millisecond},
		"connection refused":     {URL: "http://127.0.0.1:1/secret"},
		"409 Conflict: the mesh": {URL: server.URL + "/secret"},
	} {
		r, err := router.NewHooks(router.HooksConfig{Migration: "m", Hold: hold, Release: lead})
		must(t, err)
		err = r.Hold(t.Context(), 2)
		if err == nil || !strings.Contains(err.Error(), want) || hint.Of(err) == "" || strings.Contains(err.Error(), "secret") {
			t.Errorf("want %q: %v", want, err)
		}
		must(t, r.Release(t.Context(), migrate.Source, 2))
	}
	budget, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errBudget)
	defer cancel()
	r, err := router.NewHooks(router.HooksConfig{Hold: &hooks.Action{Command: []string{"sleep", "60"}}, Release: lead})
	must(t, err)
	if err := r.Hold(budget, 2); !errors.Is(err, errBudget) {
		t.Errorf("hold beyond the budget of the step: %v", err)
	}
	if _, err := router.NewHooks(router.HooksConfig{Hold: lead}); err == nil {
		t.Error("a hooks router without release is taken")
	}
}

var errBudget = errors.New("budget is used up")
