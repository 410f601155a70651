// Package fence is migrate.Database on PostgreSQL: who owns the data, the gate that binds every
// role, the nonce that proves a drain, and sequences.
//
// # The fence
//
// A trigger BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE, FOR EACH STATEMENT, stands on every
// moved table and every partition of one. It reads the gate, a sequence, because reading a
// sequence shows its value of now even inside an old REPEATABLE READ snapshot, and setting it
// takes no lock that an application waits for. A closed gate raises SQLSTATE 25006.
//
// Closing is: set the gate, commit, then read pg_locks once for the transactions that hold
// RowExclusiveLock or stronger on a fenced table, prepared transactions included, and wait until
// each has ended. That is free of races because a statement takes its table lock before its
// BEFORE triggers run: whatever passed the open gate held its lock when we looked, and whatever
// takes its lock later finds the gate closed.
//
// Appliers pass because they write with session_replication_role = replica, in which ordinary
// triggers do not fire.
//
// # The epoch
//
// The ownership row moves only upwards (see [Database.Own]): two attempts at one epoch cannot both
// win, whichever process makes them and however late a lost request arrives.
//
// # The driver
//
// One process at a time drives a migration. It holds an advisory lock in a session of its own in each
// database, and a token in ficus.driver. Everything that moves ownership, gate or schema compares
// the token in its own transaction, under a share lock of the row: a process that was cut off, or
// stood still while another one took over, is refused whatever it does later (see [Database.Claim]).
// What no transaction can hold together, such as reading and dropping a slot, is done in sessions that
// share a second lock: a claim ends them and takes that lock before it writes its token (see
// [Database.Enlist]).
//
// A Database is safe for concurrent use.
package fence
