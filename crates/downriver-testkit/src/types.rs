//! Values of PostgreSQL's types at their edges, for tables that tests make of them.

/// One type and its values, as literals are written between quotes.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// As in a column's definition.
    pub ty: &'static str,
    pub values: &'static [&'static str],
    /// Values that the log holds and that the lake refuses by name.
    pub beyond_lake: &'static [&'static str],
    /// Whether it can be a primary key.
    pub key: bool,
}

const fn keyed(ty: &'static str, values: &'static [&'static str]) -> Case {
    Case {
        ty,
        values,
        beyond_lake: &[],
        key: true,
    }
}

const fn plain(ty: &'static str, values: &'static [&'static str]) -> Case {
    Case {
        key: false,
        ..keyed(ty, values)
    }
}

impl Case {
    const fn beyond_lake(self, beyond_lake: &'static [&'static str]) -> Self {
        Self {
            beyond_lake,
            ..self
        }
    }

    /// PostgreSQL has no arrays of arrays.
    #[must_use]
    pub fn has_array(&self) -> bool {
        !self.ty.ends_with("[]")
    }
}

/// What the cases' types need. One extension stands in a schema that no search path has.
pub const PREPARE: &str = r#"
    create extension hstore; create extension ltree; create extension isn;
    create schema apart; create extension citext schema apart;
    grant usage on schema apart to public; create table apart.thing ();
    create type mood as enum ('sad', 'it''s "fine", {ok}', 'søvnig', 'a\b', ' NULL ');
    create type pair as (currency char(3), amount numeric);
    create type outer_pair as (inner_pair pair, at timestamptz, raw bytea);
    create domain amount as numeric(8,3);
    create domain small_amount as amount check (value < 1000);
    create domain feeling as mood;
    create domain price as money;
    create domain numbers as int[];
    create domain code as apart.citext;
    create type float_range as range (subtype = float8);
"#;

/// Every type that a table may have, with values at its edges.
pub const CASES: &[Case] = &[
    keyed(
        "numeric",
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "0.000",
            "1.10",
            "1e-20",
            "1e130",
            "100000000",
            "-10000.0001",
            "12345678901234567890.12345678901234567890",
            "0.00010000",
            "1e131071",
            "99999999",
            "10000000000000000",
            "0.00000001",
            "-1e-16383",
        ],
    ),
    keyed("numeric(12,2)", &["0", "-0.01", "9999999999.99", "0.10"]).beyond_lake(&["NaN"]),
    keyed(
        "numeric(38,10)",
        &["-9999999999999999999999999999.9999999999", "0.0000000001"],
    ),
    keyed(
        "numeric(39,0)",
        &["999999999999999999999999999999999999999", "NaN"],
    ),
    keyed("numeric(3,-2)", &["12345", "-99949", "0", "NaN"]),
    keyed("numeric(3,5)", &["0.00123", "-0.00999", "0"]),
    keyed(
        "float8",
        &[
            "-0",
            "NaN",
            "Infinity",
            "-Infinity",
            "5e-324",
            "-2.2250738585072014e-308",
            "0.1",
            "0.30000000000000004",
            "1.7976931348623157e308",
            "123456789012345678",
            "1e15",
            "1e22",
        ],
    ),
    keyed(
        "real",
        &[
            "0",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e-45",
            "0.1",
            "3.4028235e38",
            "16777217",
        ],
    ),
    keyed("smallint", &["-32768", "32767", "0"]),
    keyed("int", &["-2147483648", "2147483647", "-1"]),
    keyed(
        "bigint",
        &["-9223372036854775808", "9223372036854775807", "0"],
    ),
    keyed("boolean", &["true", "false"]),
    keyed(
        "money",
        &[
            "-$92,233,720,368,547,758.08",
            "92233720368547758.07",
            "(1234.11)",
            "0",
            "-0.05",
        ],
    ),
    keyed(
        "date",
        &[
            "4713-01-01 BC",
            "0001-02-28 BC",
            "0001-01-01",
            "1500-03-01",
            "1582-10-10",
            "2000-02-29",
            "5874897-12-31",
        ],
    )
    .beyond_lake(&["infinity", "-infinity"]),
    keyed(
        "timestamp",
        &[
            "4713-12-31 23:59:59.999999 BC",
            "4713-01-01 00:00:00 BC",
            "1500-03-01 12:00:00.5",
            "1969-12-31 23:59:59.999999",
            "294246-12-31 23:59:59.999999",
        ],
    )
    .beyond_lake(&["infinity", "-infinity"]),
    keyed(
        "timestamp(0)",
        &["2026-01-01 00:00:00.5", "2026-01-01 00:00:01.5"],
    ),
    keyed(
        "timestamptz",
        &[
            "4713-01-02 00:00:00+00 BC",
            "1883-11-18 12:00:00-04:56:02",
            "1850-01-01 00:00:00+05:41:16",
            "2026-03-29 02:30:00+01",
            "294246-12-31 23:59:59.999999+00",
        ],
    )
    .beyond_lake(&["infinity", "-infinity"]),
    keyed(
        "time",
        &[
            "00:00:00",
            "23:59:59.999999",
            "01:02:03.4",
            "00:00:00.000001",
        ],
    )
    .beyond_lake(&["24:00:00"]),
    keyed("time(3)", &["12:34:56.7891", "00:00:00.0004"]),
    keyed(
        "timetz",
        &["24:00:00+02", "00:00:00-15:59:59", "12:34:56.789+00"],
    ),
    keyed(
        "interval",
        &[
            "1 mon -1 day +00:00:01",
            "-178000000 years",
            "0",
            "1 year 2 mons -3 days -04:05:06.789",
            "2562047788:00:54.775807",
            "-2562047788:00:54.775807",
            "-00:00:00.000001",
            "-1 year -1 mon",
            "1000 hours",
            "-5 mons 3 days 9223372036854775807 microseconds",
        ],
    ),
    keyed(
        "bytea",
        &["", "\\x00", "\\x00ff5c", "\\xe9", "\\x5c78", "\\xc3a9"],
    ),
    keyed("bit(5)", &["10101", "00000"]),
    keyed("bit(1)", &["1", "0"]),
    keyed(
        "bit(64)",
        &["1000000000000000000000000000000000000000000000000000000000000001"],
    ),
    keyed("varbit", &["", "0", "1", "0001", "10000000000000000"]),
    keyed("varbit(1)", &["", "1"]),
    keyed("char(5)", &["ab", "", "abcde", "é", "\\N"]),
    keyed("varchar(20)", &["zoë", "\\N", "", "NULL", " x "]),
    keyed("\"char\"", &["a", "", "\\"]),
    keyed(
        "name",
        &[
            "",
            "sixty_three_bytes_of_a_name_are_all_that_fit_in_it_and_no_more_x",
            "ü",
        ],
    ),
    keyed(
        "text",
        &[
            "",
            "\\N",
            "tab\tnew\nline\r\\\\\"'",
            "NULL",
            "{a,b}",
            "🚣",
            "(,)",
            "\u{1}\u{7f}\u{feff}",
        ],
    ),
    plain(
        "json",
        &[
            "{\"a\":1,\"a\":2, \"b\": 1.0}",
            "null",
            "\"\"",
            "\"\\u0000\"",
            "1e400",
            " [ ] ",
        ],
    ),
    keyed(
        "jsonb",
        &[
            "12345678901234567890.123",
            "null",
            "\"\"",
            "{\"b\":1,\"a\":[1,null]}",
            "1e400",
            "\"\\\\u0000\"",
        ],
    ),
    plain(
        "hstore",
        &[
            "\"a\"=>NULL,\"b\"=>\"NULL\",\"\"=>\"x\"",
            "",
            "\"ü\"=>\"\\\"\"",
        ],
    ),
    plain("int[]", &["{1,NULL,3}", "{}", "{7}"]).beyond_lake(&[
        "[-1:0][2:3]={{1,2},{3,4}}",
        "{{1,2},{3,4}}",
        "{{{{{{1}}}}}}",
    ]),
    // Bounds are the log's; a list of the lake begins at its beginning.
    plain("bigint[]", &["[0:1]={7,8}", "[5:5]={9223372036854775807}"]),
    plain(
        "text[]",
        &[
            "{\"\"}",
            "{\"NULL\",null}",
            "{\"a,b\",\"c\\\\d\",\"e\\\"f\",\" g \",\"{}\"}",
            "{ü}",
        ],
    )
    .beyond_lake(&["{{a,b},{c,NULL}}"]),
    plain("numeric(10,3)[]", &["{1.5,NULL,-2.1255}"]).beyond_lake(&["{NaN}"]),
    plain("numeric[]", &["{1.10,NaN,-Infinity}"]),
    plain("numeric(3,-2)[]", &["{12345,NULL}"]),
    plain("timestamp(0)[]", &["{\"2026-01-01 00:00:00.5\",NULL}"]).beyond_lake(&["{infinity}"]),
    plain("time(3)[]", &["{12:34:56.7891}"]).beyond_lake(&["{24:00:00}"]),
    plain("char(5)[]", &["{ab,\"\"}"]),
    plain("bytea[]", &["{\"\\\\x00ff\",\"\\\\x\",NULL}"]),
    plain("money[]", &["{\"$1,234.11\",-0.05,NULL}"]),
    plain("interval[]", &["{\"1 day\",\"-00:00:01\",NULL}"]),
    plain("box[]", &["{(1,1),(0,0);(2.5,2),(1,1)}", "{}"]),
    plain(
        "point[]",
        &["{\"(1,2)\",NULL}", "{{\"(1,2)\"},{\"(3,4)\"}}"],
    ),
    plain("pair[]", &["{\"(USD,1)\",\"(\\\"\\\"\\\"q\\\",)\",NULL}"]),
    plain(
        "mood[]",
        &["{sad,\"it's \\\"fine\\\", {ok}\",NULL,\" NULL \",\"a\\\\b\"}"],
    ),
    keyed("int4range", &["empty", "(,)", "[1,5)", "(1,5]", "[1,)"]),
    keyed(
        "daterange",
        &[
            "[2019-01-01,infinity)",
            "[2019-01-01,)",
            "(-infinity,2019-01-01]",
        ],
    ),
    keyed("tstzrange", &["[2019-01-01 00:00:00+02,infinity]", "(,)"]),
    keyed("numrange", &["[1.10,NaN)", "(0,1]"]),
    keyed("float_range", &["[0.1,0.30000000000000004)"]),
    keyed("int4multirange", &["{}", "{[1,3),[5,)}"]),
    keyed("amount", &["1.5", "-99999.999"]),
    keyed("small_amount", &["1.5", "-99999.9994"]),
    keyed("feeling", &["sad", "søvnig"]),
    keyed("price", &["1234.5"]),
    plain("numbers", &["{1,NULL,3}", "{}"]),
    keyed("code", &["A", "b", "C", "d", "Ä", "ä2", "E", "f", "_"]),
    keyed(
        "mood",
        &["søvnig", "it's \"fine\", {ok}", "sad", "a\\b", " NULL "],
    ),
    keyed("oid", &["4000000000", "0", "4294967295"]),
    keyed("regclass", &["pg_class", "apart.thing", "0"]),
    keyed("xid8", &["18446744073709551615", "3"]),
    plain("xid", &["4294967295"]),
    keyed("pg_lsn", &["FFFFFFFF/FFFFFFFF", "0/0"]),
    plain("txid_snapshot", &["10:20:10,14,15"]),
    keyed("tid", &["(4294967295,65535)", "(0,1)"]),
    keyed(
        "apart.citext",
        &[
            "A", "b", "C", "d", "Ä", "ä2", "E", "f", "_", "Z", "[", "a[", "B1",
        ],
    ),
    keyed(
        "inet",
        &[
            "192.168.2.0/12",
            "::1",
            "10.1.2.3",
            "::ffff:1.2.3.4",
            "fe80::1/10",
        ],
    ),
    keyed("cidr", &["192.168.0.0/16", "::1/128", "10.1.2.3"]),
    keyed("macaddr", &["08:00:2B:01:02:03", "08-00-2b-01-02-04"]),
    keyed("macaddr8", &["08:00:2b:01:02:03:04:05"]),
    plain(
        "xml",
        &[
            "<?xml version=\"1.0\" encoding=\"latin1\"?><a>é</a>",
            "<a/><b/>",
            "text &amp; more",
        ],
    ),
    keyed("tsvector", &["'a':1A,2 'it''s':3", "a fat cat", ""]),
    keyed("tsquery", &["'fat':*A & ( 'rat' | 'cat' )", ""]),
    keyed("ltree", &["Top.Science.Astronomy", ""]),
    plain("lquery", &["Top.*{0,2}.sport*@|tennis"]),
    keyed("isbn", &["978-0-393-04002-9", "0-306-40615-2"]),
    plain("point", &["(1,2.5)", "(NaN,-Infinity)", "(1e-300,-0)"]),
    plain("box", &["(3,4),(1,2)"]),
    plain("polygon", &["((0,0),(1,1),(2,0))"]),
    plain("circle", &["<(0.1,0.2),0.30000000000000004>"]),
    keyed(
        "pair",
        &[
            "(USD,1)",
            "(\"\"\"q\",)",
            "(,)",
            "(EUR,1.10)",
            "(,1)",
            "(USD,NaN)",
        ],
    ),
    keyed(
        "outer_pair",
        &[
            "(\"(USD,1.0)\",\"2026-01-01 00:00:00+02\",\"\\\\x00ff\")",
            "(,,)",
        ],
    ),
    keyed(
        "uuid",
        &[
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "{00000000000000000000000000000000}",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ],
    ),
    plain("jsonpath", &["$.\"a\"[*]?(@ > 1)"]),
    plain("aclitem", &["postgres=arwdDxt/postgres"]),
];

/// The types of pgvector, which not every server has.
pub const VECTOR_CASES: &[Case] = &[
    keyed(
        "vector(3)",
        &["[1,2,3]", "[-0.1,1e-38,3.4e+38]", "[0,-0,16777217]"],
    ),
    keyed("vector", &["[1]", "[1,2,3,4,5]", "[0.30000001]"]),
    keyed(
        "halfvec(2)",
        &["[1,2]", "[-65504,5.9604645e-08]", "[0.1,-0]"],
    ),
    keyed("sparsevec(5)", &["{}/5", "{1:1,5:-2.5}/5", "{3:1e-38}/5"]),
];
