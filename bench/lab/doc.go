// Package lab is the ground that the benchmarks stand on: two PostgreSQL clusters of their own, the
// programs that move data between them, and what can be said of a run - whether both sides hold the
// same rows, how long it took, how much processor time and memory it used.
//
// A [Lab] holds the clusters. [Start] runs a program and reads its JSON lines; [Pipe] runs two, one
// writing into the other. [Lab.Same] compares two databases and is what makes a run count. A [Delay]
// stands between a client and a server and makes the way longer, not narrower.
//
// Processor time and memory come from /proc and are zero on systems that have none.
package lab
