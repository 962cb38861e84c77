create table documents (id int primary key, lu text, j json);
insert into documents values (1, 'a', '{"a":  1}'), (2, null, null), (3, 'b', '[]');
create table ordered (a int, b varchar(5), primary key (b, a));
insert into ordered values (1, 'x'), (2, 'x'), (1, 'a');
