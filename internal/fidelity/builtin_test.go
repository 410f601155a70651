package fidelity

import "slices"

// kinds returns every kind, in the order of the manual's chapter on data types.
func kinds() []kind {
	return slices.Concat(numbers(), texts(), times(), networks(), documents(), geometry(), identifiers(), ranges(), arrays(), userTypes(), extensions())
}

func numbers() []kind {
	return []kind{
		{name: "bool", key: true, values: []string{"t", "f"}},
		{name: "int2", key: true, values: []string{"0", "-32768", "32767"}},
		{name: "int4", key: true, values: []string{"0", "-2147483648", "2147483647"}},
		{name: "int8", key: true, values: []string{"0", "-1", "4294967295", "-9223372036854775808", "9223372036854775807"}},
		{
			name: "numeric", key: true,
			values: []string{"0", "0.00", "1.0", "1.00", "-1.00", "NaN", "1e-16383", "-1e131071", "0.1234567890123456789", "= repeat('9876543', 1500)::numeric / 1000"},
			later:  map[int][]string{14: {"Infinity", "-Infinity"}},
		},
		{name: "numeric_10_2", sql: "numeric(10,2)", key: true, values: []string{"0.00", "-99999999.99", "NaN"}},
		{name: "numeric_3_minus_2", sql: "numeric(3,-2)", since: 15, key: true, values: []string{"0", "-99900", "NaN"}},
		{name: "float4", key: true, values: []string{"0", "-0", "NaN", "Infinity", "-Infinity", "1e-45", "3.4028235e38", "0.1"}},
		{name: "float8", key: true, values: []string{"0", "-0", "NaN", "Infinity", "-Infinity", "5e-324", "1.7976931348623157e308", "0.1", "= 0.1::float8 + 0.2"}},
		{name: "money", key: true, values: []string{"0", "-92233720368547758.08", "92233720368547758.07", "-0.01"}},
	}
}

