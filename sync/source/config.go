package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/eventstore"
	"github.com/ficus-migrate/ficus/internal/pg"
)

// An AckPolicy says what lets the server forget WAL.
type AckPolicy uint8

// The policies.
const (
	// AckStored: a change is durable in the event store.
	AckStored AckPolicy = iota
	// AckApplied: a change is committed at the destination. The event store may then be lost
	// without losing changes; the server keeps WAL for as long as the destination is behind.
	AckApplied
)

// String returns the policy as a word.
func (p AckPolicy) String() string {
	switch p {
	case AckStored:
		return "stored"
	case AckApplied:
		return "applied"
	}
	return fmt.Sprintf("AckPolicy(%d)", uint8(p))
}

// A Streaming says whether the server sends large transactions before they commit.
type Streaming uint8

// The choices.
const (
	// StreamingOn: from version 14 on. The server need not write a large transaction to its disk a
	// second time, and most of it is here when it commits.
	StreamingOn Streaming = iota
	// StreamingOff: all of a transaction comes after its commit.
	StreamingOff
)

// String returns the choice as a word.
func (s Streaming) String() string {
	switch s {
	case StreamingOn:
		return "on"
	case StreamingOff:
		return "off"
	}
	return fmt.Sprintf("Streaming(%d)", uint8(s))
}

// Events are called as things happen; nil ones are skipped. They are called from the goroutine
// that receives, which waits for them.
type Events struct {
	Connected    func()
	Disconnected func(err error)
	// Stored is called after transactions up to end became visible in the stream. bytes is the
	// size of what was written for them.
	Stored func(end change.LSN, bytes int)
}

// Config holds what a Reader needs. Fields without a stated default are required.
type Config struct {
	DSN          pg.DSN
	Slot         string
	Publications []string
	Stream       *eventstore.Stream // this reader is its only writer
	// Start is where the slot was created (Snapshot.LSN). With it the reader can tell a slot that
	// has moved on without it, and with that changes that are lost, from one that is new.
	Start change.LSN

	// Ack says what is acknowledged. Default AckStored.
	Ack AckPolicy
	// Applied returns the end of the last transaction that the destination has committed.
	// Required with AckApplied.
	Applied func() change.LSN

	// Identity is the database that Stream came from. Default: the one that the first connection finds.
	Identity Identity
	// Identified remembers, durably, which database it is from now on, before anything is read from
	// it: the first one found, or the same one on another timeline. Default: nobody is told.
	Identified func(Identity) error
	// Held returns the end of the last transaction at the destination, asked of the destination
	// itself: a reader that meets another timeline must know. Default: Applied.
	Held func(context.Context) (change.LSN, error)
	// Copied returns a position that the server had written when rows were last copied from it, behind
	// everything that the copy shows: a server without it is not the one that they came from. Default:
	// none.
	Copied func() (change.LSN, error)

	// Enlist is called with each session that reads the slot, before it does, and refuses it when another
	// process has taken the slot over. Default: nobody is asked.
	Enlist func(context.Context, *pgconn.PgConn) error

	// Streaming says how large transactions come. Default StreamingOn.
	Streaming Streaming

	// StatusInterval is the time between two reports to the server. Default 1 s.
	StatusInterval time.Duration
	// ReceiveTimeout is how long a server may be silent before the connection counts as dead. It is
	// asked to answer with every report, so it speaks more often than that. Default 60 s.
	ReceiveTimeout time.Duration
	// Log receives what an operator may want to know. Default: nothing.
	Log *slog.Logger
	// Events observes the reader. Default: nothing.
	Events Events
}

func (c *Config) complete() error {
	switch {
	case c.DSN.IsZero() || c.Slot == "" || len(c.Publications) == 0 || c.Stream == nil:
		return errors.New("DSN, slot, publications and stream are required")
	case c.Start == 0:
		return errors.New("the position where the slot was created is required")
	case c.Ack == AckApplied && c.Applied == nil:
		return errors.New("acknowledging what is applied requires to know what is")
	}
	c.StatusInterval = cmp.Or(c.StatusInterval, time.Second)
	c.ReceiveTimeout = cmp.Or(c.ReceiveTimeout, receiveTimeout)
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	if c.Applied == nil {
		c.Applied = func() change.LSN { return 0 }
	}
	if c.Held == nil {
		c.Held = func(context.Context) (change.LSN, error) { return c.Applied(), nil }
	}
	if c.Copied == nil {
		c.Copied = func() (change.LSN, error) { return 0, nil }
	}
	if c.Enlist == nil {
		c.Enlist = func(context.Context, *pgconn.PgConn) error { return nil }
	}
	if c.Identified == nil {
		c.Identified = func(Identity) error { return nil }
	}
	return nil
}
