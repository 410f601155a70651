// Package control lets another process drive a gateway, over HTTP on a Unix socket.
//
//	POST /v1/hold?epoch=N           answers when everything in flight has ended; see below
//	POST /v1/release?epoch=N&owner= leads clients to the owner
//	POST /v1/reads?percent=N        moves reads
//	POST /v1/cancel?pid=N&secret=N  a cancel request that belongs to a session here
//	GET  /v1/status                 Status as JSON
//	POST /v1/handover               answers with the open doors, as file descriptors
//
// Where a gateway leads to several databases, database=NAME says which one is meant; a hand-over is one of all.
//
// An error has a 4xx status and a JSON body (problem). Whoever can write to the socket may do all this:
// its file belongs to the user who runs the gateway, and to nobody else.
//
// # The lease
//
// The answer to a hold stays open: it is the orchestrator's sign of life. When it closes without a
// release the gateway knows that nobody will decide, and asks the databases itself
// ([gateway.Gateway.Lost]). So no heartbeat is needed, and a kill -9 is noticed at once.
//
// # Handing over
//
// A new process takes the doors from the old one ([TakeOver]), which then listens for control on a
// socket of its own and stays until its clients have left. The new process passes on to it whatever it
// is told itself, and cancel requests for keys that it does not know.
package control
