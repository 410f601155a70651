// Package gateway is a PostgreSQL front door (wire protocol 3.0) that leads clients to the database
// that owns the data, and keeps them waiting, without failing them, while ownership moves.
//
// # Doors
//
// The read-write door ([Config.Listen]) leads to the owner. The read-only door
// ([Config.ReadListen]) turns default_transaction_read_only on and leads a percentage of its
// sessions to the backend that does not own the data ([Gateway.Reads]). Each client session has a
// server session of its own, opened as the client's user (session pooling).
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
// # What clients are told
//
//	40001  ERROR  held for longer than HoldTimeout; nothing was executed, try again
//	53300  ERROR  more than MaxHeld clients wait; nothing was executed, try again (FATAL while connecting)
//	57014  ERROR  canceled by the user while held
//	57P01  FATAL  the session cannot move, or the gateway stops; connect again
//	57P03  FATAL  held for longer than HoldTimeout while connecting
//	3D000  FATAL  no such database behind this gateway
//	08006  FATAL  the server's connection broke without a word
//	08P01  FATAL  the client broke the protocol
package gateway
