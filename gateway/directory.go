package gateway

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// A directory asks the owner for the secrets of users that the users file does not hold. It keeps one
// session open, and asks for one user at a time: a flood of logins costs the database no more than that.
type directory struct {
	g     *Gateway
	query string
	turn  chan struct{} // one token; whoever holds it may use what follows
	conn  *pgx.Conn
	at    Backend
}

func newDirectory(g *Gateway, query string) *directory {
	d := &directory{g: g, query: query, turn: make(chan struct{}, 1)}
	d.turn <- struct{}{}
	return d
}

// find returns what the named user must prove to know. known is false when the query finds nobody.
func (d *directory) find(ctx context.Context, name string) (u user, known bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.g.cfg.MoveTimeout)
	defer cancel()
	select {
	case <-d.turn:
		defer func() { d.turn <- struct{}{} }()
	case <-ctx.Done():
		return user{}, false, fmt.Errorf("auth_query: %w", context.Cause(ctx))
	}
	secret, err := d.ask(ctx, name)
	if err != nil || secret == "" {
		return user{}, false, err
	}
	u, err = newUser(name, secret)
	if err != nil {
		return user{}, false, fmt.Errorf("auth_query: user %q: %w", name, err)
	}
	return u, true, nil
}

// ask runs the query on the owner, on a new session if the one at hand is broken.
func (d *directory) ask(ctx context.Context, name string) (string, error) {
	owner := d.g.route.Load().owner
	if d.conn != nil && (d.at != owner || d.conn.IsClosed()) {
		d.close(ctx)
	}
	for {
		fresh := d.conn == nil
		if fresh {
			conn, err := d.g.cfg.Backends[owner].Connect(ctx, "gateway-auth")
			if err != nil {
				return "", fmt.Errorf("auth_query: %w", err)
			}
			d.conn, d.at = conn, owner
		}
		var found, secret *string
		err := d.conn.QueryRow(ctx, d.query, name).Scan(&found, &secret)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return "", nil
		case err == nil:
			if secret == nil || found == nil || *found != name {
				return "", nil
			}
			return *secret, nil
		case fresh || !d.conn.IsClosed():
			return "", fmt.Errorf("auth_query: %w", d.g.cfg.Backends[owner].Redact(err))
		}
		d.close(ctx)
	}
}

// close ends the session at hand. Only the holder of the turn may call it.
func (d *directory) close(ctx context.Context) {
	if d.conn != nil {
		_ = d.conn.Close(ctx)
		d.conn = nil
	}
}
