package apply

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ficus-migrate/ficus/change"
	"github.com/ficus-migrate/ficus/schema"
)

// A verb is a kind of statement.
type verb uint8

const (
	verbInsert  verb = iota + 1
	verbUpdate       // leaves the key alone
	verbMove         // sets the key too
	verbReplace      // as move, where UPDATE may not set a column: delete and insert in one statement
	verbDelete
	verbTruncate
)

// String returns the verb as people say it.
func (v verb) String() string {
	switch v {
	case verbInsert:
		return "insert"
	case verbUpdate, verbMove, verbReplace:
		return "update"
	case verbDelete:
		return "delete"
	case verbTruncate:
		return "truncate"
	}
	return "invalid"
}

// A via is how the rows of a statement get to the destination.
type via uint8

const (
	viaText  via = iota // as arrays of text: any statement, any value
	viaTyped            // as arrays of the columns' types, where these have a form
	viaCopy             // by COPY: inserts, of tables that let it, see table.copies
)

// copyRows is from how many rows on COPY inserts them faster than INSERT does, which has its plan ready.
const copyRows = 50

// A shape determines a statement but for its rows.
type shape struct {
	table    *table
	verb     verb
	mask     string      // updates: 'u' for each param that stays as it is, "" when none does
	truncate *truncation // verbTruncate only
}

func (s *shape) masked(param int) bool { return s.mask != "" && s.mask[param] == 'u' }

// set returns the columns that an update writes.
func (s *shape) set() []column {
	var set []column
	for _, c := range s.table.columns {
		isKey := slices.ContainsFunc(s.table.key, func(k keyPart) bool { return k.targetColumn == c.targetColumn })
		if c.param < 0 || s.masked(c.param) || s.verb == verbUpdate && isKey {
			continue
		}
		set = append(set, c)
	}
	return set
}

// An arg is one parameter of a statement: the values, over all its rows, of one place in their
// images.
type arg struct {
	key   bool // in the key, else in the row
	index int
	form  form // of the array
}

// A builder writes one statement. Parameters are arrays, which unnest makes a table u of with columns
// p1, p2, ... They are of text, or typed: where a form is known, of the column's type.
type builder struct {
	typed           bool
	strings.Builder          // what the statement does
	with            []string // what comes before it, "name AS (query)"
	args            []arg
}

// param returns the column of u that holds a place of the images, as text.
func (b *builder) param(key bool, index int) string { return b.arg(arg{key: key, index: index}) }

// value returns SQL for a place of the images as a value that may be assigned to a column.
func (b *builder) value(c *targetColumn, key bool, index int) string {
	if b.typed && c.form != asText {
		return b.arg(arg{key, index, c.form})
	}
	return c.cast(b.param(key, index))
}

func (b *builder) arg(a arg) string {
	i := slices.Index(b.args, a)
	if i < 0 {
		i = len(b.args)
		b.args = append(b.args, a)
	}
	return fmt.Sprintf("u.p%d", i+1)
}

// u returns the FROM item; call it when all params are known.
func (b *builder) u() string {
	params, names := make([]string, len(b.args)), make([]string, len(b.args))
	for i := range b.args {
		params[i] = fmt.Sprintf("$%d::pg_catalog.%s[]", i+1, b.args[i].form)
		names[i] = fmt.Sprintf("p%d", i+1)
	}
	return "unnest(" + strings.Join(params, ", ") + ") AS u(" + strings.Join(names, ", ") + ")"
}

