package gateway

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/xdg-go/scram"
)

// scramKeys are what a SCRAM-SHA-256 login shows of a password: enough to log in, as the same user,
// wherever the same secret is stored. They live as long as the session.
// Source: RFC 5802, section 3.
type scramKeys struct{ client, server []byte }

// keysOf takes the keys from a login that was found right. first is the client's first message,
// challenge the server's answer, final the client's last message.
func keysOf(stored scram.StoredCredentials, first, challenge, final string) *scramKeys {
	_, bare, ok := cutSecond(first, ",") // after the channel binding and the authorization identity
	head, proof, ok2 := cutLast(final, ",p=")
	raw, err := base64.StdEncoding.DecodeString(proof)
	if !ok || !ok2 || err != nil || len(raw) != sha256.Size {
		return nil
	}
	signature := mac(stored.StoredKey, bare+","+challenge+","+head)
	return &scramKeys{client: xor(raw, signature), server: stored.ServerKey}
}

func cutSecond(s, sep string) (before, after string, ok bool) {
	first, rest, ok := strings.Cut(s, sep)
	if !ok {
		return s, "", false
	}
	second, after, ok := strings.Cut(rest, sep)
	return first + sep + second, after, ok
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func xor(a, b []byte) []byte {
	out := slices.Clone(a)
	for i := range out {
		out[i] ^= b[i]
	}
	return out
}

// use makes cfg log in with the keys: pgconn itself knows passwords only.
func (k *scramKeys) use(cfg *pgconn.Config) {
	require := cfg.ChannelBinding == "require"
	cfg.ChannelBinding = "disable" // we bind
	cfg.AfterNetConnect = func(_ context.Context, _ *pgconn.Config, conn net.Conn) (net.Conn, error) {
		return &keyedConn{Conn: conn, keys: k, require: require}, nil
	}
}

// A keyedConn answers the server's SCRAM challenge itself and passes everything else on.
type keyedConn struct {
	net.Conn
	keys    *scramKeys
	require bool // channel binding
	asked   bool // the first message has been looked at
	rest    []byte
}

func (k *keyedConn) Read(p []byte) (int, error) {
	if !k.asked {
		k.asked = true
		if err := k.login(); err != nil {
			return 0, err
		}
	}
	if len(k.rest) > 0 {
		n := copy(p, k.rest)
		k.rest = k.rest[n:]
		return n, nil
	}
	return k.Conn.Read(p)
}

const msgAuthentication = 'R'

// Kinds of authentication messages.
const (
	authSASL         = 10
	authSASLContinue = 11
	authSASLFinal    = 12
)

// next reads one message. Unless it is an authentication message of that kind it is left for the reader.
func (k *keyedConn) next(kind uint32) (body []byte, ok bool, err error) {
	head := make([]byte, headerLen)
	if _, err := io.ReadFull(k.Conn, head); err != nil {
		return nil, false, err
	}
	n := int(binary.BigEndian.Uint32(head[1:])) - 4
	if n < 0 || n > 64<<10 {
		return nil, false, fmt.Errorf("invalid length %d of message type %q", n, head[0])
	}
	msg := slices.Grow(head, n)[:headerLen+n]
	if _, err := io.ReadFull(k.Conn, msg[headerLen:]); err != nil {
		return nil, false, err
	}
	if head[0] != msgAuthentication || n < 4 || binary.BigEndian.Uint32(msg[headerLen:]) != kind {
		k.rest = msg
		return nil, false, nil
	}
	return msg[headerLen+4:], true, nil
}

// login answers the challenge, if the server poses one.
func (k *keyedConn) login() error {
	offered, ok, err := k.next(authSASL)
	if !ok {
		return err
	}
	name, header, bound, err := k.bind(offered)
	if err != nil {
		return err
	}
	var random [18]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	nonce := base64.StdEncoding.EncodeToString(random[:])
	bare := "n=,r=" + nonce
	if err := k.say(&pgproto3.SASLInitialResponse{AuthMechanism: name, Data: []byte(header + bare)}); err != nil {
		return err
	}
	challenge, ok, err := k.next(authSASLContinue)
	if !ok {
		return err
	}
	both, _, _ := strings.Cut(strings.TrimPrefix(string(challenge), "r="), ",")
	if !strings.HasPrefix(both, nonce) {
		return errors.New("the server's nonce does not continue ours")
	}
	head := "c=" + base64.StdEncoding.EncodeToString(append([]byte(header), bound...)) + ",r=" + both
	text := bare + "," + string(challenge) + "," + head
	stored := sha256.Sum256(k.keys.client)
	proof := base64.StdEncoding.EncodeToString(xor(k.keys.client, mac(stored[:], text)))
	if err := k.say(&pgproto3.SASLResponse{Data: []byte(head + ",p=" + proof)}); err != nil {
		return err
	}
	final, ok, err := k.next(authSASLFinal)
	if !ok {
		return err
	}
	want := "v=" + base64.StdEncoding.EncodeToString(mac(k.keys.server, text))
	if !hmac.Equal(final, []byte(want)) {
		return errors.New("the server did not prove that it knows the password")
	}
	return nil
}

// bind chooses a mechanism of those offered and returns, for one with channel binding, what is bound.
func (k *keyedConn) bind(offered []byte) (name, header string, bound []byte, err error) {
	t, secure := k.Conn.(*tls.Conn)
	if secure && bytes.Contains(offered, []byte(mechanismPlus+"\x00")) {
		state := t.ConnectionState()
		b, err := scram.NewTLSServerEndpointBinding(&state)
		if err == nil {
			return mechanismPlus, "p=" + string(b.Type) + ",,", b.Data, nil
		}
	}
	if k.require {
		return "", "", nil, errors.New("channel binding is required, and the server does not offer it")
	}
	return mechanism, "n,,", nil, nil
}

func (k *keyedConn) say(m pgproto3.Message) error {
	_, err := k.Write(appendMessage(nil, m))
	return err
}
