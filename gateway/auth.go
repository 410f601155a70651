package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/xdg-go/scram"
)

// The mechanisms offered: the second one, which binds the login to the certificate that the client
// saw, under TLS only.
const (
	mechanism     = "SCRAM-SHA-256"
	mechanismPlus = mechanism + "-PLUS"
)

// maxSASL is the longest authentication message taken, as in PostgreSQL.
const maxSASL = 1024

// authenticate lets the client prove that it is who it says. It does not send AuthenticationOk.
func (g *Gateway) authenticate(ctx context.Context, conn net.Conn, who *identity) error {
	all := g.users.Load()
	if all.trusted() && g.directory == nil {
		return nil
	}
	u, known := all.byName[who.user]
	if !known && g.directory != nil {
		var err error
		if u, known, err = g.directory.find(ctx, who.user); err != nil {
			g.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "users could not be asked for", slog.Any("err", err))
			return &refusal{fatal: true, code: "08006", message: "the gateway cannot look up users now", hint: "The gateway's log tells the cause."}
		}
	}
	if !known {
		u = all.nobody(who.user)
	}
	keys, err := prove(conn, u.stored, who.user)
	switch {
	case err != nil:
		return err
	case !known:
		return wrongPassword(who.user)
	}
	who.password, who.keys = u.password, keys
	return nil
}

func wrongPassword(name string) *refusal {
	return &refusal{
		fatal: true, code: "28P01",
		message: fmt.Sprintf("password authentication failed for user %q", name),
	}
}

// prove runs one SCRAM login.
// Source: PostgreSQL manual, SASL Authentication; RFC 5802, RFC 7677.
func prove(conn net.Conn, stored scram.StoredCredentials, name string) (*scramKeys, error) {
	talk, offered, err := converse(conn, stored)
	if err != nil {
		return nil, err
	}
	if err := send(conn, &pgproto3.AuthenticationSASL{AuthMechanisms: offered}); err != nil {
		return nil, err
	}
	body, err := readPassword(conn)
	if err != nil {
		return nil, err
	}
	var first pgproto3.SASLInitialResponse
	if err := first.Decode(body); err != nil || !slices.Contains(offered, first.AuthMechanism) {
		return nil, violation("client selected an invalid SASL authentication mechanism")
	}
	if bound := strings.HasPrefix(string(first.Data), "p="); bound != (first.AuthMechanism == mechanismPlus) {
		return nil, violation("malformed SCRAM message")
	}
	challenge, err := talk.Step(string(first.Data))
	if err != nil {
		return nil, violation("malformed SCRAM message")
	}
	if err := send(conn, &pgproto3.AuthenticationSASLContinue{Data: []byte(challenge)}); err != nil {
		return nil, err
	}
	if body, err = readPassword(conn); err != nil {
		return nil, err
	}
	answer, err := talk.Step(string(body))
	if err != nil || !talk.Valid() {
		return nil, wrongPassword(name)
	}
	keys := keysOf(stored, string(first.Data), challenge, string(body))
	return keys, send(conn, &pgproto3.AuthenticationSASLFinal{Data: []byte(answer)})
}

// converse returns the server's side of a login, and the mechanisms to offer.
func converse(conn net.Conn, stored scram.StoredCredentials) (*scram.ServerConversation, []string, error) {
	srv, err := scram.SHA256.NewServer(func(string) (scram.StoredCredentials, error) { return stored, nil })
	if err != nil {
		return nil, nil, fmt.Errorf("scram: %w", err)
	}
	if s, ok := conn.(*secured); ok {
		// The library expects a client's view of the connection.
		b, err := scram.NewTLSServerEndpointBinding(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{s.shown}})
		if err == nil { // fails for certificates that define no hash, such as Ed25519 ones
			return srv.NewConversationWithChannelBinding(b), []string{mechanismPlus, mechanism}, nil
		}
	}
	return srv.NewConversation(), []string{mechanism}, nil
}

// errLeft says that the client closed the connection; nobody is left to be told anything.
var errLeft = errors.New("the client left")

// readPassword reads one authentication message, and no byte beyond it.
func readPassword(conn net.Conn) ([]byte, error) {
	var w window
	w.buf = make([]byte, headerLen)
	if _, err := io.ReadFull(conn, w.buf); err != nil {
		return nil, errors.Join(errLeft, err)
	}
	w.end = headerLen
	typ, size, _, err := w.header()
	if err != nil || typ != msgPassword || size-headerLen > maxSASL {
		return nil, violation("expected password response, got message type %d", typ)
	}
	body := slices.Grow([]byte(nil), size-headerLen)[:size-headerLen]
	if _, err := io.ReadFull(conn, body); err != nil {
		return nil, errors.Join(errLeft, err)
	}
	return body, nil
}

func send(conn net.Conn, m pgproto3.Message) error {
	if _, err := conn.Write(appendMessage(nil, m)); err != nil {
		return errors.Join(errLeft, err)
	}
	return nil
}
