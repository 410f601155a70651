// Package faultpg bends connections to PostgreSQL for tests. A [Proxy] listens in front of a server
// and passes bytes on until it is told otherwise: cut every connection, reset them after so many more
// bytes, hold bytes back, let them trickle, add a round-trip time, refuse new connections.
//
//	client ──ToServer──► Proxy ──► server
//	       ◄─ToClient───       ◄──
//
// It knows nothing of PostgreSQL's protocol, so that a fault falls wherever it falls: between two
// messages, or in the middle of one. All methods are safe for concurrent use.
package faultpg
