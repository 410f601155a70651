package pgtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pgserver"
)

// Copy stops c, copies its data directory, slots included, and starts c again. The copy does not run
// before Start. It is what a file-level backup restores, and with AsStandby a standby.
func (c *Cluster) Copy(t testing.TB, how ...CopyOption) *Cluster {
	t.Helper()
	of, ok := c.srv.(*pgserver.Server)
	if !ok {
		t.Skip("data directories of containers cannot be copied: run without FICUS_TEST_PG=docker")
	}
	c.Stop(t)
	dir, err := os.MkdirTemp(filepath.Dir(of.Dir()), "ficus-pg-copy-") //nolint:usetesting // where PostgreSQL's user may go, too
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", filepath.Join(of.Dir(), "data"), dir).CombinedOutput(); err != nil {
		t.Fatalf("copy the data directory: %v: %s", err, out)
	}
	for _, h := range how {
		if err := h(c, filepath.Join(dir, "data")); err != nil {
			t.Fatalf("copy the data directory: %v", err)
		}
	}
	c.Start(t)

	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), startTimeout)
	defer cancel()
	srv, err := pgserver.Start(ctx, pgserver.Config{Install: of.Install(), Dir: dir, Settings: c.settings})
	if err != nil {
		t.Fatalf("start the copy: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := srv.Stop(ctx); err != nil {
			t.Errorf("stop PostgreSQL: %v", err)
		}
	})
	return &Cluster{DSN: srv.DSN("postgres"), srv: srv, major: c.major, settings: c.settings}
}

// A CopyOption changes a copied data directory before its server first starts.
type CopyOption func(of *Cluster, data string) error

// AsStandby makes the copy follow its original until Promote.
func AsStandby(settings ...string) CopyOption {
	return func(of *Cluster, data string) error {
		f, err := os.OpenFile(filepath.Join(data, "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = fmt.Fprintf(f, "primary_conninfo = 'host=127.0.0.1 port=%d user=%s dbname=postgres'\n", of.DSN.Port(), of.DSN.User())
		for _, s := range settings {
			if err == nil {
				_, err = fmt.Fprintln(f, s)
			}
		}
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(data, "standby.signal"), nil, 0o644) //nolint:gosec // PostgreSQL's user reads it
	}
}

// WithoutSlots leaves all slots out, as pg_basebackup does.
func WithoutSlots() CopyOption {
	return func(_ *Cluster, data string) error {
		slots, err := filepath.Glob(filepath.Join(data, "pg_replslot", "*"))
		for _, s := range slots {
			if err == nil {
				err = os.RemoveAll(s)
			}
		}
		return err
	}
}

// Promote makes a standby a primary, on a timeline of its own.
func (c *Cluster) Promote(t testing.TB) {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), c.DSN.Config())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	var promoted bool
	if err := conn.QueryRow(t.Context(), `SELECT pg_promote(true, 30)`).Scan(&promoted); err != nil || !promoted {
		t.Fatalf("promote: %t, %v", promoted, err)
	}
}

// Find returns the database of the same name in c, which is a copy of the cluster that db is in.
func (c *Cluster) Find(t testing.TB, db *Database) *Database {
	t.Helper()
	found := &Database{DSN: c.DSN.WithDatabase(db.Name), URL: c.srv.URL(db.Name), Name: db.Name, Major: db.Major, idle: make(chan *pgx.Conn, 1)}
	t.Cleanup(found.close)
	return found
}
