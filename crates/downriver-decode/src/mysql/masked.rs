//! What a mask makes of a value, wherever it was read.

use downriver_event::Column;
use downriver_event::block::ColumnBuilder;

use super::cursor::Cursor;
use super::selected::Selected;
use super::value::{Plan, ValueError};
use crate::mask::{Mask, Unmaskable};

impl From<Unmaskable> for ValueError {
    fn from(error: Unmaskable) -> Self {
        match error {
            Unmaskable::Constant(_) => Self::Invalid("constant of a mask"),
            Unmaskable::NotUtf8 => Self::Charset("UTF-8"),
        }
    }
}

impl Plan {
    /// Pushes what a mask makes of a value that a statement read.
    ///
    /// # Errors
    /// It is no value of the column's type.
    pub fn push_selected_masked(
        &self,
        mask: &Mask,
        column: &Column,
        value: Selected<'_>,
        out: &mut ColumnBuilder,
        scratch: &mut Vec<u8>,
    ) -> Result<(), ValueError> {
        self.push_masked(mask, column, out, |cell| {
            self.push_selected(value, cell, scratch)
        })
    }

    /// The same of a value that `push` reads.
    pub(super) fn push_masked(
        &self,
        mask: &Mask,
        column: &Column,
        out: &mut ColumnBuilder,
        push: impl FnOnce(&mut ColumnBuilder) -> Result<(), ValueError>,
    ) -> Result<(), ValueError> {
        let ty = column.source_ty();
        let mut cell = ColumnBuilder::new(column.id, ty);
        push(&mut cell)?;
        let cell = cell
            .read()
            .ok_or(ValueError::Invalid("value of its type"))?;
        let text = self.printed(ty, &cell)?;
        Ok(mask.push(column, Some(&text), out)?)
    }

    /// Passes over a value at the front of a row.
    pub(super) fn skip(&self, row: &mut Cursor<'_>) -> Result<(), ValueError> {
        self.wire.take(row).map(drop).ok_or(ValueError::Cut)
    }
}
