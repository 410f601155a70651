// Package gateway is a PostgreSQL front door (wire protocol 3.0) that leads clients to the database
// that owns the data, and keeps them waiting, without failing them, while ownership moves.
//
// # Doors
//
// The read-write door ([Config.Listen]) leads to the owner. The read-only door
// ([Config.ReadListen]) turns default_transaction_read_only on and leads a percentage of its
// sessions to the backend that does not own the data ([Gateway.Reads]). Each client session has a
// server session of its own, opened as the client's user; under [TransactionPooling] it has one from
// the first message of a transaction to the ReadyForQuery that ends it, and prepared statements are made
// again where they are missing (lend.go).
//
// # Reads
//
// [Reads] says whether the percentage counts sessions or transactions, who goes through the read-only door
// by rule, and what becomes of a read whose user has written what the other backend has not applied
// (reads.go). The gateway takes reads back by itself when they fare worse there than on the owner
// (readhealth.go). [Shadow] runs a share of them on both backends and compares the answers, while no
// client waits for it (shadow.go).
//
// # Relaying
//
// Two goroutines serve a session, one per direction. They look at message headers and relay the
// bytes as they are, so that results, errors, COPY, notices and notifications arrive unchanged. The
// texts of Parse and Query messages are looked at for two things only: the unnamed statement, and
// the names of custom settings (see below).
//
// # Borders, hold, switch
//
// A session is at a border when the last ReadyForQuery said idle and nothing sent since is
// unanswered. [Gateway.Hold] lets sessions run to their border and keeps there whoever wants to
// begin something new, in order of arrival (package buffer). [Gateway.Release] names the owner;
// sessions then move to it at their border, held ones first. What moves along: startup parameters,
// settings of the session, custom settings whose names were seen, role, prepared statements of both
// kinds (pg_prepared_statements is the authority, so DEALLOCATE and DISCARD need no watching), the
// unnamed statement. What cannot move ends the session: temporary objects, cursors WITH HOLD,
// advisory locks, LISTEN, custom settings under computed names. Not carried over and not detected:
// currval() and lastval(), the seed of random(), libraries loaded by LOAD, and custom settings that
// only functions on the server set.
//
// # Who owns
//
// Hold and Release say so, each with an epoch. With [Config.Ask] the gateway asks the databases as well: it
// follows an epoch that it was not told of, and ends a hold whose orchestrator is gone ([Gateway.Lost]). As
// long as the orchestrator lives nobody else decides.
//
// # Several databases
//
// A [Hall] is the pair of doors. The database that a client asks for says which of the hall's gateways it
// comes to; each of them has its own backends, owner, hold, users, limits and figures, so that one may switch
// while the others go on. A gateway made by [New] has a hall of its own.
//
// # Another process
//
// [Hall.HandOver] gives the open doors to the next process; the clients that are here stay until they
// leave. Package control is how another process drives a gateway, and takes over from it.
//
// # What clients are told
//
//	40001  ERROR  held for longer than HoldTimeout; nothing was executed, try again
//	53300  ERROR  more than MaxHeld clients wait; nothing was executed, try again (FATAL while connecting)
//	53300  FATAL  more clients, or of one user, than there may be; no server session became free in time
//	57014  ERROR  canceled by the user while held
//	57P01  FATAL  the session cannot move, or the gateway stops; connect again
//	57P03  FATAL  held for longer than HoldTimeout while connecting
//	3D000  FATAL  no such database behind this gateway
//	08006  FATAL  the server's connection broke without a word
//	08P01  FATAL  the client broke the protocol
//	28P01  FATAL  wrong password
//	28000  FATAL  no TLS where it is required
//	53400  FATAL  too many prepared statements under pooling of transactions (54000: one is too long)
package gateway
