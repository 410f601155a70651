package faultpg

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/internal/pg"
)

// A Direction is one way through a connection.
type Direction uint8

// The directions.
const (
	ToServer Direction = iota
	ToClient
)

// String returns the direction as words.
func (d Direction) String() string {
	switch d {
	case ToServer:
		return "to the server"
	case ToClient:
		return "to the client"
	}
	return "Direction(" + strconv.Itoa(int(d)) + ")"
}

// What a connection holds of bytes on their way, in pieces of at most pieceBytes each: little, so that
// a sender feels a stall soon; or, where a delay is set when it is made, as much as a fast and long
// network does, so that the delay limits no rate (64 MiB: 1 GB/s over 60 ms).
const (
	pieceBytes = 16 << 10
	nearPieces = 16
	farPieces  = 4096
)

// A Proxy stands in front of one server.
type Proxy struct {
	server   pg.DSN // whose role and password DSN gives
	listener net.Listener

	mu struct {
		sync.Mutex
		leads   pg.DSN        // where new connections end
		lanes   [2]lane       // by Direction
		delay   time.Duration // of a round trip
		refuse  bool
		changed chan struct{} // closed whenever any of the above changes
		links   map[*link]bool
		resets  int
	}
	running sync.WaitGroup // the accepting goroutine and every link
}

// A lane is what happens to the bytes of one direction, over all connections.
type lane struct {
	stalled bool
	rate    int   // bytes a second; 0: as fast as they come
	armed   bool  // reset when budget is used up
	budget  int64 // bytes
}

// New returns a proxy in front of server that changes nothing yet. It ends with the test.
func New(t testing.TB, server pg.DSN) *Proxy {
	t.Helper()
	p, err := Listen(t.Context(), server)
	if err != nil {
		t.Fatalf("fault proxy: %v", err)
	}
	t.Cleanup(p.Close)
	return p
}

// Listen returns a proxy as New does, for programs that are no test. Close it when done.
func Listen(ctx context.Context, server pg.DSN) (*Proxy, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{server: server, listener: listener}
	p.mu.leads = server
	p.mu.changed = make(chan struct{})
	p.mu.links = map[*link]bool{}
	p.running.Add(1)
	go p.accept() // until the listener is closed
	return p, nil
}

// Close ends the proxy and every connection through it.
func (p *Proxy) Close() {
	p.Refuse(true)
	_ = p.listener.Close() // ends accept
	p.Cut()
	p.running.Wait()
}

// DSN returns how to connect to a database of the server through the proxy, as the server's own
// role and without encryption.
func (p *Proxy) DSN(database string) pg.DSN {
	user := url.User(p.server.User())
	if password := p.server.Password(); password != "" {
		user = url.UserPassword(p.server.User(), password)
	}
	u := url.URL{Scheme: "postgresql", User: user, Host: p.listener.Addr().String(), Path: "/" + database, RawQuery: "sslmode=disable"}
	dsn, err := pg.Parse(u.String())
	if err != nil {
		panic(err) // it was made of the parts of one that parsed
	}
	return dsn
}

// Cut closes every connection, on both sides. New ones are let in.
func (p *Proxy) Cut() { p.end(false) }

// Reset aborts every connection: both sides find it reset by the peer, and bytes under way are lost.
func (p *Proxy) Reset() { p.end(true) }

func (p *Proxy) end(abort bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endLocked(abort)
}

func (p *Proxy) endLocked(abort bool) {
	for l := range p.mu.links {
		l.close(abort)
	}
}

// ResetAfter resets all connections, once, as soon as n more bytes have passed in direction d,
// counted over all of them. Exactly n bytes pass.
func (p *Proxy) ResetAfter(d Direction, n int64) {
	p.set(func() { p.mu.lanes[d].armed, p.mu.lanes[d].budget = true, n })
}

// Resets returns how often ResetAfter has come true.
func (p *Proxy) Resets() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.resets
}

// Stall holds the bytes of direction d back, and the news that a side has closed, until Flow.
func (p *Proxy) Stall(d Direction) { p.set(func() { p.mu.lanes[d].stalled = true }) }

// Freeze swallows all that is sent from now on over the connections that are open, and the news that a
// side has closed, as a firewall does that has forgotten them. New ones are let in. Only Cut and Reset
// end it.
func (p *Proxy) Freeze() {
	p.set(func() {
		for l := range p.mu.links {
			l.frozen = true
		}
	})
}

// Flow ends every fault but Refuse and Freeze: stalls, slowness, delay, and a reset that is yet to come.
func (p *Proxy) Flow() {
	p.set(func() {
		for d := range p.mu.lanes {
			p.mu.lanes[d] = lane{}
		}
		p.mu.delay = 0
	})
}

