"""Reads tables from a database and from Iceberg and says whether they are equal, row by row.

    compare.py REQUEST.json          prints one JSON object

Every value is brought to one canonical text, whoever read it; a row is the tuple of its values in the
order of the database's columns (the `_dr_` columns of the lake are left out). A table's checksum is the
sum of its rows' 128-bit digests: the order does not matter, a row that is there twice does. Where the
checksums differ the rows themselves are compared and the first differences are printed.

Request: { postgres: {psql, url} or rows: FILE, tables: ["schema.table"], namespace: "...", catalog: {uri, warehouse,
credential?, s3?: {endpoint, access_key, secret_key}}, readers: ["duckdb", "pyiceberg"], examples: 5 }
The namespace is given for the schema of each table as "<namespace prefix>_<schema>". In place of PostgreSQL a file may
have each table's rows as canonical texts: { "schema.table": { columns: ["name"], floats: ["name"], rows: [[text]] } }.
"""

import collections
import hashlib
import importlib.util
import io
import json
import glob
import os
import subprocess
import sys
import uuid

import pyarrow as pa
import pyarrow.compute as pc

NULL = "\x00"
MASK = (1 << 128) - 1

# A domain is what it is made of. Generated columns are not in the stream.
COLUMNS_SQL = """
with recursive columns as (
    select attnum, attname, atttypid as ty from pg_attribute
    where attrelid = '{table}'::regclass and attnum > 0 and not attisdropped and attgenerated = ''
    union all select attnum, attname, typbasetype from columns join pg_type on oid = ty where typtype = 'd'
), elements as (
    select attnum, typelem as ty from columns join pg_type on oid = ty where typtype <> 'd' and typcategory = 'A'
    union all select attnum, typbasetype from elements join pg_type on oid = ty where typtype = 'd'
)
select attname, t.typname, t.typcategory, coalesce(e.typname, ''), coalesce(e.typtype, '')
from columns join pg_type t on t.oid = ty
left join (select attnum, typname, typtype from elements join pg_type on oid = ty where typtype <> 'd') e using (attnum)
where t.typtype <> 'd' order by attnum
"""

# Arrays of other types, but for enums, are text in the lake.
LIST_ELEMENTS = set(
    "bool int2 int4 int8 oid float4 float8 numeric money name text varchar bpchar bytea uuid json jsonb date time timestamp"
    " timestamptz interval".split()
)


# --- PostgreSQL ------------------------------------------------------------------------------------


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def canonical_sql(expression, typname):
    """The SQL that turns a value of a type into its canonical text."""
    # As numbers from 1970 on: dates reach further than Python's. Seconds and their parts each fit a double, which
    # is what `extract` gives before version 14.
    seconds = "extract(epoch from date_trunc('second', {0}))::numeric(30, 0)"
    micros = "(" + seconds + " * 1000000 + extract(microseconds from {0})::numeric(30, 0) % 1000000)::text"
    forms = {
        "bytea": "encode({0}, 'hex')",
        "timestamp": micros,
        "timestamptz": micros,
        "time": micros,
        "date": "({0} - date '1970-01-01')::text",
        "float4": "({0})::float8::text",
        "bool": "({0})::text",
        "interval": "({0})::text",
        "money": "({0})::numeric::text",
    }
    # As its output function prints it: a cast to text may differ, and `is null` holds for a composite of nulls.
    printed = "case when {0} is distinct from null then format('%s', {0}) end"
    return forms.get(typname, printed).format(expression)


class Postgres:
    def __init__(self, request):
        self.psql, self.url = request["psql"], request["url"]
        self.environment = dict(
            os.environ,
            PGOPTIONS="-c intervalstyle=iso_8601 -c extra_float_digits=1 -c timezone=UTC -c datestyle=ISO",
            PGCLIENTENCODING="UTF8",
        )

    def _psql(self, sql):
        command = [self.psql, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.url, "-c", sql]
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=self.environment)

    def _lines(self, sql):
        process = self._psql(sql)
        # Only a line feed ends a row: COPY escapes those of values, and leaves every other separator alone.
        for line in io.TextIOWrapper(process.stdout, encoding="utf-8", newline="\n"):
            yield line.rstrip("\n")
        if process.wait() != 0:
            raise SystemExit("psql failed: " + sql)

    def columns(self, table):
        rows = [line.split("|") for line in self._lines(COLUMNS_SQL.format(table=sql_table(table)))]
        is_list = lambda category, element, kind: category == "A" and (kind == "e" or element in LIST_ELEMENTS)
        return [
            (name, element, True) if is_list(category, element, kind) else (name, typname, False)
            for name, typname, category, element, kind in rows
        ]

    def rows(self, table, columns):
        """Tuples of canonical texts."""
        selected = []
        for name, typname, is_array in columns:
            if is_array:
                item = canonical_sql("e", typname)
                selected.append(
                    "case when {c} is not null then coalesce((select json_agg({item} order by o)::text"
                    " from unnest({c}) with ordinality u(e, o)), '[]') end".format(c=quoted(name), item=item)
                )
            else:
                selected.append(canonical_sql(quoted(name), typname))
        fixes = [fix_for(typname, is_array) for _, typname, is_array in columns]
        sql = "copy (select {} from {}) to stdout".format(", ".join(selected), sql_table(table))
        for line in self._lines(sql):
            yield tuple(
                NULL if field == "\\N" else (fix(unescaped(field)) if fix else unescaped(field))
                for field, fix in zip(line.split("\t"), fixes)
            )


