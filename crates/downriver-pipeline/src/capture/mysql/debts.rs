//! What the binlog told of and the log does not have yet: tables that are to be read again, once that may begin, and
//! prepared transactions, of which nobody knows whether they will be committed. It is stored with the position, beside the
//! progress of the tables' snapshots, under a number that no table has: a prepared transaction may have changed tables
//! that are captured only later.
//!
//! ```text
//! format u8 = 1 | flags u8: 1 a statement's reach is uncertain
//!   | due: count u32, (table u32)*
//!   | prepared: count u32, (xid: text, id: text, tables: u8 = 0 unknown, or 1, count u32, (database: text, table: text)*)*
//! text: len u32, bytes
//! ```

use std::collections::{BTreeSet, HashSet};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use downriver_decode::mysql::ddl::Named;
use downriver_decode::mysql::decoder::{Prepared, Xid};
use downriver_event::TableId;
use downriver_log::{ChunkDone, LogError, StreamState};

use super::super::CaptureError;
use super::super::progress::OF_NO_TABLE;

const FORMAT: u8 = 1;
const UNCERTAIN: u8 = 1;
/// Prepared transactions that are noted: of the oldest beyond them nothing is known any more.
const PREPARED_MAX: usize = 10_000;
/// Tables of a prepared transaction that are noted: of one with more it is not known which they are.
const TABLES_MAX: usize = 100;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Debts {
    due: BTreeSet<TableId>,
    /// The oldest first.
    prepared: Vec<Prepared>,
    is_uncertain: bool,
    /// Since it was stored.
    is_changed: bool,
}

impl Debts {
    /// As a stream has them.
    pub(super) fn of(state: &StreamState) -> Result<Self, CaptureError> {
        let Some(stored) = state.chunks.get(&OF_NO_TABLE) else {
            return Ok(Self::default());
        };
        Self::decode(stored.resume_after.clone()).ok_or_else(|| {
            CaptureError::Log(LogError::Unavailable(
                "what is known of prepared transactions was written by a newer version".into(),
            ))
        })
    }

    /// Tables that are to be read again, when that may begin.
    pub(super) fn due(&self) -> impl Iterator<Item = TableId> {
        self.due.iter().copied()
    }

    pub(super) fn is_due(&self, table: TableId) -> bool {
        self.due.contains(&table)
    }

    pub(super) fn owe(&mut self, table: TableId) {
        self.is_changed |= self.due.insert(table);
    }

    pub(super) fn pay(&mut self, table: TableId) {
        self.is_changed |= self.due.remove(&table);
    }

    /// The identifiers of the transactions that are prepared.
    pub(super) fn prepared(&self) -> HashSet<&str> {
        self.prepared.iter().map(|it| it.id.as_str()).collect()
    }

    /// One that has the name of another comes after the other's end.
    pub(super) fn prepare(&mut self, mut prepared: Prepared) {
        if prepared
            .tables
            .as_ref()
            .is_some_and(|tables| tables.len() > TABLES_MAX)
        {
            prepared.tables = None;
        }
        self.prepared.retain(|known| known.xid != prepared.xid);
        if self.prepared.len() >= PREPARED_MAX {
            let oldest = self.prepared.remove(0);
            tracing::warn!(xid = %oldest.xid, "too many transactions are prepared to note them all");
        }
        self.prepared.push(prepared);
        self.is_changed = true;
    }

    /// The transaction of a name has ended. `None`: nothing is known of it.
    pub(super) fn end(&mut self, xid: &Xid) -> Option<Prepared> {
        let at = self.prepared.iter().position(|known| known.xid == *xid)?;
        self.is_changed = true;
        Some(self.prepared.remove(at))
    }

    /// What a statement runs was looked up when the server was ahead of it already.
    pub(super) fn is_uncertain(&self) -> bool {
        self.is_uncertain
    }

    pub(super) fn set_uncertain(&mut self, is_uncertain: bool) {
        self.is_changed |= self.is_uncertain != is_uncertain;
        self.is_uncertain = is_uncertain;
    }

    /// What is to be stored, if it is not.
    pub(super) fn unstored(&mut self) -> Option<ChunkDone> {
        std::mem::take(&mut self.is_changed).then(|| self.stored())
    }

