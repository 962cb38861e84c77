create table own (id int primary key, j json, v vector(2), a int, key ((a + 1)), mv json, key ((cast(mv as unsigned array))), gis point not null srid 4326);
insert into own values (1, '{"a": 1.0, "b": [1, null]}', to_vector('[1.5,-2]'), 3, '[1,2]', st_geomfromtext('POINT(1 2)', 4326)), (2, null, null, null, null, st_geomfromtext('POINT(-1 2)', 4326));
set sql_generate_invisible_primary_key = on;
create table gipk (a int, b varchar(5));
insert into gipk values (1, 'x'), (1, 'x'), (null, null);
set sql_generate_invisible_primary_key = off;
create table descending (a int, b int, c varchar(3), primary key (a desc, b, c desc));
insert into descending values (1,1,'x'),(1,2,'x'),(1,2,'y'),(2,1,'a'),(-1,5,'b'),(2,3,'c');
