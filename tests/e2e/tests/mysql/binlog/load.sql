flush binary logs;
create table numbers (id int primary key, t tinyint, tu tinyint unsigned, s smallint, su smallint unsigned, m mediumint, mu mediumint unsigned, i int, iu int unsigned, b bigint, bu bigint unsigned, z int(6) zerofill, d decimal(65,30), d2 decimal(10,2), d0 decimal(10), d9 decimal(9,9), f float, db double, b1 bit(1), b10 bit(10), b64 bit(64), y year, bo bool);
insert into numbers values
 (1,-128,0,-32768,0,-8388608,0,-2147483648,0,-9223372036854775808,0,42,'-99999999999999999999999999999999999.999999999999999999999999999999','-0.01',-5,'-0.123456789',0.1,0.1,b'1',b'1000000001',b'1111111111111111111111111111111111111111111111111111111111111111',1901,true),
 (2,127,255,32767,65535,8388607,16777215,2147483647,4294967295,9223372036854775807,18446744073709551615,999999,'99999999999999999999999999999999999.999999999999999999999999999999','12345678.90',9999999999,'0.000000001',16777217,1e308,b'0',b'0',b'0',2155,false),
 (3,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null),
 (4,0,1,-1,1,-1,1,-1,1,-1,1,0,0,0,0,0,-0.0,-2.5e-308,b'1',b'1',b'1',0,true);
create table times (id int primary key, d date, t0 time, t3 time(3), t6 time(6), dt0 datetime, dt6 datetime(6), ts0 timestamp null, ts2 timestamp(2) null, ts6 timestamp(6) null);
insert into times values
 (1,'1000-01-01','-838:59:59','-00:00:00.001','-838:59:58.999999','1000-01-01','9999-12-31 23:59:59.999999','1970-01-01 00:00:01','2038-01-19 03:14:07.99','2024-02-29 12:34:56.000001'),
 (2,'9999-12-31','838:59:59','517:51:04.780','-00:00:00.000001','2024-02-29 23:59:59','0001-01-01','2000-01-01','2000-01-01 00:00:00.1','2000-01-01'),
 (3,'0000-00-00','00:00:00','-733:00:00.001','-00:20:38','0000-00-00 00:00:00','2024-00-10 00:00:00','0000-00-00 00:00:00','0000-00-00','0000-00-00'),
 (4,null,null,null,null,null,null,null,null,null);
create table texts (id int primary key, c char(10), v varchar(300), tx text, lt longtext, l1 varchar(20) character set latin1, g varchar(20) character set gbk, u2 varchar(20) character set ucs2, cb char(4) character set utf8mb4 collate utf8mb4_bin, bi binary(4), vb varbinary(10), bl blob, e enum('a','b','ü'), se set('x','y','z'), el enum('é','b') character set latin1);
insert into texts values
 (1,'abc  ','é😀',repeat('x',300),'long','€é','你好','A€','ab ','ab','ab\0\0','blob\0','ü','x,z','é'),
 (2,'','','','','','','','','','','','','',''),
 (3,null,null,null,null,null,null,null,null,null,null,null,null,null,null);
begin; update numbers set i = 5, bu = 7 where id in (1,2); update texts set v = 'changed' where id = 1; delete from times where id = 4; commit;
update numbers set id = id + 10 order by id desc;
