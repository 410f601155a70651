package gateway

import (
	"context"
	"time"

	"github.com/ficus-migrate/ficus/buffer"
)

// A passage is the way of one message through the queue, from its arrival until it has gone out.
type passage struct {
	g       *Gateway
	arrived time.Time      // of the message; zero when the wait is not to be counted
	ticket  *buffer.Ticket // to be given back once the message is out; nil when nobody has to wait
}

func (g *Gateway) passage() passage { return passage{g: g, arrived: time.Now()} }

// join takes a place in the queue, unless it has one or nobody has to wait.
func (p *passage) join(d door) error {
	if p.ticket != nil || d == readOnly {
		return nil
	}
	var err error
	if p.ticket, err = p.g.queue.Join(); err != nil {
		return p.g.heldRefusal(err, false)
	}
	return nil
}

// turn waits until those before it in the queue have gone out.
func (p *passage) turn(ctx context.Context) error {
	if p.ticket == nil {
		return nil
	}
	if err := p.ticket.Turn(ctx); err != nil {
		return p.g.heldRefusal(err, false)
	}
	return nil
}

// failed ends the passage of a message that does not go out, because of err.
func (p *passage) failed(err error) error {
	if p.ticket != nil {
		p.over()
	}
	return err
}

// over ends the passage: the next in the queue may go.
func (p *passage) over() {
	if !p.arrived.IsZero() {
		p.g.stalls.add(time.Since(p.arrived))
	}
	if p.ticket != nil {
		p.ticket.Done()
	}
	*p = passage{}
}
