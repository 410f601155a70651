package pgserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
)

const (
	// Superuser is the role that owns every cluster; it needs no password.
	Superuser = "postgres"

	startTimeout = time.Minute      // initdb, and from exec to "ready"; crash recovery included
	stopTimeout  = 10 * time.Second // a fast shutdown waits for logical walsenders; then it becomes an immediate one
	pollInterval = 10 * time.Millisecond
	portAttempts = 5
)

// Config says which cluster to start. Install is required.
type Config struct {
	Install Install

	// Dir holds the data directory, the socket and the log. It must be empty or hold a cluster that
	// Start made before. Default: a new temporary directory, which Stop removes.
	Dir string

	// Temp is where a temporary Dir is made. Default: the system's folder for temporary files.
	Temp string

	// Port to listen on. Default: a free one.
	Port int

	// Settings go into the command line and so beat postgresql.conf. Default: none, but the
	// cluster always listens on 127.0.0.1 alone.
	Settings map[string]string

	Log *slog.Logger // default: discard
}

// A Server is a running, or paused, cluster.
type Server struct {
	cfg  Config
	who  account
	dir  string // data/, log, and the socket
	port int
	dsn  pg.DSN
	free func() error // lets the watchdog stop what runs and remove what is temporary

	cmd    *exec.Cmd     // nil while the postmaster does not run
	exited chan struct{} // closed when cmd has ended
}

// Start makes a cluster where Dir holds none yet, starts it and returns when it takes connections.
// ctx bounds the start alone; the cluster runs until Stop or until this process ends.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if cfg.Install.Bin == "" {
		return nil, errors.New("start PostgreSQL: no installation given")
	}
	who, err := runAs()
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	s := &Server{cfg: cfg, who: who}
	if err := s.start(ctx); err != nil {
		if s.free != nil {
			err = errors.Join(err, s.free())
		}
		return nil, fmt.Errorf("start PostgreSQL %s: %w", cfg.Install.Version, err)
	}
	return s, nil
}

func (s *Server) start(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("not ready within "+startTimeout.String()))
	defer cancel()

	remove := ""
	if s.dir = s.cfg.Dir; s.dir == "" {
		if s.dir, err = os.MkdirTemp(cmp.Or(s.cfg.Temp, s.who.tempRoot()), "ficus-pg-"); err != nil {
			return err
		}
		remove = s.dir
	} else if s.dir, err = filepath.Abs(s.dir); err != nil {
		return err
	} else if err = os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if s.who.cred != nil && !worldReachable(filepath.Dir(s.dir)) {
		return hint.Wrap(fmt.Errorf("the user %s, which PostgreSQL runs as, may not enter %s", s.who.name, filepath.Dir(s.dir)),
			"choose a directory below one that everybody may enter, or run as another user than root")
	}
	if err := s.who.own(s.dir); err != nil {
		return errors.Join(err, os.RemoveAll(remove))
	}
	if s.free, err = Watch(ctx, stopScript, s.data(), remove); err != nil {
		return errors.Join(err, os.RemoveAll(remove))
	}
	if _, err := os.Stat(filepath.Join(s.data(), "PG_VERSION")); err != nil {
		if err := s.initdb(ctx); err != nil {
			return err
		}
	}
	return s.listen(ctx)
}

func (s *Server) initdb(ctx context.Context) error {
	// Locale C sorts alike on every major and machine, so tests and the demo may compare order.
	cmd := exec.CommandContext(ctx, filepath.Join(s.cfg.Install.Bin, "initdb"),
		"--pgdata", s.data(), "--username", Superuser, "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	s.who.prepare(cmd, s.dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return hint.Wrap(fmt.Errorf("initdb: %w: %s", err, lastLine(out)), "run initdb by hand to see all it says: %s", cmd)
	}
	return nil
}

// listen starts the postmaster; when the port is not given and turns out to be taken, on another one.
func (s *Server) listen(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		port := s.cfg.Port
		if port == 0 {
			var err error
			if port, err = FreePort(ctx); err != nil {
				return err
			}
		}
		dsn, err := pg.Parse(fmt.Sprintf("postgresql://%s@127.0.0.1:%d/postgres?sslmode=disable", Superuser, port))
		if err != nil {
			return err
		}
		s.port, s.dsn = port, dsn
		err = s.launch(ctx)
		if err == nil || s.cfg.Port != 0 || attempt == portAttempts || ctx.Err() != nil {
			return err
		}
	}
}

