create table hashed (id int primary key, lu text, unique key (lu), j json);
insert into hashed values (1, 'a', '{"a":  1}'), (2, null, null), (3, 'b', '[]');
create table ordered (a int, b varchar(5), primary key (b, a));
insert into ordered values (1, 'x'), (2, 'x'), (1, 'a');