    pub(super) fn stored(&self) -> ChunkDone {
        ChunkDone {
            table: OF_NO_TABLE,
            generation: 0,
            resume_after: self.encode(),
            rows: 0,
            last: true,
        }
    }

    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        out.put_u8(if self.is_uncertain { UNCERTAIN } else { 0 });
        put_count(&mut out, self.due.len());
        self.due.iter().for_each(|table| out.put_u32_le(table.0));
        put_count(&mut out, self.prepared.len());
        for Prepared { xid, id, tables } in &self.prepared {
            put_text(&mut out, &xid.to_string());
            put_text(&mut out, id);
            out.put_u8(u8::from(tables.is_some()));
            if let Some(tables) = tables {
                put_count(&mut out, tables.len());
                for Named { database, table } in tables {
                    put_text(&mut out, database);
                    put_text(&mut out, table);
                }
            }
        }
        out.freeze()
    }

    /// `None`: of a form that this build does not know.
    fn decode(mut bytes: Bytes) -> Option<Self> {
        let (format, flags) = (bytes.try_get_u8().ok()?, bytes.try_get_u8().ok()?);
        if format != FORMAT || flags & !UNCERTAIN != 0 {
            return None;
        }
        let mut debts = Self {
            is_uncertain: flags & UNCERTAIN != 0,
            ..Self::default()
        };
        for _ in 0..bytes.try_get_u32_le().ok()? {
            debts.due.insert(TableId(bytes.try_get_u32_le().ok()?));
        }
        for _ in 0..bytes.try_get_u32_le().ok()? {
            let xid = Xid::stored(take_text(&mut bytes)?);
            let id = take_text(&mut bytes)?;
            let mut tables = None;
            if bytes.try_get_u8().ok()? != 0 {
                let count = bytes.try_get_u32_le().ok()?;
                let named = |_| {
                    let database = take_text(&mut bytes)?;
                    let table = take_text(&mut bytes)?;
                    Some(Named { database, table })
                };
                tables = Some((0..count).map(named).collect::<Option<Vec<_>>>()?);
            }
            debts.prepared.push(Prepared { xid, id, tables });
        }
        bytes.is_empty().then_some(debts)
    }
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u32_le(u32::try_from(count).expect("what is noted has a limit"));
}

fn put_text(out: &mut BytesMut, text: &str) {
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn take_text(bytes: &mut Bytes) -> Option<String> {
    let len = bytes.try_get_u32_le().ok()? as usize;
    let text = (bytes.len() >= len).then(|| bytes.split_to(len))?;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use downriver_testkit::fixture;

    use super::*;

    fn prepared(xid: &str, id: &str, tables: Option<&[&str]>) -> Prepared {
        let named = |table: &&str| Named {
            database: "d\u{e4}".into(),
            table: (*table).into(),
        };
        Prepared {
            xid: Xid::stored(xid.into()),
            id: id.into(),
            tables: tables.map(|tables| tables.iter().map(named).collect()),
        }
    }

    fn debts() -> Debts {
        let mut debts = Debts::default();
        debts.owe(TableId(7));
        debts.owe(TableId(300));
        debts.prepare(prepared("X'61',X'',1", "0-1-5", Some(&["a", "b"])));
        debts.prepare(prepared("X'62',X'',1", "0-1-6", None));
        debts.prepare(prepared("X'63',X'',1", "0-1-7", Some(&[])));
        debts.set_uncertain(true);
        debts
    }

    #[test]
    fn what_was_stored_is_read_back_and_anything_cut_or_newer_is_refused() {
        let mut expected = debts();
        let stored = expected.unstored().expect("it has changed").resume_after;
        assert!(expected.unstored().is_none());
        assert_eq!(Debts::decode(stored.clone()).as_ref(), Some(&expected));
        for len in 0..stored.len() {
            assert_eq!(Debts::decode(stored.slice(..len)), None, "cut at {len}");
        }
        let name = "binlog-debts-v1.bin";
        let kept = fixture::bytes(name, || stored.to_vec()).expect("it is kept");
        assert_eq!(Debts::decode(kept.clone().into()).as_ref(), Some(&expected));
        let mut newer = kept;
        newer[0] = FORMAT + 1;
        assert_eq!(Debts::decode(newer.into()), None);
    }

    #[test]
    fn a_name_is_the_newest_transactions_and_the_oldest_are_forgotten_first() {
        let mut debts = debts();
        debts.prepare(prepared("X'61',X'',1", "0-1-9", None));
        let ended = debts.end(&Xid::stored("X'61',X'',1".into()));
        assert_eq!(ended.map(|ended| ended.id).as_deref(), Some("0-1-9"));
        assert_eq!(debts.end(&Xid::stored("X'61',X'',1".into())), None);
        for number in 0..PREPARED_MAX {
            debts.prepare(prepared(&number.to_string(), "id", None));
        }
        assert_eq!(debts.prepared.len(), PREPARED_MAX);
        assert_eq!(debts.end(&Xid::stored("X'62',X'',1".into())), None);
        let many: Vec<&str> = vec!["t"; TABLES_MAX + 1];
        debts.prepare(prepared("many", "id", Some(&many)));
        let many = debts.end(&Xid::stored("many".into()));
        assert_eq!(many.and_then(|many| many.tables), None);
    }
}
