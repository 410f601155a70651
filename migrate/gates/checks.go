package gates

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/migrate"
)

// A Check is a condition that the operator brings. Exactly one of SQL, HTTP and Command is given.
type Check struct {
	Name    string
	Before  migrate.Phase
	Timeout time.Duration // default 10 s

	// SQL is a query whose first row decides: its first column is a boolean; a second one, if any, is shown.
	SQL string
	DSN pg.DSN

	// HTTP is an address that answers with a status from 200 to 299.
	HTTP string

	// Command is a program and its arguments; it ends with status 0. Its last line of output is shown.
	Command []string
}

// New returns the gate of a check.
func New(c Check) (migrate.Gate, error) {
	g := &gate{name: c.Name, before: c.Before, timeout: cmp.Or(c.Timeout, 10*time.Second)}
	given := 0
	if c.SQL != "" {
		given++
		g.wanted, g.measure = "true", c.query
	}
	if c.HTTP != "" {
		given++
		g.wanted, g.measure = "status 200 to 299", c.request
	}
	if len(c.Command) > 0 {
		given++
		g.wanted, g.measure = "exit status 0", c.run
	}
	if c.Name == "" || given != 1 {
		return nil, fmt.Errorf("check %q: it needs a name and one of sql, http and command", c.Name)
	}
	return g, nil
}

func (c Check) query(ctx context.Context, _ migrate.Status) (open bool, measured string, err error) {
	err = query(ctx, c.DSN, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, c.SQL)
		if err != nil {
			return err
		}
		defer rows.Close()
		if !rows.Next() {
			measured = "no row"
			return rows.Err()
		}
		values, err := rows.Values()
		if err != nil {
			return err
		}
		answer, ok := values[0].(bool)
		if !ok && values[0] != nil {
			return errors.New("its first column is not a boolean")
		}
		open, measured = answer, fmt.Sprint(answer)
		if len(values) > 1 {
			measured = shorten(fmt.Sprint(values[1]))
		}
		rows.Close()
		return rows.Err()
	})
	return open, measured, err
}

// query runs f in a read-only transaction of a session of its own.
func query(ctx context.Context, dsn pg.DSN, f func(*pgx.Conn) error) error {
	conn, err := dsn.Connect(ctx, "gate", pg.Setting("default_transaction_read_only", "on"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // it has only read
	return f(conn)
}

func (c Check) request(ctx context.Context, _ migrate.Status) (open bool, measured string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.HTTP, http.NoBody)
	if err != nil {
		return false, "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, "", err
	}
	defer func() { _ = res.Body.Close() }() // read as far as wanted
	if _, err := io.CopyN(io.Discard, res.Body, 64<<10); err != nil && !errors.Is(err, io.EOF) {
		return false, "", err
	}
	return res.StatusCode >= 200 && res.StatusCode <= 299, res.Status, nil
}

func (c Check) run(ctx context.Context, s migrate.Status) (open bool, measured string, err error) {
	cmd := exec.CommandContext(ctx, c.Command[0], c.Command[1:]...)
	cmd.Env = append(cmd.Environ(), "FICUS_MIGRATION="+s.Name, "FICUS_PHASE="+string(s.Phase), "FICUS_OWNER="+string(s.Owner))
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	said := shorten(lines[len(lines)-1])
	if cmd.ProcessState == nil || ctx.Err() != nil {
		return false, said, err
	}
	status := cmd.ProcessState.ExitCode()
	return status == 0, strings.TrimSuffix(fmt.Sprintf("exit status %d: %s", status, said), ": "), nil
}
