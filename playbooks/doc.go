// Package playbooks reads the YAML recipes that say what a migration moves, by which rules, and
// under which conditions it goes on.
//
// Reading is strict: an unknown key, a parameter that is not declared, a value of the wrong type is
// an error with its line and, where one is near, the key that was probably meant. Parameters are
// written ${name} inside values and filled in after the YAML has been parsed, so no value can
// change the structure of a playbook.
//
// The recipes of the four common jobs are embedded: upgrade, schema-change, cluster-move and
// read-replica. [Schema] returns the JSON Schema of the format, for editors.
package playbooks
