package router

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/internal/pg"
)

// A console is PgBouncer's, which takes simple queries only.
// Source: PgBouncer manual, Admin console.
type console struct {
	dsn  pg.DSN
	conn *pgconn.PgConn
}

// A database is a row of SHOW DATABASES.
type database struct {
	host, dbname, mode string
	port               int64
	paused             bool
}

// poolSum adds up the rows of SHOW POOLS of one database.
type poolSum struct {
	active  int64 // server sessions that a client has
	waiting waiting
}

func openConsole(ctx context.Context, dsn pg.DSN) (*console, error) {
	conn, err := pgconn.ConnectConfig(ctx, &dsn.Config().Config)
	if err != nil {
		return nil, dsn.Redact(err)
	}
	return &console{dsn, conn}, nil
}

func (c *console) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = c.conn.Close(ctx)
}

func (c *console) run(ctx context.Context, command string) error {
	_, err := c.conn.Exec(ctx, command).ReadAll()
	if err != nil {
		return c.dsn.Redact(err)
	}
	return nil
}

// show returns the rows of a SHOW command by column, since versions differ in their columns.
func (c *console) show(ctx context.Context, what string) ([]map[string]string, error) {
	results, err := c.conn.Exec(ctx, "SHOW "+what).ReadAll()
	if err != nil {
		return nil, c.dsn.Redact(err)
	}
	var rows []map[string]string
	for _, r := range results {
		for _, values := range r.Rows {
			row := map[string]string{}
			for i, f := range r.FieldDescriptions {
				row[f.Name] = string(values[i])
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

func (c *console) databases(ctx context.Context) (map[string]database, error) {
	rows, err := c.show(ctx, "DATABASES")
	if err != nil {
		return nil, err
	}
	found := map[string]database{}
	for _, r := range rows {
		found[r["name"]] = database{
			host: r["host"], port: number(r["port"]), dbname: r["database"], mode: r["pool_mode"], paused: number(r["paused"]) > 0,
		}
	}
	return found, nil
}

func (c *console) pools(ctx context.Context, name string) (sum poolSum, err error) {
	rows, err := c.show(ctx, "POOLS")
	if err != nil {
		return sum, err
	}
	for _, r := range rows {
		if r["database"] != name {
			continue
		}
		sum.active += number(r["sv_active"])
		sum.waiting.clients += number(r["cl_waiting"])
		longest := time.Duration(number(r["maxwait"]))*time.Second + time.Duration(number(r["maxwait_us"]))*time.Microsecond
		sum.waiting.longest = max(sum.waiting.longest, longest)
	}
	return sum, nil
}

func (c *console) config(ctx context.Context) (map[string]string, error) {
	rows, err := c.show(ctx, "CONFIG")
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, r := range rows {
		found[r["key"]] = r["value"]
	}
	return found, nil
}

// number reads a figure; what is none counts as 0.
func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
