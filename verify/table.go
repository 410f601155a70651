package verify

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/ficus-migrate/ficus/schema"
	"github.com/ficus-migrate/ficus/schema/inspect"
	"github.com/ficus-migrate/ficus/transform"
)

// A table is one mapping, with the SQL to compare it by.
type table struct {
	m    *transform.Mapping
	name string // of the source table, as people read it
	hash hasher
	half [2]half // by side
	// within narrows the rows of both sides to a range of the key; "" is all of them.
	within [2]string
}

// A half is one side of a table. SQL expressions are over r, a row with the target's columns.
type half struct {
	columns []field // in the order of Mapping.Columns
	key     []keyField
	hash    string // of the row
	keyHash string // of the key, or of the row where there is no key
	keyText string // text[], the key; NULL where there is none
}

// A keyField is one column of the key.
type keyField struct {
	field
	column string // its name on this side
	typ    typeSQL
	cast   bool // expr has another type
}

// is returns the SQL condition that the key column has a value, given as the SQL of its text.
func (k *keyField) is(text string) string {
	value := text + "::" + k.typ.name
	if k.typ.input != "" {
		value = strings.ReplaceAll(k.typ.input, "$text", text)
	}
	// The cast is for domains: PostgreSQL does not take one over an enum for an enum.
	return fmt.Sprintf("%s::%s %s %s", schema.QuoteIdent(k.column), k.typ.base, k.typ.equal, value)
}

// query returns the SELECT of one side's rows, narrowed by conditions over that side's columns.
func (t *table) query(sd side, conditions ...string) string {
	if t.within[sd] != "" {
		conditions = append([]string{t.within[sd]}, conditions...)
	}
	if sd == source {
		return t.m.Query(conditions...)
	}
	q := "SELECT " + schema.QuoteIdents(t.m.TargetColumns()) + " FROM " + t.m.TargetFrom()
	if len(conditions) > 0 {
		q += " WHERE (" + strings.Join(conditions, ") AND (") + ")"
	}
	return q
}

// keyed reports whether rows are found by key.
func (t *table) keyed() bool { return len(t.m.Key) > 0 }