// sql returns the statement and what its parameters hold, or the fields of a COPY. A sure one raises an
// error unless it hits as many rows as one more parameter says, an int8; where a mapping has a condition,
// or fewer.
func (s *shape) sql(v via, sure bool) (text string, args []arg) {
	b := &builder{typed: v == viaTyped}
	switch {
	case v == viaCopy:
		s.copy(b)
	case s.verb == verbInsert:
		s.insert(b)
	case s.verb == verbTruncate:
		s.truncation(b)
	case s.verb == verbReplace:
		s.replace(b)
	case s.table.whole:
		s.whole(b)
	case s.verb == verbDelete:
		where := s.found(b)
		fmt.Fprintf(b, "DELETE FROM %s AS t USING %s WHERE %s", s.table.target.sql(), b.u(), where)
	default:
		set, where := s.assignments(b), s.found(b)
		fmt.Fprintf(b, "UPDATE %s AS t SET %s FROM %s WHERE %s", s.table.target.sql(), set, b.u(), where)
	}
	text = b.String()
	if sure {
		enough := "="
		if s.table.mapping.Where != "" {
			enough = "<="
		}
		b.with = append(b.with, "hit AS ("+text+" RETURNING 1)")
		text = fmt.Sprintf("SELECT 1 / (count(*) %s $%d::pg_catalog.int8)::pg_catalog.int4 FROM hit", enough, len(b.args)+1)
	}
	if len(b.with) > 0 {
		text = "WITH " + strings.Join(b.with, ", ") + " " + text
	}
	return text, b.args
}

func (s *shape) names() string {
	names := make([]string, len(s.table.columns))
	for i, c := range s.table.columns {
		names[i] = c.name
	}
	return schema.QuoteIdents(names)
}

func (s *shape) insert(b *builder) {
	values, from, where := s.written(b, false)
	fmt.Fprintf(b, "INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s%s",
		s.table.target.name, s.names(), strings.Join(values, ", "), from, where)
}

// copy writes a COPY in text format. It stores rows a thousand at a time where INSERT stores them one by one.
func (s *shape) copy(b *builder) {
	for _, c := range s.table.columns {
		b.args = append(b.args, arg{index: c.param})
	}
	fmt.Fprintf(b, "COPY %s (%s) FROM STDIN", s.table.target.name, s.names())
}

// written returns the values that the target columns get from a row image (or, with old, from the
// image before), and the FROM item and WHERE clause they are computed in.
func (s *shape) written(b *builder, old bool) (values []string, from, where string) {
	t := s.table
	if !t.computed {
		for _, c := range t.columns {
			values = append(values, b.value(c.targetColumn, old, c.param))
		}
		return values, b.u(), ""
	}
	typed := make([]string, len(t.params))
	for i, p := range t.params {
		typed[i] = fmt.Sprintf("%s::%s AS %s", b.param(old, i), p.cast, schema.QuoteIdent(p.name))
	}
	source := schema.QuoteIdent(t.mapping.Source.Name.Name)
	for _, c := range t.columns {
		if c.expr != "" {
			values = append(values, "("+c.expr+"\n)") // it may end in a comment
		} else {
			values = append(values, source+"."+schema.QuoteIdent(t.params[c.param].name))
		}
	}
	if t.mapping.Where != "" {
		where = " WHERE (" + t.mapping.Where + "\n)"
	}
	return values, fmt.Sprintf("(SELECT %s FROM %s) AS %s", strings.Join(typed, ", "), b.u(), source), where
}

// assignments returns the SET list of an update.
func (s *shape) assignments(b *builder) string {
	var set []string
	for _, c := range s.set() {
		set = append(set, schema.QuoteIdent(c.name)+" = "+b.value(c.targetColumn, false, c.param))
	}
	return strings.Join(set, ", ")
}

// found returns the condition that joins t and u on the key.
func (s *shape) found(b *builder) string {
	var on []string
	for i, k := range s.table.key {
		on = append(on, fmt.Sprintf("%s %s %s", k.compared(), k.equal, b.value(k.targetColumn, true, i)))
	}
	return strings.Join(on, " AND ")
}

