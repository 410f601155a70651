package pgtest

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/ficus-migrate/ficus/internal/pg"
	"github.com/ficus-migrate/ficus/internal/pgserver"
)

// startTimeout bounds initdb and start of one cluster on a busy machine.
const startTimeout = 2 * time.Minute

// tempVariable names the folder for the clusters' files. Hundreds of databases made and dropped keep a
// disk's file system busier than the tests, so "make test" sets it to one in memory where there is room.
const tempVariable = "FICUS_TEST_TEMP"

// A server is a cluster of either provider.
type server interface {
	DSN(database string) pg.DSN
	URL(database string) string
	Shutdown(ctx context.Context) error // fast; the data stays
	Kill() error                        // at once, as a crash would; the data stays
	Restart(ctx context.Context) error
	Stop(ctx context.Context) error // and remove everything
	LogTail(lines int) string
}

// inDocker reports whether clusters are to run in containers instead of as local processes.
func inDocker() bool { return os.Getenv("FICUS_TEST_PG") == "docker" }

// sharedSettings suits tests: everything that logical replication needs, nothing that waits for a disk.
func sharedSettings() map[string]string {
	return map[string]string{
		"wal_level":                    "logical",
		"max_wal_senders":              "50",
		"max_replication_slots":        "50",
		"max_connections":              "200",
		"max_prepared_transactions":    "10",
		"fsync":                        "off",
		"full_page_writes":             "off",
		"shared_buffers":               "64MB",
		"autovacuum_naptime":           "10s",
		"log_line_prefix":              "%m [%p] <%d> %a ",
		"log_min_error_statement":      "error",
		"max_wal_size":                 "512MB",
		"jit":                          "off",
		"wal_receiver_status_interval": "1s",
	}
}

// installFor returns the installation of a major version, and the default one when there is none
// of that major or major is 0: the distribution's newest.
func installFor(major int) (pgserver.Install, error) {
	found, err := pgserver.Find()
	if err != nil {
		return pgserver.Install{}, err
	}
	for _, in := range found {
		if in.Major == major {
			return in, nil
		}
	}
	for _, in := range found {
		if !in.Fetched {
			return in, nil
		}
	}
	return found[0], nil
}

// resolve returns the major version that a request for major, 0 for any, is going to get.
func resolve(major int) (int, error) {
	if inDocker() {
		return imageFor(major)
	}
	in, err := installFor(major)
	return in.Major, err
}

func startServer(o options) (server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	switch {
	case !inDocker():
		return startLocal(ctx, o)
	case o.dir != "":
		return nil, errors.New("containers keep their files to themselves: run without FICUS_TEST_PG=docker")
	}
	return startContainer(ctx, o.major, o.settings)
}

func startLocal(ctx context.Context, o options) (server, error) {
	in, err := installFor(o.major) //nolint:contextcheck // looking for binaries takes no context
	if err != nil {
		return nil, err
	}
	return pgserver.Start(ctx, pgserver.Config{Install: in, Dir: o.dir, Temp: os.Getenv(tempVariable), Settings: o.settings})
}
