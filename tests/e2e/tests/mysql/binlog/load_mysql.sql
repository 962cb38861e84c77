create table docs (id int primary key, j json, p point srid 4326, ve vector(3));
insert into docs values
 (1,'{"b": [1, 2.5, true, null, "x\\"y"], "a": {"big": 18446744073709551615, "neg": -1, "f": 1.0, "e": 1e20}}', st_geomfromtext('POINT(1 2)',4326), to_vector('[1,2.5,-3]')),
 (2,'"scalar"',null,null),(3,'[]',null,null),(4,null,null,null),
 (5,json_object('d',cast('2024-02-29' as date),'t',cast('-12:34:56.5' as time(6)),'dt',cast('2024-02-29 01:02:03.4' as datetime(6)),'dec',cast('1234567890.12' as decimal(20,2)),'bin',cast('abc' as binary)),null,null);
insert into docs select 100, json_arrayagg(1e0/n), null, null from (with recursive s as (select 1 n union all select n+1 from s where n<20) select n from s) q;
insert into docs select 101, json_arrayagg(pow(10,n)*1.5), null, null from (with recursive s as (select -20 n union all select n+1 from s where n<25) select n from s) q;
insert into docs values (102, json_object('big', repeat('x', 70000), 'n', 70000, 'i', 2147483647), null, null);
set gtid_next = 'automatic:night';
insert into docs values (200, '1', null, null);
update docs set j = '{"n": 2}' where id = 200;
set gtid_next = 'automatic';
