create table packed (id int primary key, v varchar(2000) compressed, vs varchar(60) compressed, vl varchar(300) compressed character set latin1, vb varbinary(2000) compressed, plain varchar(20) character set ucs2, t text compressed, lt longtext compressed character set utf16, tt tinytext compressed, b blob compressed, mb mediumblob compressed);
insert into packed values
 (1, repeat('Zoë 😀 ', 200), 'short', repeat('é€', 150), repeat(unhex('00ff41'), 600), 'A€', repeat('text ', 3000), repeat('long 😀 ', 20000), repeat('tiny', 60), repeat(unhex('00'), 5000), repeat(unhex('0102'), 60000)),
 (2, '', '', '', '', '', '', '', '', '', ''),
 (3, null, null, null, null, null, null, null, null, null, null),
 (4, 'a', 'b', 'é', unhex('00'), 'c', 'd', 'é😀', 'e', unhex('80'), unhex('88')),
 (5, md5(1), md5(2), sha2(3, 512), unhex(sha2(4, 512)), 'z', sha2(5, 512), sha2(6, 512), sha2(7, 512), unhex(sha2(8, 512)), unhex(sha2(9, 512)));
set column_compression_zlib_wrap = on, column_compression_threshold = 10, column_compression_zlib_level = 9;
insert into packed select id + 10, v, vs, vl, vb, plain, t, lt, tt, b, mb from packed;
set column_compression_zlib_wrap = off, column_compression_zlib_strategy = huffman_only;
insert into packed select id + 20, v, vs, vl, vb, plain, t, lt, tt, b, mb from packed where id < 10;
update packed set v = concat(v, v), b = null where id in (1, 4, 11);
update packed set vs = repeat('s', 60) where id > 3;
delete from packed where id = 12;
create table added (id int primary key, a varchar(10));
insert into added values (1, 'before');
alter table added add column c text compressed, modify a varchar(10) compressed;
insert into added values (2, 'after', repeat('added live ', 40));
update added set a = 'changed', c = repeat('c', 200) where id = 1;
