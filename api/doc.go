// Package api is Ficus over HTTP: what openapi.yaml describes, on gin. It shows migrations, streams
// their events, takes commands, and serves metrics and the dashboard.
//
// It knows migrations through [Service] and reaches into no engine. On a loopback address no token
// is needed; any other address refuses to start without tokens and TLS. Errors are
// application/problem+json (RFC 9457) with a code, a message and a hint.
package api
