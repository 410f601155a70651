package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/ficus-migrate/ficus/internal/hint"
)

// TLS says how clients may encrypt their connections.
type TLS struct {
	// Cert and Key are PEM files: the certificate with its chain, and its private key.
	Cert, Key string
	// ClientCA is a PEM file with the authorities that sign the certificates of clients. With it
	// every client must show one (default: none is asked for).
	ClientCA string
	// Required refuses clients that do not encrypt (default: they are let in).
	Required bool
}

// alpn is the protocol's name in a TLS handshake.
// Source: PostgreSQL manual, Message Flow, ALPN.
const alpn = "postgresql"

// recordHandshake is the first byte of a client that begins with TLS at once, without SSLRequest, as
// PostgreSQL 17 allows it. As the first byte of a length it would be far too long.
const recordHandshake = 0x16

// load reads the files. It returns nil when no certificate is given.
func (t TLS) load() (*tls.Config, error) {
	if t == (TLS{}) {
		return nil, nil
	}
	if t.Cert == "" || t.Key == "" {
		return nil, hint.Wrap(errors.New("gateway: TLS for clients without a certificate"), "give both the certificate and its key")
	}
	cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("gateway: certificate %s: %w", t.Cert, err), "both files are PEM, and the key must belong to the first certificate")
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{alpn}}
	if t.ClientCA == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(t.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("gateway: authorities of clients: %w", err)
	}
	cfg.ClientCAs = x509.NewCertPool()
	if !cfg.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("gateway: authorities of clients: no certificate in %s", t.ClientCA)
	}
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	return cfg, nil
}

// A secured connection is one under TLS. It knows the certificate that the client saw.
type secured struct {
	*tls.Conn
	shown *x509.Certificate
}

// handshake puts conn under TLS. already was read of it; then the client began without SSLRequest and
// must name the protocol, so that a connection meant for another service is not taken for ours.
func handshake(ctx context.Context, conn net.Conn, cfg *tls.Config, already []byte) (*secured, error) {
	if already != nil {
		conn = &replay{Conn: conn, first: already}
	}
	t := tls.Server(conn, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(errLeft, err)
	}
	if already != nil && t.ConnectionState().NegotiatedProtocol != alpn {
		return nil, errors.Join(errLeft, errors.New("direct TLS without the protocol's name"))
	}
	return &secured{t, cfg.Certificates[0].Leaf}, nil
}

// A replay is a connection of which the first bytes were read already.
type replay struct {
	net.Conn
	first []byte
}

func (r *replay) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

// encrypted refuses a client in the clear where that is not allowed.
func (h *Hall) encrypted(conn net.Conn) error {
	if _, ok := conn.(*secured); ok || !h.cfg.TLS.Required && h.cfg.TLS.ClientCA == "" {
		return nil
	}
	return &refusal{
		fatal: true, code: "28000", message: "connections to this gateway must use TLS",
		hint: "Set sslmode=require in the client's connection string.",
	}
}

// upgrade returns what makes conn secure when the client asks for it, nil where that is declined.
func (h *Hall) upgrade(ctx context.Context, conn *net.Conn) func(already []byte) (io.ReadWriter, error) {
	cfg := h.tls.Load()
	if cfg == nil {
		return nil
	}
	return func(already []byte) (io.ReadWriter, error) {
		s, err := handshake(ctx, *conn, cfg, already)
		if err != nil {
			return nil, err
		}
		*conn = s
		return s, nil
	}
}
