// Package pgserver starts throw-away PostgreSQL clusters from binaries that the machine already has.
//
// The demo and the tests share it. A cluster is a postgres process of its own with its own data
// directory, port and socket; it listens on 127.0.0.1 only and trusts whoever connects from there.
// PostgreSQL refuses to run as root, so a caller that is root gets a cluster that runs as the user
// postgres, or else nobody.
//
// Nothing outlives the caller. A watchdog, a small shell process, holds the read end of a pipe; when
// the caller ends in whatever way, kill -9 included, the pipe closes, and the watchdog stops the cluster
// and removes its temporary directory.
//
// A [Server]'s methods are not safe for concurrent use, but for DSN, URL and LogTail.
// Unix only.
package pgserver
