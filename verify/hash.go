package verify

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/ficus-migrate/ficus/schema"
)

// A Method is how the rows of a table are hashed. All give 64 bits, and all tell apart what has
// different text.
type Method string

// The methods, the fastest first.
const (
	// MethodRecord is PostgreSQL's own extended hash functions (PostgreSQL 14), the hash of each
	// column being the seed of the next one's. What cannot be chained goes, as a record, through
	// hash_record_extended, whose result is the first seed; see row. Three traps are avoided:
	//
	// PostgreSQL's hash functions promise equal hashes for equal values, not different ones for
	// different text. Numeric's leaves out sign and scale, bigint's and timestamp's fold 64 bits to
	// 32 (so that -1 and 4294967295 agree), bpchar's skips trailing blanks, float's takes -0 for 0,
	// jsonb's takes 1.0 for 1.00. Such columns go in as another type, or together with what their
	// hash leaves out; see link and exactParts.
	//
	// A record's hash is a linear sum over its columns, so the sum over rows would not notice two
	// rows that swapped a value. Hence at least one column follows it in the chain, or it is seeded
	// with the row's key, or with its own hash where there is no key.
	//
	// The functions are strict: one NULL would make the chain NULL, and sum skips that. A bit for
	// each NULL goes into the first seed, and another value stands in.
	MethodRecord Method = "record"
	// MethodText is hashtextextended over the row's text, for servers without MethodRecord or with
	// different encodings.
	MethodText Method = "text"
	// MethodSHA256 is the first half of SHA-256 over the row's text, for servers whose hash
	// functions disagree, as those of processors with different byte order do.
	MethodSHA256 Method = "sha256"
)

// maxParts is how many columns a row expression may have, less some.
// Source: PostgreSQL manual, Appendix K "PostgreSQL Limits" (1664).
const maxParts = 1600

// maxLinks is how many columns are chained: each has a bit of the seed for NULL.
const maxLinks = 62

// A field is one target column as one side has it: an expression over the row r, in the target's type.
type field struct {
	expr    string
	oid     uint32
	mod     int32
	notNull bool // on the source; the target may hold anything
}

// A hasher writes the SQL of hashes.
type hasher struct {
	method  Method
	seed    int64
	convert bool // the servers' encodings differ: hash UTF-8
}

// row returns the SQL of a row's hash, never NULL.
func (h hasher) row(columns, key []field) string {
	if h.method != MethodRecord {
		return h.text(columns)
	}
	var links, rest []field
	for _, f := range columns {
		if value, _ := link(f); value != "" && len(links) < maxLinks {
			links = append(links, f)
		} else {
			rest = append(rest, f)
		}
	}
	whole := recordHash(columns, h.rowSeed(columns, key))
	if len(links) == 0 {
		return whole
	}
	hash, strict := h.literal(), false
	if len(rest) > 0 {
		hash = recordHash(rest, hash)
	}
	for i, f := range links {
		if f.notNull {
			strict = true
		} else {
			hash += fmt.Sprintf(" # CASE WHEN %s IS NULL THEN '%d'::int8 ELSE '0'::int8 END", f.expr, int64(1)<<i)
		}
	}
	for _, f := range links {
		value, function := link(f)
		if f.oid == pgtype.Int8OID { // its hash folds: all of it goes into the seed as well
			hash = "(" + hash + ") # " + value
		}
		hash = function + "(" + value + ", " + hash + ")"
	}
	if strict { // NULL all the same
		hash = "coalesce(" + hash + ", " + whole + ")"
	}
	return hash
}

// link returns the value by which a column goes into the chain, never NULL unless the column is said
// to be NOT NULL, and the hash function for it; "" for types that cannot be chained.
func link(f field) (value, function string) {
	or := func(expr, null string) string {
		if f.notNull {
			return expr
		}
		return "coalesce(" + expr + ", " + null + ")"
	}
	switch e := f.expr; f.oid {
	case pgtype.BoolOID:
		return or(e+"::int4", "0"), "hashint4extended"
	case pgtype.QCharOID:
		return or(e, `''::"char"`), "hashcharextended"
	case pgtype.Int2OID:
		return or(e, "0::int2"), "hashint2extended"
	case pgtype.Int4OID:
		return or(e, "0"), "hashint4extended"
	case pgtype.Int8OID:
		return or(e, "0::int8"), "hashint8extended"
	case pgtype.OIDOID:
		return or(e, "0::oid"), "hashoidextended"
	case pgtype.UUIDOID:
		return or(e, "'00000000-0000-0000-0000-000000000000'::uuid"), "uuid_hash_extended"
	case pgtype.TextOID, pgtype.VarcharOID, pgtype.NameOID, pgtype.JSONOID:
		return or(e+"::text", "''") + ` COLLATE "C"`, "hashtextextended"
	case pgtype.BPCharOID:
		if f.mod > 0 { // padded to one length on both sides: trailing blanks say nothing
			return or(e, "''::bpchar") + ` COLLATE "C"`, "hashbpcharextended"
		}
	}
	return "", ""
}