func texts() []kind {
	odd := []string{"", " ", "NULL", `\N`, `\.`, "tab\tnewline\nreturn\r", `\`, `"`, "'", "{}", "\x01\x7f", "e\u0301 é žluťoučký 漢字 🎉 \u200f\ufeff"}
	return []kind{
		{name: "text", key: true, values: append(odd, "= "+large)},
		{name: "varchar", key: true, values: append(odd, "= "+large)},
		{name: "varchar_5", sql: "varchar(5)", key: true, values: []string{"", "  ", "žlutý", "ab   "}},
		{name: "char_5", sql: "char(5)", key: true, values: []string{"", "ab", "ab   ", "žlutý"}},
		{name: "bpchar", key: true, values: []string{"", "ab", "ab  ", "= " + large}},
		{name: "text_c", sql: `text COLLATE "C"`, key: true, values: []string{"a", "B"}},
		{name: "name", key: true, values: []string{"", "a b", "= repeat('x', 63)"}},
		{name: "single_char", sql: `"char"`, key: true, values: []string{"", "a", " ", `\`}},
		{name: "bytea", key: true, values: []string{"", `\x00`, `\x005c2c0aff`, "= decode(" + large + ", 'hex')"}},
		{name: "bit_3", sql: "bit(3)", key: true, values: []string{"000", "101"}},
		{name: "varbit", sql: "bit varying", key: true, values: []string{"", "1", "0000000001", "= repeat('10', 20000)::varbit"}},
		{name: "varbit_5", sql: "bit varying(5)", key: true, values: []string{"", "10101"}},
	}
}

func times() []kind {
	stamps := []string{"infinity", "-infinity", "4714-11-24 00:00:00 BC", "0044-03-15 12:00:00.000001 BC", "294276-12-31 23:59:59.999999", "1999-12-31 23:59:60"}
	return []kind{
		{name: "date", key: true, values: []string{"infinity", "-infinity", "4714-11-24 BC", "5874897-12-31", "2024-02-29"}},
		{name: "time", key: true, values: []string{"00:00", "24:00", "23:59:59.999999"}},
		{name: "time_0", sql: "time(0)", key: true, values: []string{"00:00", "24:00"}},
		{name: "timetz", key: true, values: []string{"24:00+15:59", "00:00-15:59", "12:00:00.5+05:30:15"}},
		{name: "timestamp", key: true, values: stamps},
		{name: "timestamptz", key: true, values: append(stamps, "2024-03-31 02:30 Europe/Prague", "1883-11-18 12:03:58 America/New_York")},
		{name: "timestamp_3", sql: "timestamp(3)", key: true, values: []string{"infinity", "2024-01-01 00:00:00.123456"}},
		{
			name: "interval", key: true,
			values: []string{"0", "1 mon", "30 days", "-1 mon +1 day -00:00:00.000001", "178000000 years", "-178000000 years", "2147483647 days"},
			later:  map[int][]string{15: {"2562047788:00:54.775807"}, 17: {"infinity", "-infinity"}},
		},
		{name: "interval_2", sql: "interval(2)", key: true, values: []string{"1.239", "-1 day"}},
		{name: "interval_ym", sql: "interval year to month", key: true, values: []string{"3-2", "-1 mon"}},
	}
}

func networks() []kind {
	return []kind{
		{name: "inet", key: true, values: []string{"10.0.0.1", "10.0.0.1/8", "::1", "fe80::1/10", "::ffff:1.2.3.4"}},
		{name: "cidr", key: true, values: []string{"10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32"}},
		{name: "macaddr", key: true, values: []string{"08:00:2b:01:02:03", "00:00:00:00:00:00"}},
		{name: "macaddr8", key: true, values: []string{"08:00:2b:01:02:03:04:05", "ff:ff:ff:ff:ff:ff:ff:ff"}},
		{name: "uuid", key: true, values: []string{"00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}},
	}
}

func documents() []kind {
	objects := []string{
		"null", "{}", "[]", `""`, "1.0", "1.00", "-0", "-0.0", "1E400", `{"b": 1, "a": [null, true, {"": "\ud83c\udf89"}]}`, "= to_jsonb(" + large + ")",
	}
	return []kind{
		{name: "json", values: append(objects, ` { "a" : 1 , "a" : 2 } `, `"\u0000"`)},
		{name: "jsonb", key: true, values: objects},
		{name: "jsonpath", values: []string{"$", "strict $.a[*] ? (@ > 1 && exists (@.b))", `lax $."a b" like_regex "^x" flag "i"`}},
		{
			name: "xml",
			values: []string{
				"", "no element", "<a/>", "<a/><b/>", "<a>ž 漢 &amp; <![CDATA[ ]]></a>", `<?xml version="1.1"?><a/>`, `<?xml version="1.0" standalone="yes"?><a/>`,
				`<?xml version="1.0" encoding="UTF-8"?>` + "\n<a/>", `<!DOCTYPE a [<!ELEMENT a ANY>]><a/>`, "= ('<a>' || " + large + " || '</a>')::xml",
			},
		},
		{name: "tsvector", key: true, values: []string{"", "a:1A,2B,16383 b", `'it''s' ' ':5 '\\'`, "= array_to_tsvector(ARRAY(SELECT md5(i::text) FROM generate_series(1, 200) i))"}},
		{name: "tsquery", key: true, values: []string{"", "a & !b <2> c:*AB | (d <-> e)", `'it''s'`}},
	}
}

func geometry() []kind {
	return []kind{
		{name: "point", values: []string{"(0,-0)", "(NaN,Infinity)", "(0.1,1e300)"}},
		{name: "line", values: []string{"{1,-1,0}", "{0,1,-2.5}"}},
		{name: "lseg", values: []string{"[(0,0),(1,-0)]"}},
		{name: "box", values: []string{"(1,1),(0,0)", "(Infinity,1),(-Infinity,0)"}},
		{name: "path", values: []string{"[(0,0),(1,1)]", "((0,0),(1,1),(2,0))", "= ('[' || (SELECT string_agg('(' || sin(i) || ',' || cos(i) || ')', ',') FROM generate_series(1, 300) i) || ']')::path"}},
		{name: "polygon", values: []string{"((0,0),(1,1),(2,0))", "((-0,0))"}},
		{name: "circle", values: []string{"<(0,0),1>", "<(1,2),0>", "<(0,0),Infinity>"}},
	}
}

func identifiers() []kind {
	return []kind{
		{name: "oid", key: true, values: []string{"0", "4294967295"}},
		{name: "regclass", key: true, values: []string{"-", "pg_class", "= 4000000000::oid", "public.v_bool"}},
		{name: "regproc", key: true, values: []string{"-", "now"}},
		{name: "regprocedure", key: true, values: []string{"-", "lower(text)", "public.fid(int,text)"}, setup: "CREATE FUNCTION public.fid(int, text) RETURNS int LANGUAGE sql AS 'SELECT 1'"},
		{name: "regoper", key: true, values: []string{"0", "||/"}},
		{name: "regoperator", key: true, values: []string{"0", "+(int4,int4)", "!!(NONE,tsquery)"}},
		{name: "regtype", key: true, values: []string{"-", "int4[]", "timestamp with time zone", `"char"`, `public."Mo od"`}, setup: `CREATE TYPE public."Mo od" AS ENUM ('x')`},
		{name: "regrole", key: true, values: []string{"-", "pg_read_all_stats"}},
		{name: "regnamespace", key: true, values: []string{"-", "public"}},
		{name: "regconfig", key: true, values: []string{"-", "simple", "english"}},
		{name: "regdictionary", key: true, values: []string{"-", "simple"}},
		{name: "regcollation", key: true, values: []string{"-", `"C"`}},
		{name: "pg_lsn", key: true, values: []string{"0/0", "FFFFFFFF/FFFFFFFF"}},
		{name: "tid", key: true, values: []string{"(0,0)", "(4294967295,65535)"}},
		{name: "xid", values: []string{"0", "4294967295"}},
		{name: "xid8", values: []string{"0", "18446744073709551615"}},
		{name: "cid", values: []string{"0", "4294967295"}},
		{name: "pg_snapshot", values: []string{"10:20:", "10:20:10,14,15"}},
		{name: "txid_snapshot", values: []string{"10:20:", "10:20:10,14,15"}},
		{name: "aclitem", values: []string{"=r/postgres", "= ('postgres=arwd*/postgres')::aclitem"}},
		{name: "refcursor", values: []string{"", "c1"}},
		{name: "int2vector", values: []string{"", "1 -2 3"}},
		{name: "oidvector", key: true, values: []string{"", "1 2 3"}},
	}
}

func ranges() []kind {
	return []kind{
		{name: "int4range", key: true, values: []string{"empty", "(,)", "[1,5)", "[,5)"}},
		{name: "int8range", key: true, values: []string{"empty", "[-9223372036854775808,9223372036854775807)"}},
		{name: "numrange", key: true, values: []string{"empty", "[1.0,2.00]", "(1.0,)", "[NaN,NaN]"}},
		{name: "tsrange", key: true, values: []string{"[-infinity,infinity]", "(2024-01-01,)"}},
		{name: "tstzrange", key: true, values: []string{"[-infinity,infinity)", "(2024-01-01 00:00+05,)"}},
		{name: "daterange", key: true, values: []string{"empty", "[2024-01-01,2024-02-01)", "[,infinity]"}},
		{name: "int4multirange", since: 14, key: true, values: []string{"{}", "{(,1),[3,5),[7,)}"}},
		{name: "nummultirange", since: 14, key: true, values: []string{"{}", "{[1.0,2.00],(3,4)}"}},
		{name: "tstzmultirange", since: 14, key: true, values: []string{"{}", "{[-infinity,2020-01-01),[2024-01-01,infinity]}"}},
		{
			name: "frange", setup: "CREATE TYPE public.frange AS RANGE (subtype = float8, subtype_diff = float8mi)",
			key: true, values: []string{"empty", "[-0,0]", "[1.5,NaN)"},
		},
		{name: "fmultirange", sql: "frange_multi", since: 14, setup: "CREATE TYPE public.frange2 AS RANGE (subtype = float8, multirange_type_name = public.frange_multi)", key: true, values: []string{"{}", "{[-1,-0],[1,NaN)}"}},
	}
}

func arrays() []kind {
	return []kind{
		{
			name: "int4_array", sql: "int4[]", key: true,
			values: []string{"{}", "{NULL}", "{1,NULL,3}", "{{1,2},{3,NULL}}", "[0:1]={1,2}", "[-5:-4][2:3]={{1,2},{3,4}}", "= ARRAY(SELECT hashint4(i) FROM generate_series(1, 1000) i)"},
		},
		{name: "int4_declared", sql: "int4[3][3]", values: []string{"{1}", "{{{1}}}"}},
		{name: "text_array", sql: "text[]", key: true, values: []string{"{}", `{"",NULL,"NULL","a,b","\"\\","{}"," "}`, "= ARRAY[" + large + ", NULL]"}},
		{name: "bool_array", sql: "bool[]", values: []string{"{t,f,NULL}"}},
		{name: "float8_array", sql: "float8[]", key: true, values: []string{"{-0,0,NaN,Infinity,5e-324}"}},
		{name: "float4_array", sql: "float4[]", values: []string{"{-0,0.1}"}},
		{name: "numeric_array", sql: "numeric(5,2)[]", values: []string{"{1.00,NaN}", "{{-999.99}}"}},
		{name: "char_array", sql: "char(3)[]", values: []string{`{"a","ab "}`}},
		{name: "varchar_array", sql: "varchar(4)[]", values: []string{`{"ab  ",""}`}},
		{name: "single_char_array", sql: `"char"[]`, values: []string{`{a,"",NULL}`}},
		{name: "name_array", sql: "name[]", values: []string{`{a,""}`}},
		{name: "bytea_array", sql: "bytea[]", values: []string{`{"","\\x00ff"}`}},
		{name: "bit_array", sql: "bit(2)[]", values: []string{"{10,01}"}},
		{name: "money_array", sql: "money[]", values: []string{"{1.23,-0.01}"}},
		{name: "date_array", sql: "date[]", values: []string{`{infinity,"0044-03-15 BC"}`}},
		{name: "timestamptz_array", sql: "timestamptz[]", values: []string{`{infinity,"0044-03-15 BC",NULL}`}},
		{name: "interval_array", sql: "interval[]", values: []string{`{"1 mon -1 day"}`}},
		{name: "uuid_array", sql: "uuid[]", values: []string{"{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"}},
		{name: "inet_array", sql: "inet[]", values: []string{"{10.0.0.1/8,::1}"}},
		{name: "json_array", sql: "json[]", values: []string{`{" {\"a\" : 1}",NULL}`}},
		{name: "jsonb_array", sql: "jsonb[]", values: []string{`{"1.00","null",NULL}`}},
		{name: "xml_array", sql: "xml[]", values: []string{`{<a/>,""}`}},
		{name: "tsvector_array", sql: "tsvector[]", values: []string{`{"'a':1 'b'",""}`}},
		{name: "point_array", sql: "point[]", values: []string{`{"(0,-0)"}`}},
		{name: "box_array", sql: "box[]", values: []string{"{(1,1),(0,0);(2,2),(0,0)}"}},
		{name: "int4range_array", sql: "int4range[]", values: []string{`{empty,"[1,5)"}`}},
		{name: "int4multirange_array", sql: "int4multirange[]", since: 14, values: []string{`{"{[1,5)}","{}"}`}},
		{name: "regclass_array", sql: "regclass[]", values: []string{"{pg_class,public.v_bool}"}},
		{name: "aclitem_array", sql: "aclitem[]", values: []string{"{}", "{postgres=r/postgres}"}},
		{name: "pg_lsn_array", sql: "pg_lsn[]", values: []string{"{0/0}"}},
		{name: "int2vector_array", sql: "int2vector[]", values: []string{`{"1 2","3"}`}},
	}
}

func userTypes() []kind {
	return []kind{
		{name: "mood", setup: `CREATE TYPE public.mood AS ENUM ('sad', 'Ha ppy', '', 'ž''"\,')`, key: true, values: []string{"sad", "Ha ppy", "", `ž'"\,`}},
		{name: "mood_array", sql: "mood[]", key: true, values: []string{"{}", `{sad,NULL,"Ha ppy"}`}},
		{
			name: "pair", setup: `CREATE TYPE public.pair AS (a int, "B b" text)`, key: true,
			values: []string{"(,)", `(1,"")`, `(2,"a,""b\\ )(")`, "= ROW(3, " + large + ")"},
		},
		{name: "pair_array", sql: "pair[]", values: []string{`{"(1,x)",NULL,"(,)"}`}},
		{
			name: "nested", setup: `CREATE TYPE public.nested AS (p public.pair, q public.pair[], m public.mood, f float8, r public.frange)`,
			values: []string{"(,,,,)", "= ROW(ROW(1, 'x'), ARRAY[ROW(NULL, 'y')::pair, NULL], 'sad', '-0', '[1,2)')"},
		},
		{
			name: "shrunk", setup: "CREATE TYPE public.shrunk AS (a int, b text, c int); ALTER TYPE public.shrunk DROP ATTRIBUTE b; ALTER TYPE public.shrunk ADD ATTRIBUTE d text",
			values: []string{"(1,2,x)", "(,,)"},
		},
		{name: "row_type", sql: "v_int4", values: []string{`(1,-5,"big ""one""",)`}},
		{name: "d_int", setup: "CREATE DOMAIN public.d_int AS int NOT NULL CHECK (VALUE > 0)", key: true, strict: true, values: []string{"1", "2147483647"}},
		{name: "d_domain", setup: "CREATE DOMAIN public.d_domain AS public.d_int CHECK (VALUE < 100)", key: true, strict: true, values: []string{"1", "99"}},
		{name: "d_varchar", setup: "CREATE DOMAIN public.d_varchar AS varchar(5)", key: true, values: []string{"", "ab   "}},
		{name: "d_char", setup: "CREATE DOMAIN public.d_char AS char(4)", key: true, values: []string{"", "ab"}},
		{name: "d_array", setup: "CREATE DOMAIN public.d_array AS int[] CHECK (cardinality(VALUE) < 5)", key: true, values: []string{"{}", "[0:1]={1,NULL}"}},
		{name: "d_range", setup: "CREATE DOMAIN public.d_range AS int4range", key: true, base: "int4range", values: []string{"empty", "[1,5)"}},
		{name: "d_pair", setup: "CREATE DOMAIN public.d_pair AS public.pair", key: true, base: "pair", values: []string{"(,)", "(1,x)"}},
		{name: "d_mood", setup: "CREATE DOMAIN public.d_mood AS public.mood", key: true, base: "mood", values: []string{"sad", ""}},
		{name: "d_json", setup: "CREATE DOMAIN public.d_json AS json", values: []string{" {} "}},
		{name: "array_of_domain", sql: "d_varchar[]", values: []string{`{"ab   ",NULL}`}},
		{name: "sql_identifier", sql: "information_schema.sql_identifier", values: []string{"", "x y"}},
	}
}

func extensions() []kind {
	return []kind{
		{name: "hstore", setup: "CREATE EXTENSION hstore SCHEMA public", key: true, values: []string{"", `a=>1, "b c"=>NULL, ""=>"\""`, "= hstore('k', " + large + ")"}},
		{name: "hstore_array", sql: "hstore[]", values: []string{`{"\"a\"=>\"1\""}`}},
		{name: "citext", setup: "CREATE EXTENSION citext SCHEMA public", key: true, values: []string{"", "a", "A", "Ž", "ž", "= " + large}},
		{name: "citext_array", sql: "citext[]", key: true, values: []string{"{a,A}", "{A,a}"}},
		{name: "d_citext", setup: "CREATE DOMAIN public.d_citext AS public.citext", key: true, values: []string{"a", "A"}},
		{name: "ltree", setup: "CREATE EXTENSION ltree SCHEMA public", key: true, values: []string{"", "Top.Science.Astronomy"}},
		{name: "lquery", values: []string{"Top.*{1,2}.!a|b@"}},
		{name: "ltxtquery", values: []string{"a & !b@"}},
		{name: "cube", setup: "CREATE EXTENSION cube SCHEMA public", key: true, values: []string{"(1,2),(3,4)", "(-0)"}},
	}
}
