// Package evolve compares a table of the source with what a mapping was made from, and says what it
// takes for the target to follow: statements, or the reason why nobody but a person can decide.
//
// A difference is safe when the target may follow it by itself in stream order, and certain when
// the rows that the target holds already are known to be as at the source afterwards. What is not
// certain needs the table copied anew: DDL that writes rows anew leaves nothing in the stream.
//
// The catalog may be ahead of the stream: two statements may have run before the link sees the
// first. So the shape of a table is what the stream says it is from here on, and the catalog only
// adds what the stream does not tell (defaults, and the values of rows that were there before).
//
// The package does no I/O. It knows tables and columns; indexes and partitions are no matter of
// mappings.
package evolve
