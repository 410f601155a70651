// Package httpdoor is an HTTP front door for applications that do not talk to a database themselves but to
// a data server, the service that owns the data. It stands in front of two of them, the old one over the
// source and its successor over the target, as the strangler pattern asks for.
//
// # What goes where
//
// Writes go to the data server of the owner. Reads go there too, and by percentage, route by route, to the
// other one. Which requests are reads is a matter of the method, unless a [Route] says otherwise.
// Requests and responses are passed through as they are.
//
// # While the owner changes
//
// [Door.Hold] lets writes in flight end and keeps those that come in order of arrival (package buffer);
// [Door.Release] lets them go to the new owner. A write that waits for too long gets 503 with Retry-After,
// and nothing was done for it. Reads are not held.
//
// # Commands
//
// POST /v1/commands takes a change together with an idempotency key, makes it durable, answers 202, and
// sends it to the data server of the owner until that has answered ([buffer.Commands] says what it
// promises). A command never fails because the owner changes. Each type of command has a path, and
// jq programs that turn its payload into what the data server understands, on either side.
//
// # Shadow reads
//
// A share of the reads is sent to the other data server as well, after the client has its answer, and the
// responses are compared: status, and JSON without what a rule ignores. A difference counts when it is
// still there a moment later, because the other database follows with a lag.
//
// A Door is safe for concurrent use.
package httpdoor