// Slow lets bytesPerSecond of each connection through in direction d; 0: all there is.
func (p *Proxy) Slow(d Direction, bytesPerSecond int) {
	p.set(func() { p.mu.lanes[d].rate = bytesPerSecond })
}

// Delay adds a time to every round trip, half of it each way. On connections that are made after it,
// the delay limits no rate.
func (p *Proxy) Delay(roundTrip time.Duration) { p.set(func() { p.mu.delay = roundTrip }) }

// Refuse says whether new connections are closed at once.
func (p *Proxy) Refuse(refuse bool) { p.set(func() { p.mu.refuse = refuse }) }

// Lead leads new connections to another server, as a virtual address does after a failover.
func (p *Proxy) Lead(to pg.DSN) { p.set(func() { p.mu.leads = to }) }

// Connections returns how many connections are open.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.mu.links)
}

func (p *Proxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.mu.changed)
	p.mu.changed = make(chan struct{})
}

func (p *Proxy) accept() {
	defer p.running.Done()
	for {
		client, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil {
			continue // this one is gone, others will come
		}
		p.mu.Lock()
		if p.mu.refuse {
			_ = client.Close()
		} else {
			l := newLink(client)
			p.mu.links[l] = true
			p.running.Add(1)
			go p.serve(l) // until either side or the proxy ends the connection
		}
		p.mu.Unlock()
	}
}

// serve passes bytes both ways until the connection ends.
func (p *Proxy) serve(l *link) {
	defer p.running.Done()
	defer func() {
		l.close(false)
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.mu.links, l)
	}()
	p.mu.Lock()
	to := p.mu.leads
	p.mu.Unlock()
	network, address := pgconn.NetworkAddress(to.Host(), to.Port())
	var d net.Dialer
	server, err := d.DialContext(l.ctx, network, address)
	if err != nil || !l.join(server) {
		return // the client sees its connection closed, as without a proxy it would have been refused
	}
	var lanes sync.WaitGroup
	lanes.Go(func() { p.pass(l, ToServer, server, l.client) })
	lanes.Go(func() { p.pass(l, ToClient, l.client, server) })
	lanes.Wait()
}

// A piece is bytes on their way, to arrive no sooner than due.
type piece struct {
	data []byte
	due  time.Time
}

// pass moves bytes from src to dst. When src ends, so does the whole connection, once what it sent
// has arrived.
func (p *Proxy) pass(l *link, d Direction, dst io.Writer, src io.Reader) {
	holds := nearPieces
	if p.delay() > 0 {
		holds = farPieces
	}
	pieces := make(chan piece, holds)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(pieces)
		for {
			buf := make([]byte, pieceBytes)
			n, err := src.Read(buf)
			if n > 0 {
				select {
				case pieces <- piece{buf[:n], time.Now().Add(p.delay() / 2)}:
				case <-l.ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	defer reading.Wait()
	defer l.close(false)
	for piece := range pieces {
		if !wait(l.ctx, time.Until(piece.due)) || !p.deliver(l, d, dst, piece.data) {
			return
		}
	}
	_, _ = p.allow(l, d, 0) // a stall holds the end back, too
}

// deliver writes data as the rules of its direction let it; false: the connection is over.
func (p *Proxy) deliver(l *link, d Direction, dst io.Writer, data []byte) bool {
	for len(data) > 0 {
		n, rate := p.allow(l, d, len(data))
		if n == 0 {
			return false
		}
		if _, err := dst.Write(data[:n]); err != nil {
			return false
		}
		data = data[n:]
		p.spend(d, n)
		if rate > 0 && !wait(l.ctx, time.Duration(n)*time.Second/time.Duration(rate)) {
			return false
		}
	}
	return l.ctx.Err() == nil
}

// allow waits until bytes may pass, and returns how many of want, at what rate; 0: the connection
// is over, or none were wanted.
func (p *Proxy) allow(l *link, d Direction, want int) (n, rate int) {
	for {
		p.mu.Lock()
		lane, changed, frozen := p.mu.lanes[d], p.mu.changed, l.frozen
		p.mu.Unlock()
		if !lane.stalled && !frozen {
			if lane.rate > 0 {
				want = min(want, max(1, lane.rate/100)) // a hundredth of a second's worth at a time
			}
			if lane.armed {
				want = int(min(int64(want), lane.budget))
			}
			return want, lane.rate
		}
		select {
		case <-changed:
		case <-l.ctx.Done():
			return 0, 0
		}
	}
}

// spend counts bytes that have passed, and resets when that was the last of them.
func (p *Proxy) spend(d Direction, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	lane := &p.mu.lanes[d]
	if !lane.armed {
		return
	}
	if lane.budget -= int64(n); lane.budget <= 0 {
		lane.armed = false
		p.mu.resets++
		p.endLocked(true)
	}
}

func (p *Proxy) delay() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.delay
}

// wait returns after d, or early and false when ctx is done.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
