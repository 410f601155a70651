package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ory/dockertest/v3"
	"github.com/ory/dockertest/v3/docker"

	"github.com/ficus-migrate/ficus/internal/hint"
	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgserver"
)

const (
	// image is what "make test-docker" builds or pulls; its tags are major versions.
	image = "ficus-test-postgres"

	readyInterval = 50 * time.Millisecond
)

// removeScript is what the watchdog runs when the test binary is gone.
const removeScript = `docker rm --force --volumes "$1" >/dev/null 2>&1 || true`

// A container is a PostgreSQL server in Docker.
type container struct {
	pool *dockertest.Pool
	id   string
	dsn  pg.DSN
	url  string // up to the database's name
	free func() error
}

// imageFor returns the major version of the image to use: the wanted one if there is an image of
// it, else that of the distribution's server, whose clients then fit, else the newest.
func imageFor(major int) (int, error) {
	pool, err := dockertest.NewPool("")
	if err != nil {
		return 0, fmt.Errorf("docker: %w", err)
	}
	images, err := pool.Client.ListImages(docker.ListImagesOptions{Filters: map[string][]string{"reference": {image}}})
	if err != nil {
		return 0, hint.Wrap(fmt.Errorf("docker: %w", err), "start a Docker daemon, or unset FICUS_TEST_PG")
	}
	var majors []int
	for _, img := range images {
		for _, tag := range img.RepoTags {
			if n, err := strconv.Atoi(tag[strings.LastIndexByte(tag, ':')+1:]); err == nil {
				majors = append(majors, n)
			}
		}
	}
	if len(majors) == 0 {
		return 0, hint.Wrap(errors.New("docker: no image "+image), "make test-docker makes it")
	}
	if slices.Contains(majors, major) {
		return major, nil
	}
	if in, err := installFor(0); err == nil && slices.Contains(majors, in.Major) {
		return in.Major, nil
	}
	return slices.Max(majors), nil
}

func startContainer(ctx context.Context, major int, settings map[string]string) (_ *container, err error) {
	major, err = imageFor(major) //nolint:contextcheck // looking for binaries takes no context
	if err != nil {
		return nil, err
	}
	pool, err := dockertest.NewPool("")
	if err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	port, err := pgserver.FreePort(ctx)
	if err != nil {
		return nil, err
	}
	var cmd []string
	for name, value := range settings {
		cmd = append(cmd, "-c", name+"="+value)
	}
	c := &container{pool: pool}
	name := fmt.Sprintf("ficus-test-%d-%d", os.Getpid(), port)
	if c.free, err = pgserver.Watch(ctx, removeScript, name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.free())
		}
	}()
	res, err := pool.RunWithOptions(&dockertest.RunOptions{
		Name:         name,
		Repository:   image,
		Tag:          strconv.Itoa(major),
		Env:          []string{"POSTGRES_HOST_AUTH_METHOD=trust"}, // for the official image
		Cmd:          cmd,
		ExposedPorts: []string{"5432/tcp"},
		// A port of our own, because Docker would choose another one at each start.
		PortBindings: map[docker.Port][]docker.PortBinding{"5432/tcp": {{HostIP: "127.0.0.1", HostPort: strconv.Itoa(port)}}},
	}, func(hc *docker.HostConfig) { hc.ShmSize = 256 << 20 })
	if err != nil {
		return nil, fmt.Errorf("docker run %s:%d: %w", image, major, err)
	}
	c.id = res.Container.ID
	c.url = "postgresql://postgres@" + res.GetHostPort("5432/tcp") + "/"
	if c.dsn, err = pg.Parse(c.URL("postgres")); err != nil {
		return nil, err
	}
	return c, c.waitReady(ctx)
}

// waitReady waits until the server takes connections twice in a row: the official image
// starts it once to prepare it, and then anew.
func (c *container) waitReady(ctx context.Context) error {
	tick := time.NewTicker(readyInterval)
	defer tick.Stop()
	for inRow := 0; ; {
		conn, err := c.dsn.Connect(ctx, "pgtest")
		if err == nil {
			if err := conn.Close(ctx); err != nil {
				return err
			}
			if inRow++; inRow == 2 {
				return nil
			}
		} else {
			inRow = 0
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w: %s", context.Cause(ctx), err, c.LogTail(5))
		case <-tick.C:
		}
	}
}

func (c *container) DSN(database string) pg.DSN { return c.dsn.WithDatabase(database) }

func (c *container) URL(database string) string { return c.url + database + "?sslmode=disable" }

func (c *container) Shutdown(ctx context.Context) error { return c.signal(ctx, docker.SIGINT) }

func (c *container) Kill() error { return c.signal(context.Background(), docker.SIGQUIT) }

// signal ends the server with a signal to its postmaster, which is the container's first process.
func (c *container) signal(ctx context.Context, sig docker.Signal) error {
	info, err := c.pool.Client.InspectContainerWithContext(c.id, ctx)
	if err != nil || !info.State.Running {
		return err
	}
	if err := c.pool.Client.KillContainer(docker.KillContainerOptions{ID: c.id, Signal: sig, Context: ctx}); err != nil {
		return err
	}
	_, err = c.pool.Client.WaitContainerWithContext(c.id, ctx)
	return err
}

func (c *container) Restart(ctx context.Context) error {
	if err := c.Shutdown(ctx); err != nil {
		return err
	}
	if err := c.pool.Client.StartContainerWithContext(c.id, nil, ctx); err != nil {
		return err
	}
	return c.waitReady(ctx)
}

func (c *container) Stop(context.Context) error { return c.free() }

func (c *container) LogTail(lines int) string {
	var out bytes.Buffer
	err := c.pool.Client.Logs(docker.LogsOptions{
		Container: c.id, OutputStream: &out, ErrorStream: &out, Stdout: true, Stderr: true, Tail: strconv.Itoa(lines),
	})
	if err != nil {
		return err.Error()
	}
	return out.String()
}
