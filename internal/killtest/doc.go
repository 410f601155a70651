// Package killtest kills the built program, and the servers under it, at every step of a migration: it
// holds one test.
//
// Each migration is a life of its own, on fresh databases of two clusters: customers work through its
// gateway and, round it, on both databases directly; ownership goes there and back; in the end it is
// completed or cancelled. Meanwhile ficus, the source, the target, the gateway (which is a process of its own in
// every other pair of lives, and lives in ficus run else), or several of them at once, end by SIGKILL: right after a step
// began or ended, a moment later, or at any instant. What was killed is started again - ficus on its data directory, or on an empty one as after
// the loss of a disk - and everything has to go on. At the end no acknowledged transaction is lost,
// doubled or altered, both databases hold the same, and at no moment did both take writes.
//
//	make kills N=200         that many kills, with seeds from the clock
//	make kills N=10 SEED=7   the life with that seed, again: the same kills, as far as time allows
//
// Without flags one short life runs, which is the sample in the default tests.
package killtest
