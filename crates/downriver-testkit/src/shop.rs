//! The schema of a small shop: ten tables with the types that a lake must keep.

use anyhow::Result;

use crate::postgres::Postgres;

/// All tables of the shop, as `schema.table`.
pub const TABLES: [&str; 10] = [
    "public.customers",
    "public.products",
    "public.orders",
    "public.order_lines",
    "public.payments",
    "public.documents",
    "public.stock",
    "public.carts",
    "public.ledger",
    "public.types",
];

const SCHEMA: &str = "
create type order_state as enum ('new', 'paid', 'shipped', 'closed', 'refunded');
create table customers (id bigint primary key, name text not null, email varchar(120), vip boolean not null default false,
    born date, joined timestamptz not null);
create table products (sku varchar(32) primary key, title text not null, price numeric(12,2) not null, tags text[], details jsonb);
create table orders (id bigint primary key, customer_id bigint not null, state order_state not null, total numeric(12,2) not null,
    placed_at timestamp(6) not null, note text);
create table order_lines (order_id bigint, line int, sku varchar(32) not null, amount int not null, price numeric(12,2),
    primary key (order_id, line));
create table payments (id uuid primary key, order_id bigint not null, amount numeric(12,2) not null, paid_at timestamptz);
create table documents (id bigint primary key, version int not null, body text not null, scan bytea);
create table stock (sku varchar(32) primary key, amount bigint not null, weight double precision, shelf smallint);
create table carts (id bigint primary key, content json, updated_at timestamp);
create table ledger (id bigint primary key, what text not null);
create table types (id bigint primary key, i2 smallint, i4 int, i8 bigint, f4 real, f8 double precision, n numeric(38,10),
    free numeric, b boolean, t text, vc varchar(20), c char(8), ba bytea, u uuid, j json, jb jsonb, d date, ti time, ts timestamp,
    tz timestamptz, iv interval, st order_state, ai int[], at text[], an numeric(10,3)[], net inet);
";

/// Bodies that PostgreSQL stores out of line without compression, so that an update of another column
/// leaves them unchanged in the WAL.
const TOAST: &str =
    "alter table documents alter body set storage external, alter scan set storage external;";

const OWNERS: &str = "
do $$ declare t text; begin
    for t in select format('%I.%I', schemaname, tablename) from pg_tables where schemaname = 'public' loop
        execute 'alter table ' || t || ' owner to shop_owner';
    end loop;
    execute 'alter type order_state owner to shop_owner';
end $$;
";

/// Creates the tables, owned by the role that the source's user is a member of.
pub async fn create(postgres: &Postgres) -> Result<()> {
    postgres.execute(&format!("{SCHEMA}{TOAST}{OWNERS}")).await
}

/// Fills the tables: `scale` customers, and the rest in proportion (about 9 rows a customer). Only
/// generate_series and arithmetic, so that the same scale gives the same rows everywhere.
pub async fn fill(postgres: &Postgres, scale: u32) -> Result<()> {
    postgres
        .execute(&format!(
            "insert into customers select i, 'customer ' || i || ' Zoë \\ \"quoted\"', case when i % 7 <> 0 then 'c' || i || '@example.org' end,
                i % 10 = 0, date '1950-01-01' + (i % 20000)::int, timestamptz '2024-01-01 00:00:00+00' + i * interval '7.013 s'
                from generate_series(1, {scale}) i;
            insert into products select 'sku-' || i, 'product ' || md5(i::text), (i % 9999) / 100.0 + 1, array['t' || i % 5, null, 'x,y\"z'],
                jsonb_build_object('n', i, 'list', jsonb_build_array(i, 'ä', null)) from generate_series(1, {scale} / 4 + 1) i;
            insert into orders select i, i % {scale} + 1, (enum_range(null::order_state))[i % 5 + 1], (i % 100000) / 100.0,
                timestamp '2025-01-01' + i * interval '3.000001 s', case when i % 3 = 0 then repeat('note ', (i % 20)::int) end
                from generate_series(1, {scale} * 2) i;
            insert into order_lines select i / 2 + 1, i % 2, 'sku-' || i % ({scale} / 4 + 1) + 1, i % 9 + 1, case when i % 11 <> 0 then i % 500 / 10.0 end
                from generate_series(0, {scale} * 4 - 1) i;
            insert into payments select md5('payment' || i)::uuid, i, i % 777 / 7.0, case when i % 5 <> 0 then timestamptz '2025-02-01 00:00:00+00' + i * interval '1 s' end
                from generate_series(1, {scale}) i;
            insert into stock select 'sku-' || i, i * 3, i / 7.0::float8, (i % 300)::int2 from generate_series(1, {scale} / 4 + 1) i;
            insert into carts select i, json_build_object('items', i % 5), timestamp '2025-03-01' + i * interval '1 min' from generate_series(1, {scale} / 2 + 1) i;"
        ))
        .await
}

/// Rows at the edges of every type: largest, smallest, empty, NULL.
pub async fn fill_types(postgres: &Postgres) -> Result<()> {
    postgres
        .execute(
            "insert into types values
            (1, -32768, -2147483648, -9223372036854775808, -1.5, -1.7976931348623157e308, -9999999999999999999999999999.9999999999, -0.000000000000001,
             false, '', '', '', '\\x', '00000000-0000-0000-0000-000000000000', '{}', '{}', '0001-01-01', '00:00:00', '0001-01-01 00:00:00',
             '1970-01-01 00:00:00+00', '-1 year -2 mons +3 days -04:05:06.789', 'new', '{}', '{}', '{}', '::1'),
            (2, 32767, 2147483647, 9223372036854775807, 3.4028235e38, 5e-324, 9999999999999999999999999999.9999999999, 12345678901234567890123456789012345678901234567890.5,
             true, E'tab\\t newline\\n backslash\\\\ quote\" ünïcödé 🚣', 'twenty characters ok', 'pad', '\\x00ff10', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '[1, 2,  3]',
             '{\"b\": 1, \"a\": [null, \"ü\"]}', '9999-12-31', '23:59:59.999999', '9999-12-31 23:59:59.999999', '2026-06-30 12:00:00.000001+02', '1 day', 'closed',
             '{1,NULL,-3}', '{a,NULL,\"\",\"c,d\",\"e\\\"f\"}', '{1.5,NULL,-2.125}', '10.1.0.0/16'),
            (3, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null),
            (4, 0, 0, 0, 0.1, 0.1, 0, 0, true, 'x', 'x', 'x', '\\x01', '12345678-9abc-def0-1234-56789abcdef0', 'null', 'null', '2026-02-28', '12:34:56.7',
             '2026-02-28 12:34:56.7', '2026-02-28 12:34:56.7+00', '0', 'paid', '{0}', '{x}', '{0.001}', '192.168.0.1')",
        )
        .await
}
