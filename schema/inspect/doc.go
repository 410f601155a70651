// Package inspect reads from a PostgreSQL database what Ficus has to know about it: tables with
// their columns and keys, sequences, and what the server and the role can do.
//
// It reads catalogs and file sizes and never writes. A table that a DDL statement holds makes it wait,
// because its size cannot be read. Connections must come from
// [github.com/ficus-migrate/ficus/internal/pg]: with an empty search_path PostgreSQL prints every
// type and default with its schema. Works with PostgreSQL 13 and newer.
//
// What belongs to PostgreSQL (pg_*, information_schema), to Ficus (schema ficus), to an extension
// or to one session (temporary tables) is never listed.
//
// Source: PostgreSQL manual, chapter "System Catalogs".
package inspect
