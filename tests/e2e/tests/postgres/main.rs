//! PostgreSQL, as a user sets it up: real servers, a daemon, and what others read of the log and the lake. One program, so
//! that it is linked once.

mod access;
mod bags;
mod collations;
mod consequences;
mod copies;
mod corners;
mod crashes;
mod ddl;
mod faults;
mod handover;
mod history;
mod identities;
mod lake;
mod limits;
mod masks;
mod partitions;
mod parts;
mod policies;
mod preflight;
mod publications;
mod refusals;
mod resnapshot;
mod servers;
mod shapes;
mod shares;
mod slot_limits;
mod slots;
mod spoiled;
mod standby;
mod streaming;
mod types;
mod versions;
