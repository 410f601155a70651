package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"

	"github.com/ficus-migrate/ficus/api"
	"github.com/ficus-migrate/ficus/bench/lab"
	"github.com/ficus-migrate/ficus/migrate"
)

// A front is "ficus run", which has copied and follows, with the front door that clients use meanwhile.
type front struct {
	*lab.Process
	bench          *bench
	client         *api.Client
	name, dir      string
	source, target string // connection strings
	url            string // of the front door
}

// openFront moves one database to another, empty one, as far as the phase following.
func (b *bench) openFront(ctx context.Context, name, database, copied string) (_ *front, err error) {
	f := &front{bench: b, name: name, source: b.Source.URL(database), target: b.Target.URL(copied)}
	if f.dir, err = b.Scratch(); err != nil {
		return nil, err
	}
	door, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	reads, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	listen, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	book := filepath.Join(f.dir, "book.yaml")
	text := fmt.Sprintf("name: %s\nuntil: following\nfollow: {ack: applied}\ngates: {approval: false, lag_window: 1s}\npromote: {reads: []}\nrouter: {type: gateway, listen: %q, read_listen: %q}\n", name, door, reads)
	if err := os.WriteFile(book, []byte(text), 0o600); err != nil {
		return nil, err
	}
	u := url.URL{Scheme: "postgresql", User: url.User(b.Source.DSN(database).User()), Host: door, Path: "/" + database, RawQuery: "sslmode=disable"}
	f.url = u.String()
	if f.client, err = api.NewClient("http://"+listen, ""); err != nil {
		return nil, err
	}
	f.Process, err = lab.Start(ctx, b.ficus, "run", "-f", book, "--json", "--yes", "--data-dir", filepath.Join(f.dir, "data"), "--listen", listen, "--source", f.source, "--target", f.target)
	if err != nil {
		f.client.Close()
		return nil, err
	}
	if _, err := f.Line(ctx, map[string]any{"type": "result", "phase": string(migrate.Following)}); err != nil {
		return nil, errors.Join(err, f.close(context.WithoutCancel(ctx)))
	}
	return f, nil
}

// close ends it and removes what it made in both databases.
func (f *front) close(ctx context.Context) error {
	f.client.Close()
	err := f.Stop()
	_, _, cleanErr := lab.Run(ctx, f.bench.ficus, "cleanup", "--force", "--source", f.source, "--target", f.target)
	return errors.Join(err, cleanErr, os.RemoveAll(f.dir))
}

// freeAddress returns a loopback address where nobody listens.
func freeAddress(ctx context.Context) (string, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}
