// Package spec is the specification of the promotion: a small state machine of two databases, writers,
// a link and up to two processes that drive, and a test that goes through every state it can reach.
// README.md says what was checked and what the machine leaves out. It shares no code with package migrate:
// what is right here is what migrate has to be.
package spec
