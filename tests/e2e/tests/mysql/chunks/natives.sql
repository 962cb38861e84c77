create table k_uuid (k uuid primary key, x int);
insert into k_uuid select v, id from natives where id < 40; insert into k_uuid values ('00000000-0000-0000-0000-000000000001', 1), ('ffffffff-ffff-ffff-ffff-ffffffffffff', 2), ('01234567-89ab-1def-8123-456789abcdef', 3), ('01234567-89ab-6def-8123-456789abcdef', 4), ('01234567-89ab-7def-8123-456789abcdef', 5), ('01234567-89ab-1def-0123-456789abcdef', 6), ('02234567-89ab-1def-8123-456789abcdee', 7), ('00000000-0000-0000-0000-000000000000', 8);
create table k_inet4 (k inet4 primary key);
insert into k_inet4 values ('0.0.0.0'), ('0.0.0.1'), ('1.0.0.0'), ('10.0.0.2'), ('9.255.255.255'), ('255.255.255.255');
create table k_inet6 (k inet6, n inet4, u uuid, primary key (k, n desc, u));
insert into k_inet6 select b, '1.2.3.4', v from natives where id < 30; insert into k_inet6 values ('::', '0.0.0.0', '00000000-0000-0000-0000-000000000000'), ('::', '0.0.0.1', 'ffffffff-ffff-ffff-ffff-ffffffffffff'), ('::', '0.0.0.1', '00000000-0000-0000-0000-000000000000'), ('::ffff:1.2.3.4', '0.0.0.0', '00000000-0000-0000-0000-000000000000'), ('ffff::', '9.0.0.0', '00000000-0000-0000-0000-00000000000a');
