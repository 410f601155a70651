package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// errEnded says that a program is gone which should have gone on.
var errEnded = errors.New("the program ended")

// Ficus is one use of the built program: its data directory and what it is told.
type Ficus struct {
	Program        string // path of the binary
	Name           string // of the link; also in the slot's name
	Source, Target string // connection strings
	Workers        int    // that apply; 0: the default

	dir string
}

// Follow starts "ficus follow". Called again after the process has ended, it goes on where it was.
func (f *Ficus) Follow(ctx context.Context, l *Lab) (*Process, error) {
	if f.dir == "" {
		dir, err := l.Scratch()
		if err != nil {
			return nil, err
		}
		f.dir = dir
	}
	args := []string{"follow", "--json", "--name", f.Name, "--data-dir", f.dir, "--source", f.Source, "--target", f.Target}
	if f.Workers > 0 {
		args = append(args, "--apply-workers", strconv.Itoa(f.Workers))
	}
	return Start(ctx, f.Program, args...)
}

// Copied runs "ficus follow" until it has copied everything and caught up, and stops it with a
// signal.
func (f *Ficus) Copied(ctx context.Context, l *Lab) error {
	p, err := f.Follow(ctx, l)
	if err != nil {
		return err
	}
	if _, err := p.Line(ctx, map[string]any{"type": "phase", "phase": "following"}); err != nil {
		return errors.Join(fmt.Errorf("ficus follow: %w", err), p.Stop())
	}
	return p.Stop()
}

// Remove takes away what the link left in both databases, its slot included, and its data directory.
func (f *Ficus) Remove(ctx context.Context) error {
	_, _, err := Run(ctx, f.Program, "cleanup", "--force", "--source", f.Source, "--target", f.Target)
	err = errors.Join(err, os.RemoveAll(f.dir))
	f.dir = ""
	return err
}

// DropSlot drops a replication slot if it is there, once nobody uses it any more.
func (c *Cluster) DropSlot(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, stopTimeout, fmt.Errorf("slot %s is still in use", name))
	defer cancel()
	conn, err := c.Connect(ctx, "postgres")
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := Poll(ctx, conn, nil, `SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)`, name); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, name)
	return err
}
