// Package fidelity proves that everything PostgreSQL can put into a table arrives as it was: it holds
// tests only.
//
// Each test makes two databases, writes rows of a kind (every type there is, every shape of table),
// copies them, changes them in every way while a link follows, and then wants two independent
// answers: the exact verification finds no difference, and the text that COPY makes of both sides is
// the same, byte for byte.
//
// By default it runs on the distribution's version and on one pair of different versions; with
// FICUS_TEST_LONG=1 on all pairs of 13 to 18 that the machine has, with larger values and wider
// tables. docs/fidelity.md is written from what the tests see (-update writes it anew).
package fidelity
