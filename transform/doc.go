// Package transform holds the rules that change data on its way: rename a table, rename, drop or
// compute a column, move only some rows. Rules are compiled against the source's tables into
// Mappings; a Mapping has an inverse for the reverse link, or the word "lossy" with the reason.
//
// Expressions and conditions are PostgreSQL's own SQL, evaluated by PostgreSQL: by the source
// while copying and verifying, by the target while streaming.
package transform