// key returns the SQL of a key's hash, by which rows are put into buckets; never NULL.
func (h hasher) key(key []field) string {
	if h.method != MethodRecord {
		return h.text(key)
	}
	return recordHash(key, h.literal())
}

// column returns the SQL of one column's hash, never NULL.
func (h hasher) column(f field) string { return h.key([]field{f}) }

// rowSeed returns the SQL of the seed that ties the columns of a row to one another.
func (h hasher) rowSeed(columns, key []field) string {
	switch {
	case len(key) == 1 && isInteger(key[0].oid):
		// NULL does not happen in a key, but a target may hold anything.
		return fmt.Sprintf("coalesce(%s::int8 # %s, %[2]s)", key[0].expr, h.literal())
	case len(key) > 0:
		return recordHash(key, h.literal())
	}
	return recordHash(columns, h.literal())
}

func (h hasher) literal() string { return "'" + strconv.FormatInt(h.seed, 10) + "'::int8" }

// text returns the SQL of a hash over the row's text, which shows NULL and quotes what is ambiguous.
// Source: PostgreSQL manual, 8.16.6 "Composite Type Input and Output Syntax".
func (h hasher) text(columns []field) string {
	exprs := make([]string, len(columns))
	for i, f := range columns {
		exprs[i] = f.expr
	}
	text := "ROW(" + strings.Join(exprs, ", ") + ")::text"
	switch {
	case h.method == MethodSHA256:
		return "('x' || encode(substring(sha256(convert_to('" + strconv.FormatInt(h.seed, 10) + "' || " + text +
			", 'UTF8')) FROM 1 FOR 8), 'hex'))::bit(64)::int8"
	case h.convert:
		return "hash_array_extended(ARRAY[convert_to(" + text + ", 'UTF8')], " + h.literal() + ")"
	}
	return "hashtextextended(" + text + ` COLLATE "C", ` + h.literal() + ")"
}

func recordHash(columns []field, seed string) string {
	return "hash_record_extended(ROW(" + strings.Join(parts(columns), ", ") + "), " + seed + ")"
}

// parts returns what goes into a record hash: for each column expressions of types whose hash sees
// every bit, and at the end the text of all columns of other types together.
func parts(columns []field) []string {
	var exact, others []string
	for _, f := range columns {
		if p := exactParts(f); p != nil {
			exact = append(exact, p...)
		} else {
			others = append(others, f.expr)
		}
	}
	if len(others) > 0 {
		exact = append(exact, "ROW("+strings.Join(others, ", ")+`)::text COLLATE "C"`)
	}
	return exact
}

// exactParts returns the expressions that stand for a column of a built-in type, or nil when only
// its text will do: floats in arrays, geometry, ranges, object identifiers with names, and every
// type that is not built in.
func exactParts(f field) []string {
	e := f.expr
	switch f.oid {
	case pgtype.BoolOID, pgtype.QCharOID, pgtype.Int2OID, pgtype.Int4OID, pgtype.OIDOID, pgtype.DateOID,
		pgtype.ByteaOID, pgtype.UUIDOID, pgtype.MacaddrOID, pgtype.Macaddr8OID:
		return []string{e}
	case pgtype.Int8OID: // hashed as the low half XOR the high half
		return []string{e, "(" + e + " >> 32)::int4"}
	case pgtype.TextOID, pgtype.VarcharOID, pgtype.NameOID, pgtype.JSONOID:
		return []string{e + `::text COLLATE "C"`}
	case pgtype.BPCharOID:
		if f.mod > 0 { // padded to one length on both sides: trailing blanks say nothing
			return []string{e + ` COLLATE "C"`}
		}
		return []string{"bpcharsend(" + e + ")"}
	case pgtype.Float4OID: // as text: NaN has many bit patterns
		return []string{"textin(float4out(" + e + `)) COLLATE "C"`}
	case pgtype.Float8OID:
		return []string{"textin(float8out(" + e + `)) COLLATE "C"`}
	}
	if send := sendFunction(f.oid); send != "" {
		return []string{send + "(" + e + ")"}
	}
	return nil
}