// replace writes an update as a delete and an insert of the whole row, columns that no mapping
// writes included.
func (s *shape) replace(b *builder) {
	t := s.table
	set := map[string]string{}
	for _, c := range s.set() {
		set[c.name] = b.value(c.targetColumn, false, c.param)
	}
	var names, values []string
	for _, c := range t.target.columns {
		if c.generated {
			continue
		}
		names = append(names, c.name)
	}
	slices.Sort(names)
	for i, name := range names {
		value, ok := set[name]
		if !ok {
			value = "t." + schema.QuoteIdent(name)
		}
		values = append(values, fmt.Sprintf("%s AS c%d", value, i))
	}
	where := s.found(b)
	b.with = append(b.with, fmt.Sprintf("gone AS (DELETE FROM %s AS t USING %s WHERE %s RETURNING %s)", t.target.sql(), b.u(), where, strings.Join(values, ", ")))
	fmt.Fprintf(b, "INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT * FROM gone", t.target.name, schema.QuoteIdents(names))
}

// whole writes an update or delete of rows that have no key. Their image, as the text of a record,
// is compared: exact for every type, and something that hashes. Of n equal rows at the destination
// as many are taken as the stream says; which ones does not matter, so they are numbered.
func (s *shape) whole(b *builder) {
	t := s.table
	old, from, where := s.written(b, true)
	have := make([]string, len(t.columns))
	for i, c := range t.columns {
		have[i] = "t." + schema.QuoteIdent(c.name)
		old[i] = "(" + old[i] + ")::" + c.full // what an assignment would make of it
	}
	wanted := []string{"ROW(" + strings.Join(old, ", ") + ")::pg_catalog.text AS image"}
	do := fmt.Sprintf("DELETE FROM %s AS t USING", t.target.sql())
	if s.verb != verbDelete {
		var set []string
		for i, c := range s.set() {
			wanted = append(wanted, fmt.Sprintf("%s AS n%d", b.value(c.targetColumn, false, c.param), i))
			set = append(set, fmt.Sprintf("%s = w.n%d", schema.QuoteIdent(c.name), i))
		}
		do = fmt.Sprintf("UPDATE %s AS t SET %s FROM", t.target.sql(), strings.Join(set, ", "))
		from = b.u() // more params than when it was made
	}
	b.with = append(b.with, fmt.Sprintf(`want AS MATERIALIZED (
	SELECT *, row_number() OVER (PARTITION BY image) AS nth FROM (SELECT %s FROM %s%s) AS i
)`, strings.Join(wanted, ", "), from, where), fmt.Sprintf(`have AS MATERIALIZED (
	SELECT rel, tid, image, row_number() OVER (PARTITION BY image) AS nth
	FROM (SELECT t.tableoid AS rel, t.ctid AS tid, ROW(%s)::pg_catalog.text AS image FROM %s AS t) AS i
	WHERE image IN (SELECT image FROM want)
)`, strings.Join(have, ", "), t.target.sql()))
	fmt.Fprintf(b, "%s want AS w JOIN have AS h ON h.image = w.image AND h.nth = w.nth WHERE t.ctid = h.tid AND t.tableoid = h.rel", do)
}

// truncation empties tables in one statement. CASCADE is not repeated: what it reached at the source
// is in the same message. Identities start again only where they did.
//
// Where a table of the message is left out, PostgreSQL may refuse to truncate one that it refers to.
// The rows are deleted then; identities, which move on at promotion, stay.
func (s *shape) truncation(b *builder) {
	names := make([]string, len(s.truncate.tables))
	for i, t := range s.truncate.tables {
		names[i] = t.target.sql()
	}
	if s.truncate.half {
		last := len(names) - 1
		for i, name := range names[:last] {
			b.with = append(b.with, fmt.Sprintf("t%d AS (DELETE FROM %s)", i, name))
		}
		fmt.Fprintf(b, "DELETE FROM %s", names[last])
		return
	}
	again := ""
	if s.truncate.restart {
		again = " RESTART IDENTITY"
	}
	fmt.Fprintf(b, "TRUNCATE TABLE %s%s", strings.Join(names, ", "), again)
}

// value returns what a row of the statement has for a parameter.
func (a arg) value(r *imagePair) change.Value {
	if a.key {
		return r.key[a.index]
	}
	return r.row[a.index]
}
