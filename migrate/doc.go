// Package migrate is the workflow engine: it takes a migration through its phases, keeps a journal
// so that it can be killed anywhere and go on, waits at gates, and promotes and rolls back.
//
// It declares the small interfaces that it drives (Database, Link, Loader, Verifier, Router,
// Journal) and imports none of their implementations, so a promotion can be tested over thousands
// of random histories without a database. cmd/ficus wires the real ones.
//
// No state of this package decides who may write: the ownership rows and gates in the two
// databases do (see [Database]); the journal only remembers what was being done.
package migrate
