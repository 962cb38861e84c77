//! pgoutput messages into the rows of a block.
//!
//! A transaction that the log has already (its commit ends at or before the position) is dropped whole: at
//! Begin the final LSN, where the commit record *starts*, is before the position exactly then.

use std::collections::HashMap;
use std::sync::Arc;

use downriver_event::block::{BlockBuilder, ColumnBuilder, OldImage, RowColumns, RowOp};
use downriver_event::{
    Column, LogicalType, Lsn, Presence, ReplicaIdentity, SourcePosition, TableSchema, pb, view,
};

use super::message::{Cell, Message, MessageError, OldTuple, Tuple, parse};
pub use super::message::{Relation, RelationColumn};
use super::{ValueError, binary, text};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("unknown bytes in the replication stream after {after}: {error}")]
    Message { after: Lsn, error: MessageError },
    #[error("a {what} came outside a transaction, after {after}")]
    OutsideTransaction { what: &'static str, after: Lsn },
    #[error(
        "a row of relation {relation} came before its description, in the transaction that ends after {after}"
    )]
    UnknownRelation { relation: u32, after: Lsn },
    #[error(
        "a row of {table} has {found} columns, not {expected}, in the transaction committed at {at}"
    )]
    ColumnCount {
        table: String,
        expected: usize,
        found: usize,
        at: Lsn,
    },
    #[error("column {column:?} of {table} {error}, in the transaction committed at {at}")]
    Value {
        table: String,
        column: String,
        error: ValueError,
        at: Lsn,
    },
}

/// What a message was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    Begin {
        xid: u32,
        final_lsn: Lsn,
        commit_time_us: i64,
    },
    /// `events` of the whole transaction; 0 for one that was dropped or is empty.
    Commit {
        end_lsn: Lsn,
        events: u64,
    },
    /// Answer with [`PgDecoder::set_schema`] before the next message.
    Relation(Relation),
    Row,
    /// Nothing that changes a row.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Outside,
    Inside { at: Lsn },
    Dropping,
}

#[derive(Debug)]
pub struct PgDecoder {
    position: Option<Lsn>,
    state: State,
    /// The end of the last transaction, for error messages.
    after: Lsn,
    /// `None`: the relation is not captured.
    relations: HashMap<u32, Option<Arc<TableSchema>>>,
}

impl PgDecoder {
    /// Transactions whose commit ends at or before `position` are dropped.
    #[must_use]
    pub fn new(position: Option<Lsn>) -> Self {
        Self {
            position,
            state: State::Outside,
            after: position.unwrap_or_default(),
            relations: HashMap::new(),
        }
    }

    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.state != State::Outside
    }

    /// Rows of the relation use this schema from now on; `None`: they are passed over.
    pub fn set_schema(&mut self, relation: u32, schema: Option<Arc<TableSchema>>) {
        self.relations.insert(relation, schema);
    }

    /// Decodes one message into the builder.
    ///
    /// # Errors
    /// Bytes that this build does not know, or a value that is not of its column's type. The builder is then
    /// of no use any more.
    pub fn decode(
        &mut self,
        message: &[u8],
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        let after = self.after;
        match parse(message).map_err(|error| DecodeError::Message { after, error })? {
            Message::Begin {
                final_lsn,
                commit_time_us,
                xid,
            } => {
                if self.position.is_some_and(|position| final_lsn < position) {
                    self.state = State::Dropping;
                } else {
                    self.state = State::Inside { at: final_lsn };
                    out.begin(xid.to_string(), commit_time_us);
                }
                Ok(Decoded::Begin {
                    xid,
                    final_lsn,
                    commit_time_us,
                })
            }
            Message::Commit { end_lsn, .. } => {
                let state = std::mem::replace(&mut self.state, State::Outside);
                self.after = end_lsn;
                let events = match state {
                    State::Outside => return Err(self.outside("commit")),
                    State::Dropping => 0,
                    State::Inside { .. } => out.commit(&SourcePosition::Postgres(end_lsn)),
                };
                Ok(Decoded::Commit { end_lsn, events })
            }
            Message::Relation(relation) => Ok(Decoded::Relation(relation)),
            Message::Insert { relation, new } => self.insert(relation, new, out),
            Message::Update { relation, old, new } => self.update(relation, old, new, out),
            Message::Delete { relation, old } => self.delete(relation, old, out),
            Message::Truncate {
                relations,
                cascade,
                restart_identity,
            } => {
                let mut captured = Vec::new();
                for relation in relations {
                    if self.schema(relation)?.is_some() {
                        captured.push(relation);
                    }
                }
                if captured.is_empty() || self.state == State::Dropping {
                    return Ok(Decoded::Other);
                }
                out.marker(pb::marker::Kind::Truncate(pb::Truncate {
                    table_ids: captured,
                    cascade,
                    restart_identity,
                }));
                Ok(Decoded::Row)
            }
            Message::Logical {
                transactional,
                prefix,
                content,
                ..
            } => {
                if transactional && matches!(self.state, State::Inside { .. }) {
                    out.marker(pb::marker::Kind::Message(pb::LogicalMessage {
                        prefix: prefix.to_owned(),
                        content: content.to_vec().into(),
                        transactional,
                    }));
                }
                Ok(Decoded::Other)
            }
            Message::Origin { .. } | Message::Type { .. } => Ok(Decoded::Other),
        }
    }

    fn outside(&self, what: &'static str) -> DecodeError {
        DecodeError::OutsideTransaction {
            what,
            after: self.after,
        }
    }

    fn schema(&self, relation: u32) -> Result<Option<&Arc<TableSchema>>, DecodeError> {
        let known = self.relations.get(&relation);
        let known = known.ok_or(DecodeError::UnknownRelation {
            relation,
            after: self.after,
        })?;
        Ok(known.as_ref())
    }

    /// The schema of a row that is to be decoded, and its transaction's final LSN.
    fn wanted(&self, relation: u32) -> Result<Option<(&Arc<TableSchema>, Lsn)>, DecodeError> {
        match self.state {
            State::Outside => Err(self.outside("row")),
            State::Dropping => Ok(None),
            State::Inside { at } => Ok(self.schema(relation)?.map(|schema| (schema, at))),
        }
    }

    fn insert(
        &self,
        relation: u32,
        new: Tuple<'_>,
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        let Some((schema, at)) = self.wanted(relation)? else {
            return Ok(Decoded::Other);
        };
        check_columns(schema, &new, at)?;
        let row = out.row(schema, RowOp::Insert, OldImage::None);
        push_tuple(schema, new, row.new, at)?;
        Ok(Decoded::Row)
    }

    fn update(
        &self,
        relation: u32,
        old: Option<OldTuple<'_>>,
        new: Tuple<'_>,
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        let Some((schema, at)) = self.wanted(relation)? else {
            return Ok(Decoded::Other);
        };
        check_columns(schema, &new, at)?;
        let (kind, old) = match old {
            None => {
                let row = out.row(schema, RowOp::Update, OldImage::None);
                push_tuple(schema, new, row.new, at)?;
                return Ok(Decoded::Row);
            }
            Some(OldTuple::Key(old)) => (OldImage::Key, old),
            Some(OldTuple::Full(old)) => (OldImage::Full, old),
        };
        check_columns(schema, &old, at)?;
        let RowColumns {
            new: new_columns,
            old: old_columns,
        } = out.row(schema, RowOp::Update, kind);
        push_old(schema, kind, old, old_columns, at)?;
        let cells = new.cells().zip(old.cells()).map(|(new, old)| match new {
            // Under FULL an unchanged value stands in the old tuple.
            Cell::Unchanged if kind == OldImage::Full => old,
            new => new,
        });
        push_cells(schema, cells, new_columns, at)?;
        Ok(Decoded::Row)
    }

    fn delete(
        &self,
        relation: u32,
        old: OldTuple<'_>,
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        let Some((schema, at)) = self.wanted(relation)? else {
            return Ok(Decoded::Other);
        };
        let (kind, old) = match old {
            OldTuple::Key(old) => (OldImage::Key, old),
            OldTuple::Full(old) => (OldImage::Full, old),
        };
        check_columns(schema, &old, at)?;
        let row = out.row(schema, RowOp::Delete, kind);
        push_old(schema, kind, old, row.old, at)?;
        Ok(Decoded::Row)
    }
}