class Rows:
    """Rows that somebody else has read."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.tables = json.load(file)

    def columns(self, table):
        floats = self.tables[table]["floats"]
        return [(name, "float8" if name in floats else "", False) for name in self.tables[table]["columns"]]

    def rows(self, table, columns):
        fixes = [fix_for(typname, False) for _, typname, _ in columns]
        for row in self.tables[table]["rows"]:
            yield tuple(NULL if v is None else fix(v) if fix else v for v, fix in zip(row, fixes))


def sql_table(table):
    schema, name = table.split(".", 1)
    return quoted(schema) + "." + quoted(name)


ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}


def unescaped(field):
    """Undoes the escapes of COPY's text format."""
    if "\\" not in field:
        return field
    out, i = [], 0
    while i < len(field):
        if field[i] == "\\":
            i += 1
            out.append(ESCAPES.get(field[i], field[i]))
        else:
            out.append(field[i])
        i += 1
    return "".join(out)


def float_text(text):
    return repr(float(text))


def fix_for(typname, is_array):
    """What is left to do in Python for a PostgreSQL value, or None."""
    of_item = float_text if typname in ("float4", "float8") else None
    if is_array:
        return lambda text: list_text([None if i is None else (of_item(i) if of_item else i) for i in json.loads(text)])
    return of_item


def list_text(items):
    return json.dumps(items, ensure_ascii=False)


# --- Iceberg, by way of Arrow ----------------------------------------------------------------------


def canonical_column(column):
    """A list of canonical texts of an Arrow column."""
    return [NULL if text is None else text for text in canonical_items(column, column.type)]


def canonical_items(column, kind):
    if isinstance(kind, pa.BaseExtensionType):
        column = column.cast(kind.storage_type) if isinstance(column, pa.ChunkedArray) else column.storage
        return ["%s" % uuid.UUID(bytes=v) if v is not None else None for v in column.to_pylist()]
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width == 16:
        return [str(uuid.UUID(bytes=v)) if v is not None else None for v in column.to_pylist()]
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", kind.tz)).cast(pa.int64()).cast(pa.string()).to_pylist()
    if pa.types.is_time(kind):
        return column.cast(pa.time64("us")).cast(pa.int64()).cast(pa.string()).to_pylist()
    if pa.types.is_date(kind):
        return column.cast(pa.int32()).cast(pa.string()).to_pylist()
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.string()).to_pylist()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        items = iter(canonical_items(pc.list_flatten(column), kind.value_type))
        lengths = pc.list_value_length(column).to_pylist()
        return [None if n is None else list_text([next(items) for _ in range(n)]) for n in lengths]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.to_pylist()
    return [item_text(v) for v in column.to_pylist()]


