create table gen (id int primary key, a int, v int as (a + 1) virtual, st varchar(20) as (concat('s', a)) stored, inv int invisible default 7);
insert into gen (id, a) values (1, 10), (2, null);
insert into gen (id, a, inv) values (3, 5, 6);
update gen set a = 11 where id = 1;
