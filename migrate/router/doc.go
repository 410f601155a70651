// Package router leads clients to the owner where the gateway does not: over the admin console of
// PgBouncer ([PgBouncer]), by commands or webhooks of the operator's ([Hooks]), or by asking a person
// ([Manual]). Each implements [migrate.Router] and passes the conformance test in package routertest, as
// the gateway does.
//
// Routers differ in what they can promise. [Guarantees] says it of each, in the same words, so that
// "ficus plan" can print it before anything is done; the conformance test holds a router to every
// guarantee that it gives.
//
// None of them decides who may write: the fence in the databases does. A client that a router leads
// astray, or that goes past it, is refused with SQLSTATE 25006.
package router
