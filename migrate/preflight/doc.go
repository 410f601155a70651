// Package preflight looks, before anything is changed, for everything that would make a migration
// fail or surprise later: settings, privileges, tables that need care, a target that is in use.
//
// Each finding says what it is about, how much it matters and the SQL or setting that mends it.
// Nothing here writes. The same findings are shown by `ficus check` and stop `ficus run`.
package preflight
