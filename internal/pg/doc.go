// Package pg opens PostgreSQL connections and answers questions about them: which errors may be
// retried, what a role may do, which version a server has.
//
// A [DSN] never prints its password: not by String, not through %v, not in the errors of Connect.
// Every connection that Ficus opens names itself in application_name ("ficus/<purpose>"), has an
// empty search_path, and turns off the time-outs that would cut a long migration.
package pg
