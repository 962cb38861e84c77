//! Prepared transactions (XA): their events are held by whoever decodes, as they came, and decoded when they are committed.
//!
//! ```text
//!   MySQL    GTID 5 ──> QUERY "XA START x" ──> rows ──> QUERY "XA END x" ──> XA_PREPARE x
//!   MariaDB  GTID 5, which says that it is prepared ──> rows ──> QUERY "XA END x" ──> XA_PREPARE x
//!   both     GTID 7 ──> QUERY "XA COMMIT x", or "XA ROLLBACK x": by whatever session, at whatever time
//! ```
//!
//! MySQL logs what is committed in one phase as a prepared transaction whose last event says so.
//!
//! Source: MySQL's `libs/mysql/binlog/event/control_events.h`, `XA_prepare_event`, and `sql/xa.h`, `xid_t::serialize`;
//! MariaDB's `sql/log_event.h`, `XA_prepare_log_event`.

use std::fmt;

use downriver_event::block::BlockBuilder;

use super::super::ddl::Named;
use super::super::table_map;
use super::{
    BinlogDecoder, BinlogError, Cursor, DecodeError, Decoded, Event, Identifier, Kind, Opened,
    State, Statement, aside, statement,
};

const COMMIT: &str = "XA COMMIT ";
const ROLLBACK: &str = "XA ROLLBACK ";

/// Whether a statement ends a prepared transaction.
pub(super) fn ends(text: &str) -> bool {
    text.starts_with(COMMIT) || text.starts_with(ROLLBACK)
}

/// What a prepared transaction is called: as statements of the binlog write it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xid(String);

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Xid {
    /// One that was stored.
    #[must_use]
    pub fn stored(text: String) -> Self {
        Self(text)
    }

    fn of(global: &[u8], branch: &[u8], format: u32) -> Self {
        let hex = |bytes: &[u8]| -> String {
            let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
            digits.collect()
        };
        Self(format!("X'{}',X'{}',{format}", hex(global), hex(branch)))
    }

    /// Behind the words of a statement. Servers write the parts in hexadecimal digits, and the format as a number that
    /// may be negative.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split(',').map(str::trim);
        let mut bytes = || {
            let digits = parts.next()?.strip_prefix(['X', 'x'])?;
            let digits = digits.strip_prefix('\'')?.strip_suffix('\'')?;
            let all = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            all.then(|| digits.to_ascii_lowercase())
        };
        let (global, branch) = (bytes()?, bytes()?);
        let format: i64 = parts.next()?.split_whitespace().next()?.parse().ok()?;
        let format = u32::try_from(format)
            .or_else(|_| i32::try_from(format).map(i32::cast_unsigned))
            .ok()?;
        Some(Self(format!("X'{global}',X'{branch}',{format}")))
    }
}

/// A transaction whose events were held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    pub xid: Xid,
    /// The identifier that it was prepared with: only this tells two of the same name.
    pub id: String,
    /// The tables that it may have changed; `None`: a statement of it does not tell.
    pub tables: Option<Vec<Named>>,
}

/// A transaction that is being held.
#[derive(Debug)]
pub(super) struct Holding {
    opened: Opened,
    tables: Vec<Named>,
    has_statements: bool,
}

impl BinlogDecoder {
    /// Whether the events of the file that is read have checksums: what is held must be replayed so.
    #[must_use]
    pub fn has_checksums(&self) -> bool {
        self.format.has_checksums
    }

    /// The identifier that came begins a transaction whose events are to be held.
    pub(super) fn begin_holding(&mut self) -> Result<Decoded, DecodeError> {
        match std::mem::replace(&mut self.state, State::Outside) {
            State::Opened(opened) if self.reached.contains(&opened.id) => {
                self.state = State::Dropping;
                Ok(Decoded::Passed)
            }
            State::Opened(opened) => {
                self.state = State::Holding(Holding {
                    opened,
                    tables: Vec::new(),
                    has_statements: false,
                });
                Ok(Decoded::Passed)
            }
            state => {
                self.state = state;
                Err(self.out_of_place("prepared transaction's beginning"))
            }
        }
    }

