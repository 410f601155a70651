package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ficus-migrate/ficus/gateway"
	"github.com/ficus-migrate/ficus/internal/backoff"
)

// A handed message goes along with the doors, whose file descriptors are in the order of their names.
type handed struct {
	Databases map[string]gateway.Position `json:"databases"`
	Doors     []string                    `json:"doors"`
	Path      string                      `json:"path"` // where the old process listens for control from now on
}

// An Inheritance is what a process takes over from the one before.
type Inheritance struct {
	Databases map[string]gateway.Position
	Doors     map[string]*os.File
	Before    map[string]*Client // by database
}

// Cancel passes a cancel request on to the process before. It is no error when that is gone.
func (in *Inheritance) Cancel(ctx context.Context, pid, secret uint32) error {
	for _, before := range in.Before { // any of them: keys are the process's
		if err := before.Cancel(ctx, pid, secret); !errors.Is(err, ErrGone) {
			return err
		}
		break
	}
	return nil
}

// Bounds of the message: its first part, which brings the doors, and all of it.
const (
	maxHandedPart = 4096
	maxHanded     = 4 << 20
)

// handover gives the doors away, and moves the control of this gateway to a path of its own.
func (s *Server) handover(w http.ResponseWriter, r *http.Request) {
	path := fmt.Sprintf("%s.%d", s.cfg.Path, os.Getpid())
	next, err := listen(context.WithoutCancel(r.Context()), path)
	if err != nil {
		refuse(w, fmt.Errorf("hand over: %w", err))
		return
	}
	p, files, err := s.cfg.Hall.HandOver(r.Context())
	if err != nil {
		_ = next.Close()
		_ = os.Remove(path)
		refuse(w, err)
		return
	}
	s.mu.Lock()
	old := s.mu.own
	s.mu.own, s.mu.path = next, path
	s.mu.Unlock()
	s.moved <- next
	_ = old.Close()
	if err := give(w, p, path, files); err != nil {
		// The doors are closed here and nobody has them: clients that are here go on, and the next
		// process opens doors of its own.
		s.cfg.Log.LogAttrs(r.Context(), slog.LevelError, "doors were lost on their way", slog.Any("err", err))
	}
}

// give sends the doors over the connection of the request, instead of an answer.
func give(w http.ResponseWriter, p map[string]gateway.Position, path string, files map[string]*os.File) error {
	msg := handed{Databases: p, Path: path}
	var fds []int
	for name, f := range files {
		defer f.Close()
		msg.Doors = append(msg.Doors, name)
	}
	slices.Sort(msg.Doors)
	for _, name := range msg.Doors {
		fds = append(fds, int(files[name].Fd()))
	}
	body, err := json.Marshal(msg)
	if err != nil {
		return err
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer conn.Close()
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("not a Unix socket")
	}
	first, rest := body[:min(len(body), maxHandedPart)], body[min(len(body), maxHandedPart):]
	if _, _, err = u.WriteMsgUnix(first, syscall.UnixRights(fds...), nil); err != nil || len(rest) == 0 {
		return err
	}
	_, err = u.Write(rest)
	return err
}

// TakeOver asks the gateway behind the socket for its doors. It returns nil when none is there, and
// waits while clients are held.
func TakeOver(ctx context.Context, path string) (*Inheritance, error) {
	retry := backoff.Timer{Min: 100 * time.Millisecond, Max: time.Second}
	for {
		in, err := takeOver(ctx, path)
		switch {
		case errors.Is(err, ErrGone):
			return nil, nil
		case errors.Is(err, gateway.ErrHeld):
			if werr := retry.Wait(ctx); werr != nil {
				return nil, fmt.Errorf("take over from the gateway at %s: %w", path, err)
			}
		case err != nil:
			return nil, fmt.Errorf("take over from the gateway at %s: %w", path, err)
		default:
			return in, nil
		}
	}
}

func takeOver(ctx context.Context, path string) (*Inheritance, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.New("not a Unix socket")
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	if _, err := u.Write([]byte("POST /v1/handover HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n")); err != nil {
		return nil, err
	}
	body, rights := make([]byte, maxHandedPart), make([]byte, maxHandedPart)
	n, nr, _, _, err := u.ReadMsgUnix(body, rights)
	if err != nil {
		return nil, err
	}
	if text := string(body[:n]); strings.HasPrefix(text, "HTTP/") { // it refused
		if strings.Contains(text, `"held":true`) {
			return nil, gateway.ErrHeld
		}
		_, after, _ := strings.Cut(text, "\r\n\r\n")
		return nil, fmt.Errorf("refused: %s", strings.TrimSpace(after))
	}
	more, err := io.ReadAll(io.LimitReader(u, maxHanded))
	if err != nil {
		return nil, err
	}
	return received(append(body[:n], more...), rights[:nr])
}

func received(body, rights []byte) (*Inheritance, error) {
	var msg handed
	if err := json.Unmarshal(body, &msg); err != nil {
		return nil, err
	}
	var fds []int
	control, err := syscall.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	for _, c := range control {
		more, err := syscall.ParseUnixRights(&c)
		if err != nil {
			return nil, err
		}
		fds = append(fds, more...)
	}
	if len(fds) != len(msg.Doors) {
		return nil, fmt.Errorf("%d doors came for %d names", len(fds), len(msg.Doors))
	}
	in := &Inheritance{Databases: msg.Databases, Doors: map[string]*os.File{}, Before: map[string]*Client{}}
	for name := range msg.Databases {
		in.Before[name] = NewClient(msg.Path, name)
	}
	for i, name := range msg.Doors {
		syscall.CloseOnExec(fds[i])
		in.Doors[name] = os.NewFile(uintptr(fds[i]), name)
	}
	return in, nil
}