// sendFunction returns the function that gives the binary form of types which have only one for
// each text, or "".
func sendFunction(oid uint32) string {
	switch oid {
	case pgtype.NumericOID:
		return "numeric_send"
	case pgtype.TimestampOID:
		return "timestamp_send"
	case pgtype.TimestamptzOID:
		return "timestamptz_send"
	case pgtype.TimeOID:
		return "time_send"
	case pgtype.TimetzOID:
		return "timetz_send"
	case pgtype.IntervalOID:
		return "interval_send"
	case pgtype.JSONBOID:
		return "jsonb_send"
	case pgtype.InetOID:
		return "inet_send"
	case pgtype.CIDROID:
		return "cidr_send"
	case pgtype.BitOID:
		return "bit_send"
	case pgtype.VarbitOID:
		return "varbit_send"
	}
	return ""
}

func isInteger(oid uint32) bool {
	return oid == pgtype.Int2OID || oid == pgtype.Int4OID || oid == pgtype.Int8OID
}

// probe is a row of every type that a record hash takes as it is or through a send function.
func probe() []field {
	cast := func(literal, typ string, oid uint32) field {
		return field{expr: schema.QuoteLiteral(literal) + "::" + typ, oid: oid, mod: -1}
	}
	return []field{
		cast("t", "bool", pgtype.BoolOID), cast("c", `"char"`, pgtype.QCharOID), cast("-2", "int2", pgtype.Int2OID),
		cast("-4", "int4", pgtype.Int4OID), cast("-8589934592", "int8", pgtype.Int8OID), cast("26", "oid", pgtype.OIDOID),
		cast("2024-02-29", "date", pgtype.DateOID), cast(`\x00ff`, "bytea", pgtype.ByteaOID),
		cast("00112233-4455-6677-8899-aabbccddeeff", "uuid", pgtype.UUIDOID), cast("a longer text than twelve bytes", "text", pgtype.TextOID),
		cast("08:00:2b:01:02:03", "macaddr", pgtype.MacaddrOID), cast("08:00:2b:01:02:03:04:05", "macaddr8", pgtype.Macaddr8OID),
		{expr: "'bp'::bpchar(5)", oid: pgtype.BPCharOID, mod: 9},
		cast("bp ", "bpchar", pgtype.BPCharOID),
		cast("-0", "float8", pgtype.Float8OID), cast("0.1", "float4", pgtype.Float4OID), cast("-1.50", "numeric", pgtype.NumericOID),
		cast("infinity", "timestamp", pgtype.TimestampOID), cast("2024-02-29 01:02:03.4+05", "timestamptz", pgtype.TimestamptzOID),
		cast("24:00", "time", pgtype.TimeOID), cast("01:02+03", "timetz", pgtype.TimetzOID), cast("1 mon -1 day", "interval", pgtype.IntervalOID),
		cast(`{"b": 1.0, "a": null}`, "jsonb", pgtype.JSONBOID), cast(`{"b":1}`, "json", pgtype.JSONOID),
		cast("10.0.0.1/8", "inet", pgtype.InetOID), cast("10.0.0.0/8", "cidr", pgtype.CIDROID), cast("101", "bit(3)", pgtype.BitOID),
		cast("1011", "varbit", pgtype.VarbitOID), cast("{NULL,NaN}", "float8[]", pgtype.Float8ArrayOID), cast("[1,3)", "int4range", pgtype.Int4rangeOID),
	}
}

// chooseHash returns the first method by which both servers hash the same row to the same number.
func (s *Session) chooseHash(ctx context.Context, methods []Method) (hasher, error) {
	src, dst := s.nodes[source], s.nodes[target]
	for _, m := range methods {
		h := hasher{method: m, seed: s.seed, convert: src.encoding != dst.encoding}
		if m == MethodRecord && (h.convert || min(src.major(), dst.major()) < 14) {
			continue
		}
		row := probe()
		sql := "SELECT " + h.row(row, row[:2]) + ", " + h.row(row, nil) + ", " + h.key(row[4:5]) + ", " + h.row(row, row[4:5])
		var got [2][4]int64
		err := both(func(sd side) error {
			g := &got[sd]
			if err := s.nodes[sd].control.QueryRow(ctx, sql).Scan(&g[0], &g[1], &g[2], &g[3]); err != nil {
				return s.nodes[sd].fail("probe hash functions", err)
			}
			return nil
		})
		if err != nil {
			return hasher{}, err
		}
		if got[source] == got[target] {
			return h, nil
		}
	}
	return hasher{}, fmt.Errorf("source and target hash the same values differently (server versions %d and %d)", src.version, dst.version)
}
