// Package migrate is the workflow engine: it takes a migration through its phases, keeps a journal
// so that it can be killed anywhere and go on, waits at gates, and promotes and rolls back.
//
// It declares the small interfaces that it drives (Database, Link, Loader, Verifier, Router,
// Journal) and imports none of their implementations, so a promotion can be tested over thousands
// of random histories without a database. cmd/ficus wires the real ones.
//
// # How it runs
//
// [Steps] is the one table of what is done, in which phase, within which budget, and how it is
// taken back or recognised as done. [Migration.Run] runs that table; "ficus plan" prints it and
// docs/states.md is made from it. Between steps a Migration rests: at a gate, at the phase
// after which the operator wanted to be asked, or with nothing to do but to keep a link running.
//
// # What survives
//
// No state of this package decides who may write: the ownership rows and gates in the two
// databases do (see [Database]); the journal only remembers what was being done.
// After every start the engine asks both databases first. A promotion whose epoch the new owner's
// row does not show is undone: its epoch is burnt there (written for the old owner), so that a
// commit still on its way cannot win afterwards, and only then does the old owner's gate open. One
// whose epoch shows is finished. Both databases must answer for that; until they do, the
// engine asks on, and says so in its status.
//
// # Commands
//
// Pause lets the running step end, begins no other and stops the link; the slot goes on keeping
// changes. Cancel interrupts the running step; up to the point of no return it undoes a
// promotion first. Everything else is picked up where the engine rests.
package migrate