    /// An event of a transaction that is being held. `None`: nothing that belongs to one.
    pub(super) fn hold(&mut self, event: &Event<'_>) -> Result<Option<Decoded>, DecodeError> {
        let State::Holding(holding) = &mut self.state else {
            return Ok(None);
        };
        match event.header.kind {
            Kind::TABLE_MAP => {
                let Some((database, table)) = table_map::names(event.body) else {
                    return Err(self.wrong(BinlogError::Cut("a table map")));
                };
                let named = Named { database, table };
                if !holding.tables.contains(&named) {
                    holding.tables.push(named);
                }
            }
            Kind::QUERY | Kind::MARIA_QUERY_COMPRESSED => {
                let Statement { text, .. } = statement(event).map_err(|error| self.wrong(error))?;
                let State::Holding(holding) = &mut self.state else {
                    return Ok(None);
                };
                if text.starts_with("XA END ") {
                    return Ok(Some(Decoded::Passed));
                }
                // They have no place in one.
                if matches!(&*text, "BEGIN" | "COMMIT" | "ROLLBACK") {
                    return Ok(None);
                }
                holding.has_statements |= !aside::is_of_savepoints(&text);
            }
            Kind::EXECUTE_LOAD_QUERY => holding.has_statements = true,
            Kind::XA_PREPARE => return self.prepared(event).map(Some),
            kind if kind.is_rows() || kind.is_of_statements() => {}
            _ => return Ok(None),
        }
        Ok(Some(Decoded::Held))
    }

    fn prepared(&mut self, event: &Event<'_>) -> Result<Decoded, DecodeError> {
        let read = |mut cursor: Cursor<'_>| {
            let is_committed = cursor.u8()? != 0;
            let format = cursor.u32()?;
            let (global, branch) = (cursor.u32()? as usize, cursor.u32()? as usize);
            let xid = Xid::of(cursor.take(global)?, cursor.take(branch)?, format);
            Some((is_committed, xid))
        };
        let Some((is_committed, xid)) = read(Cursor::new(event.body)) else {
            return Err(self.wrong(BinlogError::Cut("a prepared transaction's end")));
        };
        let State::Holding(holding) = std::mem::replace(&mut self.state, State::Outside) else {
            return Err(self.out_of_place("prepared transaction's end"));
        };
        if is_committed {
            self.state = State::Opened(holding.opened);
            return Ok(Decoded::CommittedHeld);
        }
        self.reached.add(&holding.opened.id);
        Ok(Decoded::Prepared(Prepared {
            xid,
            id: self.called(&holding.opened.id),
            tables: (!holding.has_statements).then_some(holding.tables),
        }))
    }

    /// The end of a prepared transaction, which has an identifier of its own.
    pub(super) fn xa_ended(&mut self, text: &str) -> Result<Decoded, DecodeError> {
        if let State::Opened(opened) = &self.state
            && self.reached.contains(&opened.id)
        {
            self.state = State::Outside;
            return Ok(Decoded::Passed);
        }
        let committed = text.strip_prefix(COMMIT).and_then(Xid::parse);
        let rolled_back = || text.strip_prefix(ROLLBACK).and_then(Xid::parse);
        match committed {
            Some(xid) => Ok(Decoded::XaCommit(xid)),
            None => rolled_back()
                .map(Decoded::XaRollback)
                .ok_or_else(|| self.unsupported("names of prepared transactions of this form")),
        }
    }

    /// Decodes an event that was held, as one of the transaction that is open.
    ///
    /// # Errors
    /// As of [`BinlogDecoder::decode`].
    pub fn replay(
        &mut self,
        bytes: &[u8],
        has_checksums: bool,
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        let event = Event::parse(bytes, has_checksums).map_err(|error| self.wrong(error))?;
        self.is_replaying = true;
        match event.header.kind {
            Kind::TABLE_MAP => self.table_map(&event),
            Kind::QUERY | Kind::MARIA_QUERY_COMPRESSED => self.query(&event, out),
            Kind::EXECUTE_LOAD_QUERY => self.load_query(&event),
            kind if kind.is_rows() => self.rows(kind, event.body, out),
            _ => Ok(Decoded::Passed),
        }
    }

    pub(super) fn called(&self, id: &Identifier) -> String {
        match id {
            Identifier::Anonymous => self.place.to_string(),
            Identifier::Gtid(gtid) => gtid.to_string(),
            Identifier::Domain(gtid) => gtid.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_in_a_statement_and_in_an_event() {
        let name = Xid::of(b"a", b"bc", 3);
        assert_eq!(name.to_string(), "X'61',X'6263',3");
        for text in ["X'61',X'6263',3", " x'61', X'6263' ,3 ONE PHASE"] {
            assert_eq!(Xid::parse(text).as_ref(), Some(&name), "{text}");
        }
        assert_eq!(Xid::parse("X'',X'',-1"), Some(Xid::of(b"", b"", u32::MAX)));
        for text in ["", "'a'", "X'61'", "X'6g',X'',1", "X'61',X'',x"] {
            assert_eq!(Xid::parse(text), None, "{text}");
        }
    }
}
