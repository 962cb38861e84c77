create table documents (id int primary key, lu text, j json);
insert into documents values (1, 'a', '{"a":  1}'), (2, null, null), (3, 'b', '[]');
create table ordered (a int, b varchar(5), primary key (b, a));
insert into ordered values (1, 'x'), (2, 'x'), (1, 'a');
create table packed (id int primary key, v varchar(2000) compressed, l varchar(255) compressed character set latin1, b varbinary(300) compressed, t text compressed, m mediumblob compressed not null, tiny tinytext compressed);
insert into packed values (1, repeat('é😀', 300), repeat('é', 200), repeat('b', 300), repeat('t', 9000), repeat('m', 70000), 'tiny'), (2, null, null, null, null, '', null), (3, '', '', '', '', 'm', '');
