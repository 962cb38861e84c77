//! Table maps, and the rows of the tables that they describe.

use std::sync::Arc;

use downriver_event::TableSchema;
use downriver_event::block::BlockBuilder;

use super::super::cursor::Cursor;
use super::super::ddl::Named;
use super::super::event::{Event, Kind};
use super::super::rows::{Change, Rows};
use super::super::shape::{Shape, Unreadable};
use super::super::table_map::TableMap;
use super::super::{Flavor, images, inflate};
use super::aside::Watched;
use super::{BinlogDecoder, DecodeError, Decoded, State};

/// A table as its last table map described it.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) map: Vec<u8>,
    pub(super) named: Arc<Named>,
    /// `None`: it is not captured.
    pub(super) shape: Option<Arc<Shape>>,
    pub(super) watched: Option<Watched>,
}

/// A table map that waits for its shape.
#[derive(Debug)]
pub(super) struct Asked {
    number: u64,
    map: Vec<u8>,
    pub(super) named: Named,
    pub(super) watched: Option<Watched>,
}

impl Asked {
    /// The same for who passes its rows over.
    pub(super) fn passed(&self) -> Self {
        Self {
            number: self.number,
            map: self.map.clone(),
            named: self.named.clone(),
            watched: None,
        }
    }
}

/// An event with rows that waits for the defaults of columns.
#[derive(Debug)]
pub(super) struct Lacking {
    table: u64,
    kind: Kind,
    body: Vec<u8>,
}

impl BinlogDecoder {
    /// How the rows of the table that was asked for are read; `None`: they are passed over.
    pub fn set_shape(&mut self, shape: Option<Shape>) {
        if let Some(asked) = self.asked.take() {
            let described = Described {
                map: asked.map,
                named: Arc::new(asked.named),
                shape: shape.map(Arc::new),
                watched: asked.watched,
            };
            self.tables.insert(asked.number, described);
        }
    }

    /// Decodes the rows that lacked defaults by a version of their table's schema that has them; `None`: the table's rows
    /// are passed over from here on.
    ///
    /// # Errors
    /// As of [`Self::next`]; and they are not known in this version either.
    pub fn complete(
        &mut self,
        schema: Option<Arc<TableSchema>>,
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        let Some(lacking) = self.lacking.take() else {
            return Ok(Decoded::Passed);
        };
        let mut shape = None;
        if let Some(described) = self.tables.get_mut(&lacking.table) {
            let of = described.shape.take().zip(schema);
            shape = of.map(|(shape, schema)| Arc::new(shape.of(schema)));
            described.shape.clone_from(&shape);
        }
        match (self.rows(lacking.kind, &lacking.body, out)?, shape) {
            (Decoded::Lacking(_), Some(shape)) => Err(self.in_part(&shape)),
            (decoded, _) => Ok(decoded),
        }
    }

    pub(super) fn table_map(&mut self, event: &Event<'_>) -> Result<Decoded, DecodeError> {
        match self.state {
            State::Inside(_) => {}
            State::Dropping => return Ok(Decoded::Passed),
            _ => return Err(self.out_of_place("table map")),
        }
        let number = Cursor::new(event.body).uint(6);
        let known = number.and_then(|number| self.tables.get(&number));
        if known.is_some_and(|known| known.map == event.body) {
            return Ok(Decoded::Passed);
        }
        let map = TableMap::parse(event.body, self.reached.flavor());
        let map = map.map_err(|error| self.wrong(error))?;
        self.asked = Some(Asked {
            number: map.number,
            map: event.body.to_vec(),
            named: Named {
                database: map.database.clone(),
                table: map.table.clone(),
            },
            watched: None,
        });
        Ok(Decoded::Table(map))
    }

    pub(super) fn rows(
        &mut self,
        kind: Kind,
        body: &[u8],
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        match self.state {
            State::Inside(_) => {}
            State::Dropping => return Ok(Decoded::Passed),
            _ => return Err(self.out_of_place("row")),
        }
        let rows = Rows::parse(kind, body).map_err(|error| self.wrong(error))?;
        let Some(described) = self.tables.get(&rows.table) else {
            // What ends a statement that changed nothing has a number of its own.
            if rows.values.is_empty() {
                return Ok(Decoded::Passed);
            }
            let at = self.place.clone();
            return Err(DecodeError::UnknownTable { at });
        };
        // Rows that nobody asks for are not looked into; but who deletes some may change others.
        let is_asked = described.shape.is_some() || described.watched.is_some();
        if !is_asked && rows.change != Change::Delete {
            return Ok(Decoded::Passed);
        }
        if let Some(shape) = &described.shape
            && self.fills_in()
            && rows.lacks_defaults(shape)
        {
            self.lacking = Some(Lacking {
                table: rows.table,
                kind,
                body: body.to_vec(),
            });
            return Ok(Decoded::Lacking(shape.schema.id));
        }
        let mut inflated = std::mem::take(&mut self.inflated);
        let decoded = self.rows_of_known(rows, &mut inflated, out);
        self.inflated = inflated;
        decoded
    }

    /// Rows of a table that was described.
    fn rows_of_known<'a>(
        &mut self,
        mut rows: Rows<'a>,
        inflated: &'a mut Vec<u8>,
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        if rows.is_compressed {
            inflate::event(rows.values, inflated).map_err(|error| self.wrong(error))?;
            rows.values = inflated;
        }
        let Some(described) = self.tables.get(&rows.table) else {
            return Ok(Decoded::Passed);
        };
        let watched = described.watched.as_ref();
        self.aside.rows(&described.named, watched, &rows);
        let Some(shape) = described.shape.clone() else {
            return Ok(Decoded::Passed);
        };
        self.aside.touch(shape.schema.id);
        if rows.columns != shape.columns() {
            return Err(DecodeError::ColumnCount {
                table: shape.schema.qualified_name(),
                expected: shape.columns(),
                found: rows.columns,
                at: self.place.clone(),
            });
        }
        if !rows.tell_all(&shape, self.fills_in()) {
            return Err(self.in_part(&shape));
        }
        let pushed = images::push(&shape, &rows, out, &mut self.scratch);
        pushed.map_err(|Unreadable { column, error }| DecodeError::Value {
            id: shape.schema.id,
            table: shape.schema.qualified_name(),
            column: shape.name(column),
            error,
            at: self.place.clone(),
        })?;
        let bytes = rows.values.len();
        Ok(Decoded::Rows { bytes })
    }

    /// Whether a column that a row is logged without is known all the same: it has its default in an insert, and what it
    /// had before in an update. MariaDB logs `REPLACE` as an update without the columns that it leaves out, though it gives
    /// them their defaults; replicas have other rows then.
    fn fills_in(&self) -> bool {
        self.reached.flavor() == Flavor::Mysql
    }

    fn in_part(&self, shape: &Shape) -> DecodeError {
        DecodeError::InPart {
            id: shape.schema.id,
            table: shape.schema.qualified_name(),
            at: self.place.clone(),
        }
    }
}
