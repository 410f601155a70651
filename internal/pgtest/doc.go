// Package pgtest gives tests real PostgreSQL databases.
//
// Each test binary starts one cluster per major version, when a test first asks for it, and each
// test gets a database of its own there ([DB]). A test that has to stop, kill or configure a server
// takes a cluster of its own ([NewCluster]). Clusters come from the machine's binaries through
// [github.com/ficus-migrate/ficus/internal/pgserver]. When a test fails, the tail of the server's log
// is shown.
//
// Nothing keeps running after the test binary, however it ended. A package that uses pgtest should
// still call [Main] from its TestMain, so that clusters are stopped before the process ends.
package pgtest
