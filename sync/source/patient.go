package source

import (
	"context"
	"net"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"
)

const (
	// nap is how long a patient connection lets the server work before it looks what has come.
	nap = 2 * time.Millisecond
	// napBytes is how much has to come in that time for a nap to be worth it: 8 MB/s.
	napBytes = 16 << 10
	// lowWater is what has to have come for the kernel to wake somebody all the same.
	lowWater = 32 << 10
	// nearBuffer is how much the kernel takes for a reader of a server that is near, where near is
	// answered within nearTrip. Linux lets a buffer grow with what is read from it. A server whose client has room
	// sends each change as a packet, through the whole network stack; one whose client has none for
	// the moment gathers, and sends as much as fits: the same rows for 2.9 seconds of processor time
	// instead of 4.5. Over a distance the buffer is what fills the way, and is left alone.
	nearBuffer = 64 << 10
	nearTrip   = time.Millisecond
)

// A patient connection does not wait for each of very many small messages.
//
// A walsender sends each change by itself, and where somebody waits for it each send wakes him up: that
// costs both, for every row of a backlog, because who only stores the changes is faster than who
// decodes them. So while much is coming the connection naps, the kernel having been
// told to let it sleep (SO_RCVLOWAT, see socket(7)), and then takes everything at once. When little comes
// it waits for every byte: nothing is late, by a nap, but what comes at the end of a flood.
//
// It lies below TLS, whose records are as small as the messages.
type patient struct {
	net.Conn
	socket syscall.RawConn // nil: it never naps
	timer  *time.Timer
	naps   bool
	more   bool // the last read took as much as it could

	since time.Time // when it began to count, while it does not nap
	bytes int       // that came since
}

// patiently makes a session's connection a patient one.
func patiently(cfg *pgx.ConnConfig) {
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		began := time.Now()
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if c, ok := conn.(*net.TCPConn); ok && time.Since(began) < nearTrip { // a connection takes one round trip
			_ = c.SetReadBuffer(nearBuffer) // advice to the kernel: without it all is as right, and slower
		}
		return newPatient(conn), nil
	}
}

func newPatient(conn net.Conn) *patient {
	p := &patient{Conn: conn, timer: time.NewTimer(nap)}
	if c, ok := conn.(syscall.Conn); ok {
		if socket, err := c.SyscallConn(); err == nil {
			p.socket = socket
		}
	}
	return p
}

// Read reads as the connection does.
func (p *patient) Read(b []byte) (n int, err error) {
	slept := p.naps && !p.more
	if slept {
		p.wakeFrom(lowWater)
		p.timer.Reset(nap)
		<-p.timer.C
		p.wakeFrom(1) // or this read might wait for more than there is
	}
	n, err = p.Conn.Read(b)
	p.more = n == len(b)
	switch {
	case slept:
		p.naps = n >= min(napBytes, len(b))
		p.since, p.bytes = time.Now(), 0
	case !p.naps && p.socket != nil:
		p.count(n)
	}
	return n, err
}

// count finds out whether much is coming.
func (p *patient) count(n int) {
	p.bytes += n
	now := time.Now()
	took := now.Sub(p.since)
	if took < nap {
		return
	}
	p.naps = p.bytes >= napBytes && took < 2*nap
	p.since, p.bytes = now, 0
}

// wakeFrom tells the kernel how much has to be there for a reader to be woken. Where it does not do so
// naps are as long, and of less use.
func (p *patient) wakeFrom(bytes int) {
	_ = p.socket.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, bytes)
	})
}
