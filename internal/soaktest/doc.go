// Package soaktest lets the built program follow a database for a long time while everything around
// it breaks: it holds one test.
//
// Two clusters, sessions that write to the source without a pause, and "ficus follow" between them.
// Meanwhile ficus is killed (while it copies, too), held and ended; both servers crash; the network
// before each is cut, reset, stalled, slow; the target refuses writes. Every few minutes the writers
// wait, everything is mended, and once the target has caught up both sides are compared: the text of
// every row, with SQL of the test's own, and in the end by "ficus verify". Every quarter of the time
// it begins again with another copy.
//
//	FICUS_SOAK=1h  for how long; make soak DURATION=1h
//	FICUS_TEST_LONG=1  a short form of it
package soaktest
