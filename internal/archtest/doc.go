// Package archtest holds the rules that the compiler does not: which package may import which, that
// every package says what it is exactly once, and that test helpers stay out of the binary.
package archtest
