// Package dump copies a database's schema to another one, in three sections that leave room for the
// rows in between:
//
//	PreData   schemas, types, functions, tables, sequences, views; no indexes
//	          ... the rows are copied ...
//	Indexes   keys, indexes, statistics; several at a time, and for one table while others are copied.
//	          Rows can be copied again afterwards
//	Final     other constraints, triggers, rules, policies; materialized views filled; grants
//
// pg_dump reads the source, because nobody else knows every kind of object of every version.
// pg_restore turns its archive into SQL, object by object, with dependencies. From there this
// package decides what is built, when and by whom, and runs the SQL itself, so that an error names
// the object, has a SQLSTATE, and no psql with its own settings stands in between.
//
// Each section may be run again, also after a crash in the middle: what is built is recorded on the
// target in the same transaction that builds it (table ficus.built). An object that exists and that
// no earlier run built is an error, never a guess.
//
// Not copied: rows, publications, subscriptions, large objects, tablespaces, settings of the
// database itself (ALTER DATABASE), schema ficus.
//
// A Dump is for one goroutine at a time.
package dump