// launch runs the postmaster and waits until it takes connections.
func (s *Server) launch(ctx context.Context) error {
	logFile, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = logFile.Close() }()

	// Not ctx: the postmaster outlives the call that starts it.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(s.cfg.Install.Bin, "postgres"), s.args()...)
	s.who.prepare(cmd, s.dir)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() { // ends with the postmaster; stopped by Shutdown, Kill, Stop or the watchdog
		_ = cmd.Wait() // how it ended is in the log
		close(exited)
	}()
	s.cmd, s.exited = cmd, exited

	if err := s.waitReady(ctx); err != nil {
		return errors.Join(err, s.Kill())
	}
	s.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "postgresql started", slog.String("version", s.cfg.Install.Version),
		slog.Int("port", s.port), slog.String("dir", s.dir))
	return nil
}

func (s *Server) args() []string {
	settings := map[string]string{"listen_addresses": "127.0.0.1", "unix_socket_directories": s.dir, "logging_collector": "off"}
	maps.Copy(settings, s.cfg.Settings)
	args := []string{"-D", s.data(), "-p", strconv.Itoa(s.port)}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

func (s *Server) waitReady(ctx context.Context) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", context.Cause(ctx), s.lastWords())
		case <-s.exited:
			return hint.Wrap(fmt.Errorf("the server ended while starting: %s", s.lastWords()), "see its log: %s", s.logPath())
		case <-tick.C:
		}
		switch p, err := readPidFile(s.data()); {
		case err != nil:
			return err
		case p.pid == s.cmd.Process.Pid && p.status == "ready":
			return nil
		}
	}
}

// DSN returns how to connect to a database of the cluster, over TCP as the superuser.
func (s *Server) DSN(database string) pg.DSN { return s.dsn.WithDatabase(database) }

// URL returns DSN as a string for other programs.
func (s *Server) URL(database string) string {
	return fmt.Sprintf("postgresql://%s@127.0.0.1:%d/%s?sslmode=disable", Superuser, s.port, database)
}

// Port returns the TCP port.
func (s *Server) Port() int { return s.port }

// Dir returns the folder with the data directory, the socket and the log.
func (s *Server) Dir() string { return s.dir }

// Install returns what the cluster runs.
func (s *Server) Install() Install { return s.cfg.Install }

// Running reports whether the postmaster is alive.
func (s *Server) Running() bool {
	if s.cmd == nil {
		return false
	}
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

// Shutdown stops the postmaster as "pg_ctl stop -m fast" does, and immediately after ten seconds
// or when ctx ends. The data stays for Restart.
func (s *Server) Shutdown(ctx context.Context) error {
	if !s.Running() {
		s.cmd = nil
		return nil
	}
	if err := s.signal(syscall.SIGINT); err != nil {
		return err
	}
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-s.exited:
		s.cmd = nil
		return nil
	case <-timer.C:
	case <-ctx.Done():
	}
	return s.Kill()
}

// Kill stops the postmaster without a checkpoint, as a crash would: what was committed with fsync
// off but sits in the kernel survives, connections break. The data stays for Restart.
func (s *Server) Kill() error {
	if !s.Running() {
		s.cmd = nil
		return nil
	}
	if err := s.signal(syscall.SIGQUIT); err != nil {
		return err
	}
	<-s.exited // the postmaster sends SIGKILL to children that linger for five seconds
	s.cmd = nil
	return nil
}

// Restart starts the postmaster again, on the same port; one that still runs is shut down first.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Shutdown(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("not ready within "+startTimeout.String()))
	defer cancel()
	if err := s.launch(ctx); err != nil {
		return fmt.Errorf("restart PostgreSQL %s: %w", s.cfg.Install.Version, err)
	}
	return nil
}

// Stop shuts the cluster down and removes its directory if that was temporary.
// The server cannot be used afterwards.
func (s *Server) Stop(ctx context.Context) error {
	return errors.Join(s.Shutdown(ctx), s.free())
}

func (s *Server) signal(sig syscall.Signal) error {
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal PostgreSQL: %w", err)
	}
	return nil
}

func (s *Server) data() string    { return filepath.Join(s.dir, "data") }
func (s *Server) logPath() string { return filepath.Join(s.dir, "log") }

// tailBytes bounds how much of the log LogTail looks at.
const tailBytes = 64 << 10

// LogTail returns the last n lines of the server's log.
func (s *Server) LogTail(n int) string {
	f, err := os.Open(s.logPath())
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > tailBytes {
		if _, err := f.Seek(-tailBytes, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// lastWords returns the end of the log as one line, for an error.
func (s *Server) lastWords() string { return strings.ReplaceAll(s.LogTail(5), "\n", "; ") }

func lastLine(out []byte) string {
	text := strings.TrimSpace(string(out))
	return text[strings.LastIndexByte(text, '\n')+1:]
}
