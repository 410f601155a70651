// Package ddl keeps a link in step with what becomes of the tables of its origin. It runs the link
// until the origin's DDL stands in its way, follows what may be followed, and stops with what an
// operator can do about the rest.
//
// Where the stream shows a change, the link stands exactly in front of the first row of the new
// shape. What the stream does not show (a new table, an index, a default, a partition) is found by
// comparing catalogs: a watcher acts once everything that was committed before it looked is applied.
// In both cases no row of an older shape can come after.
//
// What a link moves is a [Plan], which the caller keeps durably. A change is written down in it
// before it begins and every part of it may be repeated, so whoever is killed in the middle is
// followed by one who ends it. Which differences there are and what the destination needs for them
// is the business of schema/evolve, which does no I/O.
//
// The package knows neither playbooks nor phases: the migration that it belongs to is behind the
// interfaces Plans and Host. A Follower is safe for concurrent use, but for two calls of Run at a time.
package ddl
