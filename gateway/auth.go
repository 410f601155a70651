package gateway

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/xdg-go/scram"
)

const mechanism = "SCRAM-SHA-256"

// maxSASL is the longest authentication message taken, as in PostgreSQL.
const maxSASL = 1024

// authenticate lets the client prove that it is the named user. It does not send AuthenticationOk.
// Source: PostgreSQL manual, SASL Authentication; RFC 5802, RFC 7677.
func authenticate(conn net.Conn, u *users, name string) error {
	if u.trusted() {
		return nil
	}
	wrong := &refusal{
		fatal: true, code: "28P01",
		message: fmt.Sprintf("password authentication failed for user %q", name),
	}
	srv, err := scram.SHA256.NewServer(func(string) (scram.StoredCredentials, error) {
		return u.credentials(name), nil
	})
	if err != nil {
		return fmt.Errorf("scram: %w", err)
	}
	if err := send(conn, &pgproto3.AuthenticationSASL{AuthMechanisms: []string{mechanism}}); err != nil {
		return err
	}
	body, err := readPassword(conn)
	if err != nil {
		return err
	}
	var first pgproto3.SASLInitialResponse
	if err := first.Decode(body); err != nil || first.AuthMechanism != mechanism {
		return violation("client selected an invalid SASL authentication mechanism")
	}
	talk := srv.NewConversation()
	answer, err := talk.Step(string(first.Data))
	if err != nil {
		return violation("malformed SCRAM message")
	}
	if err := send(conn, &pgproto3.AuthenticationSASLContinue{Data: []byte(answer)}); err != nil {
		return err
	}
	if body, err = readPassword(conn); err != nil {
		return err
	}
	if answer, err = talk.Step(string(body)); err != nil || !talk.Valid() {
		return wrong
	}
	if _, known := u.byName[name]; !known {
		return wrong
	}
	return send(conn, &pgproto3.AuthenticationSASLFinal{Data: []byte(answer)})
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