def item_text(value):
    """Canonical text of one Python value: of the types without a fast way."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    return format(value, "f")


def rows_of_batches(batches, columns):
    for batch in batches:
        if batch.num_rows:
            yield from zip(*(canonical_column(batch.column(name)) for name in columns))


class MissingColumn(Exception):
    pass


def checked(available, columns, table):
    missing = [c for c in columns if c not in available]
    if missing:
        raise MissingColumn("{} has no column {} in the lake (has {})".format(table, missing, sorted(available)))


class DuckDb:
    def __init__(self, catalog):
        import duckdb

        self.connection = duckdb.connect(
            config={"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        )
        # What a slow query shows of its progress goes to the output.
        self.connection.execute("set enable_progress_bar = false")
        for name in ("httpfs", "avro", "iceberg"):
            package = importlib.util.find_spec("duckdb_extension_" + name).submodule_search_locations[0]
            path = glob.glob(os.path.join(package, "extensions", "*", name + ".duckdb_extension"))[0]
            self.connection.execute("load '{}'".format(path))
        s3, options = catalog.get("s3"), ["type iceberg", "endpoint '{}'".format(catalog["uri"]), "access_delegation_mode 'none'"]
        if s3:
            self.connection.execute(
                "create secret s3 (type s3, key_id '{}', secret '{}', region 'us-east-1', endpoint '{}', url_style 'path',"
                " use_ssl false)".format(s3["access_key"], s3["secret_key"], s3["endpoint"].split("://")[1])
            )
        if catalog.get("credential"):
            client, secret = catalog["credential"].split(":", 1)
            self.connection.execute(
                "create secret catalog (type iceberg, client_id '{}', client_secret '{}', oauth2_server_uri '{}/v1/oauth/tokens')".format(
                    client, secret, catalog["uri"]
                )
            )
            options.append("secret catalog")
        else:
            options.append("authorization_type 'none'")
        self.connection.execute("attach '{}' as lake ({})".format(catalog["warehouse"], ", ".join(options)))
        self.connection.execute("set timezone = 'UTC'")

    def rows(self, namespace, table, columns):
        target = "lake.{}.{}".format(quoted(namespace), quoted(table))
        available = [row[0] for row in self.connection.execute("describe " + target).fetchall()]
        checked(available, columns, table)
        query = "select {} from {}".format(", ".join(quoted(c) for c in columns), target)
        result = self.connection.execute(query)
        reader = result.to_arrow_reader(50_000) if hasattr(result, "to_arrow_reader") else result.fetch_record_batch(50_000)
        return rows_of_batches(reader, columns)


class PyIceberg:
    def __init__(self, catalog):
        from pyiceberg.catalog import load_catalog

        properties = {"type": "rest", "uri": catalog["uri"], "warehouse": catalog["warehouse"]}
        s3 = catalog.get("s3")
        if s3:
            properties |= {
                "s3.endpoint": s3["endpoint"],
                "s3.access-key-id": s3["access_key"],
                "s3.secret-access-key": s3["secret_key"],
                "s3.region": "us-east-1",
                "s3.path-style-access": "true",
                "s3.force-virtual-addressing": "false",
            }
        if catalog.get("credential"):
            properties |= {
                "credential": catalog["credential"],
                "oauth2-server-uri": catalog["uri"] + "/v1/oauth/tokens",
                "scope": "catalog",
            }
        self.catalog = load_catalog("lake", **properties)

    def rows(self, namespace, table, columns):
        loaded = self.catalog.load_table((namespace, table))
        checked([field.name for field in loaded.schema().fields], columns, table)
        return rows_of_batches(loaded.scan(selected_fields=tuple(columns)).to_arrow_batch_reader(), columns)


# --- comparison ------------------------------------------------------------------------------------


def digest_of(row):
    return int.from_bytes(hashlib.blake2b("\x1f".join(row).encode(), digest_size=16).digest(), "big")


def summed(rows):
    count, checksum = 0, 0
    for row in rows:
        count += 1
        checksum = (checksum + digest_of(row)) & MASK
    return {"rows": count, "checksum": "%032x" % checksum}


def differences(source_rows, target_rows, examples):
    left, right = collections.Counter(source_rows), collections.Counter(target_rows)
    missing, unexpected = left - right, right - left
    shown = lambda rows: [[v[:80] if v != NULL else None for v in row] for row in sorted(rows)[:examples]]
    return {
        "missing": sum(missing.values()),
        "unexpected": sum(unexpected.values()),
        "missing_examples": shown(missing),
        "unexpected_examples": shown(unexpected),
    }


def compare_table(request, source, targets, table):
    schema, name = table.split(".", 1)
    namespace = request["namespace"] + "_" + schema
    columns = source.columns(table)
    names = [c[0] for c in columns]
    result = {"table": table, "source": summed(source.rows(table, columns)), "equal": True}
    for reader, target in targets.items():
        try:
            result[reader] = summed(target.rows(namespace, name, names))
        except Exception as error:  # a reader's error is the result of this table, the others go on
            result[reader] = {"error": "{}: {}".format(type(error).__name__, error)}
            result["equal"] = False
            continue
        if result[reader] != result["source"]:
            result["equal"] = False
            result[reader]["differences"] = differences(
                source.rows(table, columns), target.rows(namespace, name, names), request.get("examples", 5)
            )
    return result


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    makers = {"duckdb": DuckDb, "pyiceberg": PyIceberg}
    source = Rows(request["rows"]) if "rows" in request else Postgres(request["postgres"])
    targets = {reader: makers[reader](request["catalog"]) for reader in request.get("readers", list(makers))}
    tables = [compare_table(request, source, targets, table) for table in request["tables"]]
    json.dump({"equal": all(t["equal"] for t in tables), "tables": tables}, sys.stdout, ensure_ascii=False)


main()