// describe learns the types that the mappings' columns have on both sides, which also shows that
// tables and columns are there, and writes the SQL.
func describe(ctx context.Context, nodes [2]*node, mappings []transform.Mapping, h hasher) ([]*table, error) {
	tables := make([]*table, len(mappings))
	for i := range mappings {
		tables[i] = &table{m: &mappings[i], name: mappings[i].Source.Name.Display()}
	}
	var types [2]types
	err := both(func(sd side) (err error) {
		types[sd], err = columnTypes(ctx, nodes[sd], tables)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, t := range tables {
		if err := t.write(h, types[source].of[i], types[target].of[i], [2]names{types[source].names, types[target].names}); err != nil {
			return nil, err
		}
	}
	return tables, nil
}

// A columnType is a type with its modifier.
type columnType struct {
	oid uint32
	mod int32
}

// builtIn reports whether the type means the same in every database.
func (c columnType) builtIn() bool { return schema.Type{OID: c.oid}.BuiltIn() }

// typeSQL is how one server's SQL speaks of a type.
type typeSQL struct {
	name  string // as declared, domains resolved
	base  string // without modifier
	equal string // OPERATOR(schema.=): there is no search_path to find it by
	input string // call of the type's input function on $text, where a cast from text would do something else; else ""
}

type names map[columnType]typeSQL

type types struct {
	of    [][]columnType // by table and column
	names names
}

// columnTypes asks the server for the columns of every table's query, all in one round trip.
func columnTypes(ctx context.Context, n *node, tables []*table) (types, error) {
	res := types{of: make([][]columnType, len(tables)), names: names{}}
	p := n.control.PgConn().StartPipeline(ctx)
	for _, t := range tables {
		p.SendPrepare("", t.query(n.side), nil)
	}
	p.SendPipelineSync()
	if err := p.Flush(); err != nil {
		_ = p.Close() // the flush says why
		return types{}, n.fail("read column types", err)
	}
	for i, t := range tables {
		got, err := p.GetResults()
		if err != nil {
			_ = p.Close() // the same error again
			return types{}, n.failTable(t, "read column types", err)
		}
		desc, ok := got.(*pgconn.StatementDescription)
		if !ok || len(desc.Fields) != len(t.m.Columns) {
			_ = p.Close()
			return types{}, n.failTable(t, "read column types", fmt.Errorf("got %T with the wrong number of columns", got))
		}
		for _, f := range desc.Fields {
			typ := columnType{f.DataTypeOID, f.TypeModifier}
			res.of[i] = append(res.of[i], typ)
			res.names[typ] = typeSQL{}
		}
	}
	if err := p.Close(); err != nil {
		return types{}, n.fail("read column types", err)
	}
	return res, res.names.fill(ctx, n)
}

// namesSQL describes types given by two arrays, OIDs and modifiers.
func namesSQL() string {
	return `
SELECT w.o, w.m, format_type(w.o, w.m), format_type(w.o, -1), ` + inspect.Equality("w.o") + `, coalesce(i.call, '')
FROM unnest($1::oid[], $2::int4[]) AS w(o, m)
LEFT JOIN LATERAL (
	SELECT format(CASE p.pronargs WHEN 1 THEN '%I.%I($text::cstring)' ELSE '%I.%I($text::cstring, %s::oid, -1)' END,
		n.nspname, p.proname, CASE WHEN t.typelem <> 0 THEN t.typelem ELSE t.oid END) AS call
	FROM pg_cast c JOIN pg_type t ON t.oid = c.casttarget JOIN pg_proc p ON p.oid = t.typinput JOIN pg_namespace n ON n.oid = p.pronamespace
	WHERE c.castsource = 'text'::regtype AND c.casttarget = w.o AND c.castmethod = 'f'
) i ON true`
}

// fill looks the names up.
func (names names) fill(ctx context.Context, n *node) error {
	oids, mods := make([]uint32, 0, len(names)), make([]int32, 0, len(names))
	for t := range names {
		oids, mods = append(oids, t.oid), append(mods, t.mod)
	}
	rows, err := n.control.Query(ctx, namesSQL(), oids, mods)
	if err != nil {
		return n.fail("read type names", err)
	}
	var t columnType
	var sql typeSQL
	_, err = pgx.ForEachRow(rows, []any{&t.oid, &t.mod, &sql.name, &sql.base, &sql.equal, &sql.input}, func() error {
		names[t] = sql
		return nil
	})
	if err != nil {
		return n.fail("read type names", err)
	}
	return nil
}

// write writes the SQL of both halves.
func (t *table) write(h hasher, src, dst []columnType, names [2]names) error {
	position := map[string]int{}
	casts := make([]bool, len(dst))
	for i, c := range t.m.Columns {
		position[c.Target] = i
		expr := "r." + schema.QuoteIdent(c.Target)
		original := t.m.Source.Column(c.Source)
		notNull := original != nil && original.NotNull
		t.half[target].columns = append(t.half[target].columns, field{expr, dst[i].oid, dst[i].mod, notNull})
		// A value that changes its type on the way does so through its text, as in COPY and the
		// stream. Types that are not built in are compared by text in any case.
		if casts[i] = src[i] != dst[i] && dst[i].builtIn(); casts[i] {
			expr = "(" + expr + "::text::" + names[target][dst[i]].name + ")"
		}
		t.half[source].columns = append(t.half[source].columns, field{expr, dst[i].oid, dst[i].mod, notNull})
	}
	if h.method == MethodRecord && len(parts(t.half[target].columns)) > maxParts {
		h.method = MethodText
	}
	t.hash = h
	for _, k := range t.m.Key {
		i, ok := position[k.Target]
		if !ok {
			return fmt.Errorf("table %s: key column %q is not among the mapping's columns", t.name, k.Target)
		}
		t.half[source].key = append(t.half[source].key,
			keyField{t.half[source].columns[i], k.Source, names[source][src[i]], casts[i]})
		t.half[target].key = append(t.half[target].key,
			keyField{t.half[target].columns[i], k.Target, names[target][dst[i]], false})
	}
	for i := range t.half {
		t.half[i].write(h)
	}
	return nil
}

func (f *half) write(h hasher) {
	key := make([]field, len(f.key))
	texts := make([]string, len(f.key))
	for i, k := range f.key {
		key[i], texts[i] = k.field, k.expr+"::text"
	}
	f.hash = h.row(f.columns, key)
	f.keyHash, f.keyText = f.hash, "NULL::text[]"
	if len(key) > 0 {
		f.keyHash, f.keyText = h.key(key), "ARRAY["+strings.Join(texts, ", ")+"]"
	}
}
