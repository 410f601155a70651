// Package dataserver is a shop that is used over HTTP: a data server that owns a database, its successor with
// another schema and another form of commands, and a front end that sends both of them commands through
// whatever stands in between.
//
// The legacy server keeps schema till ([LegacySchema]), the successor schema sales, which the rules of
// playbook.yaml make out of it. Both do what a data server must do for its commands to be done once: the
// key of a command ("Idempotency-Key") is stored by the transaction that makes its change, in a table that
// moves with the data, and a key that is there already gets the answer that it had.
//
//	POST /place      {customer, item, pieces, cents}      {order}   legacy
//	POST /v2/orders  {customer, sku, quantity, total}     {id}      successor
//	GET /orders/{id}                                      {id, customer, sku, quantity, total, served_by}
//
// Nothing here knows Ficus.
package dataserver
