//! The end of a generation of the table's snapshot: rows from before its start that it did not see, and that nothing
//! changed since, are gone at the source. Whatever it saw or something changed is in a newer file by now.

use arrow_array::{ArrayRef, BooleanArray, Datum, RecordBatch, Scalar};
use arrow_buffer::BooleanBuffer;
use arrow_ord::cmp;
use arrow_schema::ArrowError;
use downriver_event::filter::{Comparator, Comparison, Condition};
use downriver_event::{Offset, RowFilter, pb};
use futures_util::TryStreamExt as _;

use super::{SNAPSHOT_PROPERTY, TableWriter};
use crate::LakeError;
use crate::data::{all_but, read_rows};
use crate::encoding;
use crate::schema::Holds;

/// A comparison of a column of what is read with a value.
struct InLake {
    column: usize,
    compare: fn(&dyn Datum, &dyn Datum) -> Result<BooleanArray, ArrowError>,
    value: Scalar<ArrayRef>,
}

impl TableWriter {
    /// What is in the table at `at`, the start of a generation, is from before it.
    pub(super) async fn begin_sweep(&mut self, at: Offset) -> Result<(), LakeError> {
        self.commit(at).await?;
        let last = self.metadata.last_sequence_number();
        self.snapshot_since = Some(last);
        self.pending
            .properties
            .insert(SNAPSHOT_PROPERTY.to_owned(), last.to_string());
        Ok(())
    }

    /// The last sequence number of the files from before the generation; `None`: its start was not seen.
    pub(super) async fn end_sweep(&mut self) -> Result<Option<i64>, LakeError> {
        let Some(last) = self.snapshot_since else {
            return Ok(None);
        };
        self.spill().await?;
        self.snapshot_since = None;
        self.pending
            .properties
            .insert(SNAPSHOT_PROPERTY.to_owned(), String::new());
        Ok(Some(last))
    }

    /// Deletes the rows of a part of the table that are still in files from before `last`.
    pub(super) async fn sweep_part(
        &mut self,
        last: i64,
        part: Option<&pb::RowFilter>,
    ) -> Result<(), LakeError> {
        let part = part.and_then(|part| RowFilter::from_pb(part).ok());
        let part = part.ok_or_else(|| self.unknown_part("it is not known to this build"))?;
        let mut fields = Vec::new();
        let condition = part
            .condition
            .try_map(&mut |is| self.of_lake(is, &mut fields))?;
        let old: Vec<u32> = self
            .live
            .files
            .iter()
            .filter(|(number, file)| {
                file.sequence <= last && !self.pending.removed.contains(number)
            })
            .map(|(number, _)| *number)
            .collect();
        for file in old {
            let mut gone = self.deleted_of(file).await?;
            if let Some(pending) = self.pending.deleted.get(&file) {
                gone |= pending;
            }
            let live = &self.live.files[&file];
            let mut rows = (0..live.rows).filter(|row| !gone.contains(*row));
            let arrow = &self.layout.arrow;
            let selected = Some(all_but(&gone, live.rows));
            let (path, bytes) = (&live.path, live.bytes);
            let batches = read_rows(&self.warehouse, path, bytes, arrow, &fields, selected).await?;
            let mut batches = std::pin::pin!(batches);
            let mut swept = Vec::new();
            while let Some(batch) = batches.try_next().await? {
                let holds = self.holds(&condition, &batch)?;
                let each = holds.iter().zip(rows.by_ref());
                swept.extend(each.filter_map(|(holds, row)| holds.then_some(row)));
            }
            if !swept.is_empty() {
                self.pending.deleted.entry(file).or_default().extend(swept);
            }
        }
        Ok(())
    }

    /// The comparison in the lake's types. `fields`: those that are read, by their ids.
    fn of_lake(&self, is: &Comparison, fields: &mut Vec<i32>) -> Result<InLake, LakeError> {
        let holds = &self.layout.holds;
        let at = holds.iter().position(|h| *h == Holds::Column(is.column));
        let at = at.ok_or_else(|| self.unknown_part("a column of it has no field"))?;
        let field = self.layout.schema.as_struct().fields()[at].id;
        let column = fields.iter().position(|known| *known == field);
        let column = column.unwrap_or_else(|| {
            fields.push(field);
            fields.len() - 1
        });
        let ty = self.met.column_index(is.column);
        let ty = ty.map(|at| &self.met.columns[at].ty);
        let cell = ty.and_then(|ty| Some((ty, is.cell(ty)?)));
        let (ty, cell) = cell.ok_or_else(|| self.unknown_part("its values are of other types"))?;
        let to = self.layout.arrow.field(at);
        let value = encoding::column(to, ty, &[Some((&cell, 0))])
            .map_err(|error| self.unknown_part(&format!("the lake cannot hold {}", error.what)))?;
        Ok(InLake {
            column,
            compare: match is.comparator {
                Comparator::Equal => cmp::eq,
                Comparator::NotEqual => cmp::neq,
                Comparator::Less => cmp::lt,
                Comparator::LessOrEqual => cmp::lt_eq,
                Comparator::Greater => cmp::gt,
                Comparator::GreaterOrEqual => cmp::gt_eq,
            },
            value: Scalar::new(value),
        })
    }

    /// Of which rows of a batch the condition holds.
    fn holds(
        &self,
        condition: &Condition<InLake>,
        batch: &RecordBatch,
    ) -> Result<BooleanBuffer, LakeError> {
        match condition {
            Condition::All(of) => {
                let start = BooleanBuffer::new_set(batch.num_rows());
                let mut each = of.iter();
                each.try_fold(start, |all, one| Ok(&all & &self.holds(one, batch)?))
            }
            Condition::Any(of) => {
                let start = BooleanBuffer::new_unset(batch.num_rows());
                let mut each = of.iter();
                each.try_fold(start, |any, one| Ok(&any | &self.holds(one, batch)?))
            }
            Condition::Is(is) => {
                let holds = (is.compare)(batch.column(is.column), &is.value)
                    .map_err(|error| self.unknown_part(&error.to_string()))?;
                // A key is never NULL.
                Ok(holds.values().clone())
            }
        }
    }

    fn unknown_part(&self, why: &str) -> LakeError {
        LakeError::stopped(
            "DR-3033",
            format!(
                "a part of {} was read again, and which of its rows are in that part cannot be told: {why}",
                self.config.name
            ),
            "downriver resnapshot PIPELINE --tables SCHEMA.TABLE, without --where: a new snapshot of the whole table begins it again",
        )
    }
}