fn check_columns(schema: &TableSchema, tuple: &Tuple<'_>, at: Lsn) -> Result<(), DecodeError> {
    let (expected, found) = (schema.columns.len(), tuple.columns);
    if expected == found {
        return Ok(());
    }
    Err(DecodeError::ColumnCount {
        table: schema.qualified_name(),
        expected,
        found,
        at,
    })
}

fn push_tuple(
    schema: &TableSchema,
    tuple: Tuple<'_>,
    columns: &mut [ColumnBuilder],
    at: Lsn,
) -> Result<(), DecodeError> {
    push_cells(schema, tuple.cells(), columns, at)
}

#[inline]
fn push_cells<'a>(
    schema: &TableSchema,
    cells: impl Iterator<Item = Cell<'a>>,
    columns: &mut [ColumnBuilder],
    at: Lsn,
) -> Result<(), DecodeError> {
    for ((cell, column), out) in cells.zip(&schema.columns).zip(columns) {
        push_cell(schema, column, cell, out, at)?;
    }
    Ok(())
}

#[inline]
fn push_cell(
    schema: &TableSchema,
    column: &Column,
    cell: Cell<'_>,
    out: &mut ColumnBuilder,
    at: Lsn,
) -> Result<(), DecodeError> {
    let pushed = match cell {
        Cell::Text(bytes) => text::push(&column.ty, bytes, out),
        Cell::Binary(bytes) => binary::push(&column.ty, bytes, out),
        Cell::Null => {
            out.push_presence(Presence::Null);
            Ok(())
        }
        Cell::Unchanged => {
            out.push_presence(Presence::Unchanged);
            Ok(())
        }
    };
    pushed.map_err(|error| DecodeError::Value {
        table: schema.qualified_name(),
        column: column.name.clone(),
        error,
        at,
    })
}

/// An old image: of a key only the identity's columns are known, the others were not logged.
fn push_old(
    schema: &TableSchema,
    kind: OldImage,
    old: Tuple<'_>,
    columns: &mut [ColumnBuilder],
    at: Lsn,
) -> Result<(), DecodeError> {
    if kind == OldImage::Full {
        return push_tuple(schema, old, columns, at);
    }
    debug_assert_ne!(schema.identity, ReplicaIdentity::Nothing);
    for ((cell, column), out) in old.cells().zip(&schema.columns).zip(columns) {
        // A key's columns cannot be null, so a null is a column that the identity does not have.
        if cell == Cell::Null {
            out.push_presence(Presence::Absent);
            continue;
        }
        push_cell(schema, column, cell, out, at)?;
    }
    Ok(())
}

/// One value as a cell of a message, through the same functions as a column's.
pub(super) fn cell_with(
    ty: &LogicalType,
    push: impl FnOnce(&mut ColumnBuilder) -> Result<(), ValueError>,
) -> Result<pb::Cell, ValueError> {
    let mut column = ColumnBuilder::new(0, ty);
    push(&mut column)?;
    let column = column.read().expect("one cell was pushed");
    view::cell_of(&column, ty, 0).map_err(|_| ValueError::Invalid("array element"))
}
